"""Damaged files are read rightly or refused in one line: a few of each kind; the benchmark makes thousands."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("pydicom", reason="DICOM needs pip install '.[dicom]'")
PROGRAM = ROOT / "benchmarks" / "damaged_files.py"
COPIES = {"nifti": 40, "dicom": 20, "json": 40, "weights": 10, "store": 10, "arrow": 10, "plan": 15}


@pytest.fixture(scope="module")
def program() -> Iterator[Any]:
    """The benchmark, as a module."""
    spec = importlib.util.spec_from_file_location("damaged_files", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["damaged_files"] = module  # where dataclasses look
    before, path = logging.root.manager.disable, list(sys.path)
    spec.loader.exec_module(module)
    yield module
    logging.disable(before)
    sys.path[:] = path
    del sys.modules["damaged_files"]


@pytest.mark.parametrize("kind", COPIES)
def test_a_damaged_copy_is_read_rightly_or_refused(program: Any, tmp_path: Path, kind: str) -> None:
    made = program.make(kind, tmp_path / kind)
    outcomes = [program.outcome(made, kind, number, seed=1) for number in range(COPIES[kind])]
    assert [one.line() for one in outcomes if one.outcome not in program.FINE] == []
    assert any(one.outcome == ("read" if kind == "store" else "refused") for one in outcomes)


def test_what_is_believed_or_raised_is_told(program: Any) -> None:
    def fail() -> list[str]:
        raise KeyError("x")

    assert program.judged(fail)[0] == "traceback"
    assert program.judged(lambda: ["another affine"]) == ("wrong", "another affine")
    assert program.judged(list) == ("read", "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by Linux's means")
def test_a_tenth_of_the_benchmark_finds_no_fault() -> None:
    command = [sys.executable, str(PROGRAM), "--share", "0.1", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-len(COPIES) :][0].startswith("nifti")
