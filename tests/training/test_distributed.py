from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CONFIGS, SCHEDULE, TESTS, TINY
from mlflow import MlflowClient

from cyclic_committee.scripts.runtime.errors import BadInput
from cyclic_committee.scripts.training.distributed import (
    GlobalSelection,
    LocalSelection,
    RankSampler,
    after_restart,
    attempt_prefix,
    device_of_rank,
    in_turn,
    is_not_rank_zero,
    join,
    leave,
)
from cyclic_committee.scripts.training.selection import LossDifference

FIVE = {**SCHEDULE, "iterations_per_epoch": 5, "val_interval": 1, "track": False}
LIMIT_S = 300  # of one start of several processes: what hangs shall fail


def torchrun(
    *arguments: str,
    cwd: Path,
    processes: int = 2,
    restarts: int = 0,
    nodes: Sequence[str] = ("--standalone",),
    **variables: str,
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *nodes, "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [*command, "--max_restarts", str(restarts), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def training(folder: Path, phantoms: Path, *overlays: str) -> list[str]:
    """Return the arguments of a tiny training by several processes whose output goes to the folder."""
    folder.mkdir(exist_ok=True)
    tiny = folder / "tiny.yaml"
    tiny.write_text(yaml.safe_dump({**{k: v for k, v in TINY.items() if k != "device"}, **FIVE}))
    files = [str(CONFIGS / name) for name in ("train.yaml", "multi_gpu_train.yaml", *overlays)]
    places = ["--dataset_dir", str(phantoms), "--output_dir", str(folder), "--model_path", str(folder / "model.pt")]
    return ["-m", "monai.bundle", "run", "training", "--config_file", str([*files, str(tiny)]), *places]


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    return output


def difference(a: Path, b: Path) -> float:
    """Return the largest difference of two files of weights."""
    one, other = (torch.load(path, weights_only=True) for path in (a, b))
    assert one.keys() == other.keys()
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


def epochs(folder: Path) -> list[int]:
    return [row["epoch"] for row in json.loads((folder / "history.json").read_text())]


def test_two_processes_exchange_what_they_should(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    output = finished(torchrun(str(TESTS / "rank_checks.py"), str(shared), cwd=tmp_path))
    for check in (
        "gradients_count_by_their_samples",
        "there_is_one_decision",
        "the_loss_is_that_of_all_samples",
        "an_epoch_begins_with_one_network_and_several_dice",
        "cases_and_samples_are_shared_out",
        "folders_are_filled_once",
        "all_leave_out_the_same",
    ):
        assert f"{check} 0" in output
        assert f"{check} 1" in output


def test_two_processes_with_one_decision_train_as_one_process_does(
    phantoms: Path, tmp_path: Path, train: Callable[..., Path]
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    output = finished(torchrun(*training(two, phantoms, "variants/global_choice.yaml"), cwd=tmp_path))
    assert output.count("epoch 2/2") == 1  # one process tells
    train(one, **{**FIVE, "batch_size": 8})
    assert difference(two / "model.pt", one / "model.pt") < 1e-5
    assert (two / "selection.csv").read_text() == (one / "selection.csv").read_text()  # the same choices
    rows = [json.loads((folder / "history.json").read_text())[-1] for folder in (two, one)]
    assert rows[0]["validation/dsc_mean"] == pytest.approx(rows[1]["validation/dsc_mean"], abs=1e-3)


def test_a_training_goes_on_with_another_number_of_processes(
    phantoms: Path, tmp_path: Path, train: Callable[..., Path]
) -> None:
    alone, joined = tmp_path / "alone", tmp_path / "joined"
    for folder in (alone, joined):
        train(folder, **{**FIVE, "batch_size": 8, "max_epochs": 1})
    train(alone, **{**FIVE, "batch_size": 8, "resume": True})
    arguments = training(joined, phantoms, "variants/global_choice.yaml")
    finished(torchrun(*arguments, "--resume", "true", cwd=tmp_path))
    assert epochs(joined) == [1, 2]
    assert difference(joined / "model.pt", alone / "model.pt") < 1e-5
    assert (joined / "selection.csv").read_text() == (alone / "selection.csv").read_text()


def ranks_of(process: subprocess.Popen[str], rank: int) -> list[int]:
    """Return the process ids of a rank among torchrun's children: one, or none."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    variables = {child: Path(f"/proc/{child}/environ").read_bytes().decode().split("\0") for child in children}
    return [int(child) for child in children if f"RANK={rank}" in variables[child]]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(LIMIT_S * 10):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


@pytest.mark.slow
def test_a_training_that_lost_a_process_goes_on_to_the_same_weights(phantoms: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finished(torchrun(*training(undisturbed, phantoms), cwd=tmp_path))
    process = torchrun(*training(killed, phantoms), cwd=tmp_path, restarts=1)
    wait_for((killed / "checkpoint.pt").is_file)  # the first epoch is done
    os.kill(ranks_of(process, 1)[0], signal.SIGKILL)
    finished(process)
    assert epochs(killed) == [1, 2]
    assert difference(killed / "model.pt", undisturbed / "model.pt") == 0
    assert (killed / "selection.csv").read_text() == (undisturbed / "selection.csv").read_text()


@pytest.mark.slow
def test_on_two_nodes_all_go_on_when_one_has_lost_its_process(phantoms: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = training(folder, phantoms)
    nodes = ["--nnodes", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{free_port()}", "--rdzv_id", "x"]
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    processes = [
        torchrun(*arguments, cwd=tmp_path, processes=1, restarts=2, nodes=nodes, **variables) for _ in range(2)
    ]
    wait_for((folder / "checkpoint.pt").is_file)
    os.kill(next(pid for process in processes for pid in ranks_of(process, 1)), signal.SIGKILL)
    for process in processes:
        finished(process)
    assert epochs(folder) == [1, 2]
    assert (folder / "model.pt").is_file()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_lost_process_ends_the_run_with_its_reason_and_the_tracked_run_with_it(
    phantoms: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = training(folder, phantoms)
    process = torchrun(*arguments, "--track", "true", "--max_epochs", "50", cwd=tmp_path)
    wait_for((folder / "checkpoint.pt").is_file)
    os.kill(ranks_of(process, 1)[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)  # the limit that was asked for; it takes a few seconds
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL) received by PID" in output
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow/mlflow.db")
    [run] = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.info.status in ("FAILED", "KILLED")  # by the lost connection, or by torchrun's SIGTERM


def test_a_process_that_fails_ends_the_run_with_its_reason(phantoms: Path, tmp_path: Path) -> None:
    process = torchrun(*training(tmp_path / "run", phantoms), "--learning_rate", "1e30", cwd=tmp_path)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    assert "error: The loss of member 0 is " in output
    assert "lower learning_rate" in output


def test_evaluation_by_several_processes_gives_one_table(
    phantoms: Path, tmp_path: Path, train: Callable[..., Path]
) -> None:
    model = train(tmp_path / "run") / "model.pt"
    tables = []
    for processes in (1, 3):  # of five cases
        names = ["inference.yaml", "evaluate.yaml", *(["multi_gpu_evaluate.yaml"] if processes > 1 else [])]
        files = [str(CONFIGS / name) for name in names]
        scores = tmp_path / f"scores{processes}"
        places = ["--dataset_dir", str(phantoms), "--output_dir", str(scores), "--ckpt_path", str(model)]
        tiny = [f"--{key}={TINY[key]}" for key in ("member#features", "spacing_mm", "patch_size", "precision")]
        command = ["-m", "monai.bundle", "run", "--config_file", str(files), *places, *tiny]
        if processes == 1:
            subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, capture_output=True)
        else:
            finished(torchrun(*command, cwd=tmp_path, processes=processes))
        tables.append((scores / "scores.csv").read_text())
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 1 + 5 * 4


def test_one_process_alone_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = torch.rand(3, 8)
    for distributed in (LocalSelection(), GlobalSelection()):
        scores, kept = distributed.choose(LossDifference(), losses)
        assert torch.equal(scores, LossDifference().scores(losses))
        assert torch.equal(kept, LossDifference()(losses))
    assert list(RankSampler(range(3))) == [0, 1, 2]
    assert list(RankSampler([])) == []
    assert in_turn(lambda: "done") == "done"
    leave()
    monkeypatch.delenv("RANK", raising=False)
    assert not is_not_rank_zero()
    with pytest.raises(BadInput, match=r"^multi_gpu: .* Start it with `torchrun "):
        join("cpu")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "new"),
        ({"TORCHELASTIC_USE_AGENT_STORE": "False", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}, "new"),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True"}, "attempt 0"),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}, "attempt 2"),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "2"}, "attempt 0"),
    ],
)
def test_a_restart_keeps_away_from_the_addresses_of_the_dead(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert attempt_prefix() == expected
    for name, value in {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GROUP_WORLD_SIZE": "2",
        "TORCHELASTIC_MAX_RESTARTS": "3",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=r"^--max-restarts: .* Set the variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "):
        attempt_prefix()


@pytest.mark.parametrize(("count", "exists", "expected"), [("0", True, False), ("1", False, False), ("1", True, True)])
def test_only_a_restarted_training_with_a_checkpoint_resumes_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str, exists: bool, expected: bool
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    if exists:
        (tmp_path / "checkpoint.pt").touch()
    assert after_restart(str(tmp_path / "checkpoint.pt")) is expected


def test_a_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of_rank() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of_rank() == torch.device("cuda", 3)
