from __future__ import annotations

import os
from pathlib import Path

import pytest

from cyclic_committee.scripts.data.folders import files_below


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def names_below(folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in files_below(folder).files]


def test_files_of_linked_folders_have_the_links_name(tmp_path: Path) -> None:
    make(tmp_path, "in/a/1", "store/deep/2", "store/3")
    (tmp_path / "in" / "b").symlink_to("../store")
    assert names_below(tmp_path / "in") == ["a/1", "b/3", "b/deep/2"]
    assert files_below(tmp_path / "in").notes == []


@pytest.mark.parametrize("target", [".", "..", "../..", "b/c"])
def test_links_in_a_circle_end(tmp_path: Path, target: str) -> None:
    make(tmp_path, "in/a/1", "in/a/b/c/2")
    (tmp_path / "in" / "a" / "circle").symlink_to(target)
    found = files_below(tmp_path / "in")
    assert sorted(file.name for file in found.files) == ["1", "2"]
    [note] = found.notes
    assert "which is looked at already: passed over." in note


def test_a_folder_that_is_there_and_linked_keeps_its_own_name(tmp_path: Path) -> None:
    make(tmp_path, "z/1")
    (tmp_path / "a").symlink_to("z")
    found = files_below(tmp_path)
    assert found.files == [tmp_path / "z" / "1"]
    assert found.notes == [f"{tmp_path / 'a'}: leads to {tmp_path / 'z'}, which is looked at already: passed over."]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "locked/1", "open/2")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = files_below(tmp_path)
    assert found.files == [tmp_path / "open" / "2"]
    assert found.faults == [
        f"{tmp_path / 'locked'}: can't be read (Permission denied). Give yourself access, or move it."
    ]


def test_a_file_is_itself(tmp_path: Path) -> None:
    make(tmp_path, "1")
    assert files_below(tmp_path / "1").files == [tmp_path / "1"]
