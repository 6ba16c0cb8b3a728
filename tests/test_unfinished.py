from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cyclic_committee.scripts.unfinished import remove_unfinished, unfinished_path


def test_what_dead_processes_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = unfinished_path(tmp_path / "case.json")
    mine.touch()
    (tmp_path / f".unfinished-{ended.pid}-case.json").touch()
    (tmp_path / f".unfinished-{ended.pid}-folder" / "inner").mkdir(parents=True)
    kept = [tmp_path / f".unfinished-{os.getppid()}-x", tmp_path / ".unfinished-note", tmp_path / "case.json"]
    for path in kept:
        path.touch()
    remove_unfinished(tmp_path)
    assert set(tmp_path.iterdir()) == {mine, *kept}
