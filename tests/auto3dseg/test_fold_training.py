from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cyclic_committee.scripts.auto3dseg.fold_training import begin_or_resume, training_command, training_environment

FOLD = Path("/a work folder/committee_0")
TRAIN, MANY = f"{FOLD}/configs/train.yaml", f"{FOLD}/configs/multi_gpu_train.yaml"
RUN = ["-m", "monai.bundle", "run", "training", "--config_file"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node"]


def setting(**given: Any) -> dict[str, Any]:
    return {"CUDA_VISIBLE_DEVICES": "", "n_devices": 1, "NUM_NODES": 1, "CMD_PREFIX": "", **given}


@pytest.mark.parametrize(
    ("given", "start", "files"),
    [
        ({}, [sys.executable], [TRAIN]),
        ({"n_devices": 0}, [sys.executable], [TRAIN]),
        ({"CMD_PREFIX": "None"}, [sys.executable], [TRAIN]),
        ({"CMD_PREFIX": "'/opt/my python' -I "}, ["/opt/my python", "-I"], [TRAIN]),
        ({"n_devices": 4}, [*TORCHRUN, "4", "--standalone"], [TRAIN, MANY]),
        ({"n_devices": 4, "CMD_PREFIX": "srun python"}, ["srun", "python"], [TRAIN, MANY]),
        ({"CMD_PREFIX": "torchrun --nproc_per_node=2"}, ["torchrun", "--nproc_per_node=2"], [TRAIN, MANY]),
    ],
)
def test_the_command_is_a_list_of_arguments(given: dict[str, Any], start: list[str], files: list[str]) -> None:
    assert training_command(FOLD, setting(**given), resume=False) == [*start, *RUN, str(files)]


def test_several_machines_meet_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "head")
    monkeypatch.setenv("MASTER_PORT", "123")
    monkeypatch.setenv("NODE_RANK", "1")
    command = training_command(FOLD, setting(n_devices=8, NUM_NODES=2), resume=True)
    where = ["--nnodes", "2", "--node_rank", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", "head:123"]
    assert command == [*TORCHRUN, "8", *where, "--rdzv_id", "committee_0", *RUN, str([TRAIN, MANY]), "--resume", "true"]


def test_devices_are_named_if_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in training_environment(setting())
    assert training_environment(setting(CUDA_VISIBLE_DEVICES="1,2"))["CUDA_VISIBLE_DEVICES"] == "1,2"


def interrupted(fold: Path) -> None:
    (fold / "models").mkdir()
    begin_or_resume(fold, "a: 1\n")
    (fold / "output" / "checkpoint.pt").touch()
    (fold / "output" / "model_best.pt").touch()
    (fold / "output" / "history.json").write_text(json.dumps([{"epoch": 3}]))


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    interrupted(tmp_path)
    assert begin_or_resume(tmp_path, "a: 1\n")
    assert (tmp_path / "output" / "checkpoint.pt").is_file()


@pytest.mark.parametrize(("overlay", "ended"), [("a: 2\n", False), ("a: 1\n", True)])
def test_another_or_an_ended_training_begins_anew_with_nothing_left(tmp_path: Path, overlay: str, ended: bool) -> None:
    interrupted(tmp_path)
    if ended:
        (tmp_path / "models" / "model.pt").touch()
    assert not begin_or_resume(tmp_path, overlay)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["overlay.yaml"]
    assert (tmp_path / "output" / "overlay.yaml").read_text() == overlay
