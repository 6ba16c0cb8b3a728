from __future__ import annotations

import os
from pathlib import Path

import pytest

from cyclic_committee.scripts.data.case_files import list_volumes
from cyclic_committee.scripts.data.folders import files_below, other_format
from cyclic_committee.scripts.data.volumes import open_volume
from cyclic_committee.scripts.runtime.errors import BadInput


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


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("scan.nrrd", "is NRRD, which isn't read. Convert it to .nii.gz first, with 3D Slicer or SimpleITK."),
        ("SCAN.NHDR", "is NRRD"),
        ("scan.mha", "is MetaImage"),
        ("brain.mgz", "is FreeSurfer"),
        ("study.zip", "is packed. Unpack it, and give the folder."),
        ("study.tar.gz", "is packed"),
    ],
)
def test_what_is_not_read_is_named_with_what_to_do(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_text("")
    assert other_format(tmp_path / name).startswith(f"{tmp_path / name}: {what}")
    with pytest.raises(BadInput) as caught:
        open_volume(tmp_path / name)
    assert what in str(caught.value)
    with pytest.raises(BadInput) as caught:
        list_volumes(tmp_path)
    assert what in str(caught.value)
    assert str(caught.value).endswith(f"{tmp_path} holds 1 of such files, and no .nii or .nii.gz.")


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.raw", "labels.seg.nrrd", "._scan.nrrd", "notes.txt"])
def test_all_else_is_left_to_others(name: str) -> None:
    assert other_format(Path(name)) == ""
