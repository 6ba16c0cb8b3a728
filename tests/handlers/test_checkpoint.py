"""Files of weights: what is damaged is refused, whichever byte it is."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from cyclic_committee.scripts.handlers.checkpoint import TrainingCheckpoint, load_file
from cyclic_committee.scripts.runtime.errors import BadInput

CASES = ROOT.parent / "shared" / "cases" / "damaged_weights"


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_is_refused_or_changes_nothing(model: Path, tmp_path: Path, seed: int) -> None:
    content, random = bytearray(model.read_bytes()), np.random.default_rng(seed)
    content[random.integers(len(content))] ^= 1 << int(random.integers(8))
    damaged = tmp_path / "model.pt"
    damaged.write_bytes(content)
    right, weights, said = load_file(model, map_location="cpu"), None, f"{damaged}: "
    try:
        weights = load_file(damaged, map_location="cpu")
    except BadInput as error:
        said = str(error)
    assert said.startswith(f"{damaged}: ")
    assert "weights_only" not in said
    assert weights is None or all(torch.equal(weights[key], right[key]) for key in right | weights)


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases aren't there")
def test_weights_that_were_altered_are_refused() -> None:
    load_file(CASES / "good_model.pt", map_location="cpu")
    for file in sorted(CASES.glob("fail*.pt")):
        with pytest.raises(BadInput, match="is damaged"):
            load_file(file, map_location="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    torch.save({"network": {"a": torch.tensor([1.0, value])}}, tmp_path / "checkpoint.pt")
    with pytest.raises(BadInput, match=r"a holds NaN or infinite"):
        load_file(tmp_path / "checkpoint.pt", map_location="cpu")


def test_what_runs_code_is_refused_without_the_advice_to_run_it(tmp_path: Path) -> None:
    torch.save({"a": Path("x")}, tmp_path / "model.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": Path("x")}))
    for name in ("model.pt", "plain.pt"):
        with pytest.raises(BadInput, match=r"damaged, or holds other things than weights. Give another") as caught:
            load_file(tmp_path / name, map_location="cpu")
        assert "weights_only" not in str(caught.value)


def test_a_training_goes_on_in_another_precision(tmp_path: Path) -> None:
    """Without float16 the scaler of losses has no state."""

    class Engine:
        def __init__(self, scaler: Any) -> None:
            self.update = type("Update", (), {"grad_scaler": scaler})
            self.state = type("State", (), {"max_epochs": 4, "epoch": 1})

        def state_dict(self) -> dict[str, int]:
            return {"max_epochs": 4, "epoch": 1}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.state.epoch = state["epoch"]

    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=4)
    parts = {"network": network, "optimizer": optimizer, "lr_scheduler": schedule}
    checkpoint = TrainingCheckpoint(str(tmp_path / "checkpoint.pt"), **parts)
    checkpoint.save(Engine(torch.amp.GradScaler("cpu", enabled=False)))
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    checkpoint.load(Engine(scaler))
    assert scaler.get_scale() == 2**16
