from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from cyclic_committee.scripts.runtime.atomic_files import DAY_S, HOST, remove_unfinished, unfinished_path


def test_what_dead_processes_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = unfinished_path(tmp_path / "case.json")
    (tmp_path / f".unfinished-{HOST}-{ended.pid}-case.json").touch()
    (tmp_path / f".unfinished-{HOST}-{ended.pid}-folder" / "inner").mkdir(parents=True)
    elsewhere, abandoned = (tmp_path / f".unfinished-{'0' * 8}-{ended.pid}-{name}" for name in "xy")
    kept = [mine, elsewhere, tmp_path / f".unfinished-{HOST}-{os.getppid()}-x", tmp_path / ".unfinished-note"]
    for path in (*kept, abandoned, tmp_path / "case.json"):
        path.touch()
    os.utime(abandoned, (0, time.time() - DAY_S - 1))
    remove_unfinished(tmp_path)
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / "case.json"}
