"""The benchmarks that the documentation names run, in the size of a test: `test_docs.py` runs the other commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_docs import BENCHMARKS, adapted, clone, require_success

__all__ = ["clone"]  # a fixture
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("command", [command for _, command in BENCHMARKS])
def test_a_documented_benchmark_runs(clone: Path, command: str) -> None:
    runnable = adapted(command)
    assert runnable is not None
    require_success(runnable, clone)
