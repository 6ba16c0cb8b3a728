"""Commands that are killed at a file event and started again end as undisturbed; the benchmark kills more often."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

COMMANDS = ("prepare", "predict", "release")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="process groups are killed by Linux's means")
def test_commands_that_are_killed_and_started_again_give_the_same_and_leave_nothing(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    words = ["--kills", "3", "--seed", "2", "--commands", ",".join(COMMANDS), "--results", str(results)]
    benchmark = [sys.executable, str(ROOT / "benchmarks" / "killed_commands.py"), *words]
    done = subprocess.run(benchmark, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = [json.loads(line) for line in results.read_text().splitlines()]
    assert [one["command"] for one in outcomes] == [*COMMANDS]
    again = subprocess.run(benchmark, capture_output=True, text=True, check=False)  # all of it is done
    assert again.stdout.splitlines()[1:] == done.stdout.splitlines()[-len(COMMANDS) :]
