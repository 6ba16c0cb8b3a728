"""What the machine does to a program ends in one line, with what to do and what is kept."""

from __future__ import annotations

import errno
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from torch.utils.data import DataLoader, Dataset

from cyclic_committee.scripts.handlers import history
from cyclic_committee.scripts.handlers.history import History
from cyclic_committee.scripts.runtime.errors import BadInput, find_bad_input, size_text


class Killed(Dataset[int]):
    """Items in whose making the process is killed, as for want of memory."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


class Wrong(Killed):
    def __getitem__(self, index: int) -> int:
        raise RuntimeError("a fault of the program")


def wrapped(error: BaseException) -> RuntimeError:
    try:
        try:
            raise error
        except type(error) as cause:
            raise RuntimeError("Failed to evaluate ConfigExpression") from cause
    except RuntimeError as outer:
        return outer


def full_disk() -> BaseException:
    """Raise what Linux raises."""
    try:
        with open("/dev/full", "w") as file:
            file.write("a" * 100000)
    except OSError as error:
        return error
    raise AssertionError


def full_disk_of_weights() -> BaseException:
    try:
        torch.save({"a": torch.zeros(100000)}, "/dev/full")
    except Exception as error:
        return error
    raise AssertionError


def loaded(dataset: Dataset[int]) -> BaseException:
    try:
        next(iter(DataLoader(dataset, num_workers=1, multiprocessing_context="fork")))
    except Exception as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "start", "remedy"),
    [
        (full_disk(), "a file: the disk is full.", "Make room."),
        (OSError(errno.EROFS, "", "/x/model.pt"), "/x/model.pt: lies on a disk", "Choose another folder."),
        (PermissionError(errno.EACCES, "", "/x"), "/x: may not be read or written by you", "Change its permissions"),
        (
            MemoryError("Unable to allocate 9 GiB"),
            "memory: there isn't enough (Unable to allocate 9 GiB)",
            "num_workers",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you"),
            "memory: there isn't enough",
            "Take fewer",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "device: the GPU's memory is too small",
            "low_memory.yaml",
        ),
        (
            RuntimeError("unable to write to file </torch_12_34>: No space left on device (28)"),
            "/dev/shm: is full",
            "--shm-size",
        ),
    ],
)
def test_failures_of_the_machine_are_one_line(error: BaseException, start: str, remedy: str) -> None:
    said = str(find_bad_input(wrapped(error)))
    assert said.startswith(start)
    assert remedy in said
    assert said.endswith("start again with the same words, a training with --resume true.")
    assert "\n" not in said


def test_weights_on_a_full_disk_are_one_line() -> None:
    assert "disk is full" in str(find_bad_input(full_disk_of_weights()))


def test_a_killed_loading_process_is_one_line_and_a_fault_in_one_is_none() -> None:
    assert str(find_bad_input(loaded(Killed()))).startswith("num_workers: a loading process was ended from outside")
    assert find_bad_input(loaded(Wrong())) is None


def test_faults_of_the_program_and_of_the_input_stay_what_they_are() -> None:
    for error in (RuntimeError("x"), FileNotFoundError(errno.ENOENT, "", "/x"), KeyError("x")):
        assert find_bad_input(wrapped(error)) is None
    bad = BadInput("a: b. c.")
    assert find_bad_input(wrapped(bad)) is bad


def test_curves_that_can_not_be_drawn_end_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(history, "draw_curves", fail)
    engine = Engine(lambda engine, batch: None)
    History(tmp_path).attach(engine)
    with caplog.at_level(logging.WARNING):
        engine.run([0], max_epochs=1)
    assert "the curves can't be drawn ([Errno 28] No space left on device). All else goes on." in caplog.text
    assert (tmp_path / "history.json").is_file()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (69, "69 bytes"),
        (999.96, "1.0 kB"),
        (1234, "1.2 kB"),
        (999_960, "1.0 MB"),
        (4.2e7, "42.0 MB"),
        (21.6e9, "21.6 GB"),
        (3.1e12, "3.1 TB"),
        (3.1e16, "31000.0 TB"),
    ],
)
def test_a_size_has_the_unit_that_suits_it(size: float, text: str) -> None:
    assert size_text(size) == text
