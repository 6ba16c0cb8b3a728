from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import CONFIGS
from monai.bundle import ConfigParser

from cyclic_committee.scripts.auto3dseg.training_parameters import keys_of, store_of
from cyclic_committee.scripts.runtime.errors import BadInput

CONFIG = yaml.safe_load((CONFIGS / "train.yaml").read_text())


@pytest.mark.parametrize(
    ("parameters", "given"),
    [
        (
            {"num_epochs": 5, "num_epochs_per_validation": 2, "num_images_per_batch": 4},
            {"max_epochs": 5, "val_interval": 2, "batch_size": 4},
        ),
        (
            {"mlflow_tracking_uri": "http://host:5000", "mlflow_experiment_name": "mine"},
            {"experiment_name": "mine", "tracking_uri": "http://host:5000"},
        ),
        ({"mlflow_tracking_uri": None, "num_epochs": None, "num_warmup_epochs": None, "overlays": None}, {}),
        ({"patch_size": [64, 64], "member#features": [4, 8]}, {"patch_size": [64, 64], "member#features": [4, 8]}),
        (
            {"augmentation": [{"_target_": "X"}], "data_root": None},
            {"augmentation": [{"_target_": "X"}], "data_root": None},
        ),
        ({"keep": 0.5}, {"select": {**CONFIG["select"], "keep": 0.5}}),
        (
            {"rule": "SmallLoss", "keep": 0.5, "warmup_epochs": 3},
            {"select": {"_target_": "scripts.training.selection.SmallLoss", "keep": 0.5, "warmup_epochs": 3}},
        ),
        ({"rule": "EverySample"}, {"select": {"_target_": "scripts.training.selection.EverySample"}}),
        (
            {"overlays": ["variants/random_subset.yaml"], "keep": 0.25},
            {"select": {"_target_": "scripts.training.selection.RandomSubset", "keep": 0.25}},
        ),
        ({"fill_with_datastats": False, "CUDA_VISIBLE_DEVICES": "0"}, {}),  # left there by MONAI
    ],
)
def test_auto3dsegs_parameters_become_keys(parameters: dict[str, Any], given: dict[str, Any]) -> None:
    assert keys_of(parameters, CONFIG) == given


def test_parameters_go_over_overlays_and_hide_what_they_have_within_a_key(tmp_path: Path) -> None:
    overlay = tmp_path / "own.yaml"
    overlay.write_text("batch_size: 3\nmember#features: [1, 2]\nmember#strides: [[2, 2]]\nseed: 4\n")
    given = keys_of({"overlays": [str(overlay)], "member": {"a": 1}, "num_images_per_batch": 2}, CONFIG)
    assert given == {"seed": 4, "member": {"a": 1}, "batch_size": 2}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rule": "Best"}, "there is no Best. Choose one of EverySample, LossDifference, RandomSubset, SmallLoss"),
        ({"rule": "SmallLoss", "keep": 2}, r"keep must be in \(0, 1\], got 2"),
        ({"num_warmup_epochs": 4, "num_epochs": 4}, "num_warmup_epochs must be fewer than the 4 epochs"),
        ({"overlays": ["none.yaml"]}, r"none\.yaml: no such configuration file"),
        ({"output_dir": "/tmp"}, "output_dir: belongs to the fold"),
    ],
)
def test_what_cannot_be_is_told(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        keys_of(parameters, CONFIG)


def test_the_learning_rate_rises_and_then_falls_to_nothing() -> None:
    schedule = keys_of({"num_warmup_epochs": 3, "num_epochs": 10}, CONFIG)["lr_scheduler"]
    parser = ConfigParser({"optimizer": None, "train": {"trainer": {"max_epochs": 10}}, "lr_scheduler": schedule})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    parser["optimizer"] = {"_target_": "torch.optim.SGD", "params": [torch.zeros(1)], "lr": 0.01}
    scheduler = parser.get_parsed_content("lr_scheduler")
    optimizer = parser.get_parsed_content("optimizer")
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [0.0025, 0.005, 0.0075, *(0.01 * (1 - epoch / 7) ** 0.9 for epoch in range(7))]
    assert rates == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kept", ["http://host:1", "https://u@host/x", "sqlite:////a/b.db", "postgresql+x://h/d"])
def test_addresses_of_stores_are_kept(kept: str) -> None:
    assert store_of(kept) == kept


@pytest.mark.parametrize("folder", ["runs", "/a b/runs", "file:///a/runs", "file:runs"])
def test_folders_become_a_database_in_them(folder: str) -> None:
    path = Path(folder.removeprefix("file://").removeprefix("file:")).resolve()
    assert store_of(folder) == f"sqlite:///{path}/mlflow.db"
