from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cyclic_committee.scripts.runtime.atomic_files import (
    DAY_S,
    HOST,
    put_in_place,
    remove_unfinished,
    require_writable,
    unfinished_path,
    write_whole,
)
from cyclic_committee.scripts.runtime.errors import BadInput


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


def test_what_a_killed_process_left_is_removed_by_whoever_writes_there_next(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".unfinished-{HOST}-{ended.pid}-patient.nii.gz"
    left.touch()
    write_whole(tmp_path / "other.csv", "a")
    assert [path.name for path in tmp_path.iterdir()] == ["other.csv"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_renamed_into_place_is_on_the_disk_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(old: Path, new: Path) -> None:
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    unfinished = unfinished_path(tmp_path / "x")
    if kind == "folder":
        (unfinished / "inner").mkdir(parents=True)
        (unfinished / "inner" / "a").write_text("a")
    else:
        unfinished.write_text("a")
    put_in_place(unfinished, tmp_path / "x")
    assert done == [unfinished.name if kind == "file" else "a", "rename", tmp_path.name]


def test_what_can_not_be_written_is_told_by_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    require_writable(model_path=str(tmp_path / "new" / "model.pt"))
    with pytest.raises(BadInput, match=r"file/model\.pt: can't be written \(.*\)\. Give another model_path\."):
        require_writable(model_path=str(tmp_path / "file" / "model.pt"))
    with pytest.raises(BadInput, match=r"new: can't be written \(is a folder\)\. Give another output_dir\."):
        require_writable(output_dir=str(tmp_path / "new"))

    def refuse(**place: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(BadInput, match="Read-only file system"):
        require_writable(model_path=str(tmp_path / "model.pt"))
