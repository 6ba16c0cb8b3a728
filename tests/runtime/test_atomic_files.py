from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BUNDLE

from cyclic_committee.scripts.runtime.atomic_files import (
    DAY_S,
    HOST,
    put_in_place,
    remove_folder,
    remove_unfinished,
    require_writable,
    temporary_folder,
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


def test_temporary_folders_of_killed_processes_are_removed_by_whoever_needs_one_next(tmp_path: Path) -> None:
    code = f"import os, sys\nfrom pathlib import Path\nfrom {temporary_folder.__module__} import temporary_folder\n"
    code += "folder = temporary_folder(Path(sys.argv[1]))\nPath(folder.name, 'patient.nii').touch()\n"
    code += "os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    [left] = tmp_path.iterdir()
    with temporary_folder(tmp_path) as mine, temporary_folder(tmp_path) as other:
        assert {str(path) for path in tmp_path.iterdir()} == {mine, other}
    assert not left.exists()
    assert not any(tmp_path.iterdir())


def test_temporary_files_lie_where_they_are_removed_after_a_kill() -> None:
    makers = re.compile(r"(TemporaryDirectory|mkdtemp|mkstemp|TemporaryFile)\(")  # without the name of a process
    found = [path.name for path in BUNDLE.rglob("*.py") if makers.search(path.read_text(encoding="utf-8"))]
    assert found == ["atomic_files.py"]


def test_what_is_somebody_elses_stays_and_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".unfinished-{HOST}-{ended.pid}-x").touch()

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "unlink", refuse)
    remove_unfinished(tmp_path)


def test_a_folder_is_removed_as_a_whole_even_if_the_process_is_killed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "fold" / name).mkdir(parents=True)
    code = f"import os, sys\nfrom pathlib import Path\nfrom {remove_folder.__module__} import remove_folder\n"
    code += "sys.addaudithook(lambda event, _: os.kill(os.getpid(), 9) if event == 'os.rmdir' else None)\n"
    code += "remove_folder(Path(sys.argv[1]))"
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "fold")], check=False)
    assert ended.returncode == -9
    assert not (tmp_path / "fold").exists()
    remove_folder(tmp_path / "fold")  # as the next one does: it isn't there
    remove_unfinished(tmp_path)
    assert not any(tmp_path.iterdir())


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
