from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import TINY

from cyclic_committee.scripts.experiments import inference_costs as module
from cyclic_committee.scripts.experiments.cross_validation import begin
from cyclic_committee.scripts.experiments.inference_costs import (
    CaseCost,
    case_costs,
    gpu_memory_mib,
    read_costs,
    write_costs,
)
from cyclic_committee.scripts.runtime.errors import BadInput


@pytest.fixture
def run(phantoms: Path, model: Path, tmp_path: Path) -> Path:
    """A cross-validation of which folds 0 and 2 are trained."""
    overlay = tmp_path / "tiny.yaml"
    overlay.write_text(yaml.safe_dump(TINY))
    out = tmp_path / "a run"
    begin(out, [str(overlay)], {"dataset_dir": str(phantoms), "layout": "flare21", "values": {"mirror": True}})
    for fold in (0, 2):
        (out / f"fold_{fold}").mkdir()
        shutil.copy(model, out / f"fold_{fold}" / "model.pt")
    return out


def test_cases_of_each_fold_are_labelled_once_in_processes_of_their_own(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first] = case_costs(run, cases=1)
    assert first.seconds > 1  # no Python with PyTorch starts in less
    assert 100 < first.peak_memory_mib < 100_000
    assert first.gpu_memory_mib is None or first.gpu_memory_mib > 0
    written = (run / module.FILE).read_text()
    assert written.startswith("case,seconds,peak_memory_mib,gpu_memory_mib\ntrain_")
    asked: list[int] = []

    def remember(run: Path, settings: object, *, fold: int, image: str) -> CaseCost:
        asked.append(fold)
        return CaseCost("another", 1.0, 2.0, 3.0)

    monkeypatch.setattr(module, "measure", remember)
    assert [cost.case for cost in case_costs(run, cases=2)] == [first.case, "another"]
    assert asked == [2]  # the first one isn't measured again, and the other is of the other fold


def test_a_case_that_cannot_be_labelled_is_named(run: Path) -> None:
    for fold in (0, 2):
        (run / f"fold_{fold}" / "model.pt").write_bytes(b"no weights")
    with pytest.raises(BadInput, match=r"train_00\d_0000.nii.gz: couldn't be labelled \(.*model.pt"):
        case_costs(run, cases=1)
    assert not (run / module.FILE).exists()


def test_a_folder_that_is_no_cross_validation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no cross-validation"):
        case_costs(tmp_path, cases=1)


def test_gpu_memory_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory_mib(7) == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '77, 900\\n7, 512\\n7, [N/A]\\n7, 33\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert gpu_memory_mib(7) == [512.0, 33.0]


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    costs = [CaseCost("a", 12.25, 800.5, None), CaseCost("b", 3.0, 900.0, 512.0)]
    write_costs(costs, tmp_path / "costs.csv")
    assert read_costs(tmp_path / "costs.csv") == costs
    assert read_costs(tmp_path / "none.csv") == []
