from __future__ import annotations

import pytest

fastapi = pytest.importorskip("fastapi", reason="fastapi isn't installed: pip install fastapi")

from cyclic_committee.monai_label.guard.names import (  # noqa: E402
    require_ending,
    require_image_id,
    require_tag,
    require_uid,
)


@pytest.mark.parametrize("name", ["ct_0001", "a scan", "Größe", "1.2.840", "x..y"])
def test_a_files_name_is_an_image_id(name: str) -> None:
    assert require_image_id(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/a", "a\\b", "a\x00", "a\n", "x" * 201])
def test_a_path_is_none(name: str) -> None:
    with pytest.raises(fastapi.HTTPException) as error:
        require_image_id(name)
    assert error.value.status_code == 400


@pytest.mark.parametrize("uid", ["1.2.840.10008", "2.25.1"])
def test_a_uid_is_one(uid: str) -> None:
    assert require_uid(uid) == uid


@pytest.mark.parametrize("uid", ["", "..", "1..2", "1.2/3", "1.2*", "1.2\n", "1" * 65])
def test_what_is_no_uid_is_refused(uid: str) -> None:
    with pytest.raises(fastapi.HTTPException):
        require_uid(uid)


@pytest.mark.parametrize("tag", ["final", "reader-2_b"])
def test_a_word_is_a_tag(tag: str) -> None:
    assert require_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", ".", "a.b", "a/b", "a b", "final\n"])
def test_what_is_no_word_is_no_tag(tag: str) -> None:
    with pytest.raises(fastapi.HTTPException):
        require_tag(tag)


@pytest.mark.parametrize(("file", "ending"), [("a.nii", ".nii"), ("b.c.nii.gz", ".nii.gz"), ("/x/y.nii.gz", ".nii.gz")])
def test_nifti_files_are_taken(file: str, ending: str) -> None:
    assert require_ending(file) == ending


@pytest.mark.parametrize("file", ["a.nrrd", "a.nii.gz.sh", "nii", "", "a.gz"])
def test_other_files_are_not(file: str) -> None:
    with pytest.raises(fastapi.HTTPException):
        require_ending(file)
