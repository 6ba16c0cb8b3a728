from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cyclic_committee.scripts.cases import find_cases, find_images, require_cases
from cyclic_committee.scripts.errors import BadInput


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 3), np.int16), np.eye(4)), path)
    return folder


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("TrainingImg/train_{}_0000.nii.gz", "TrainingMask/train_{}.nii.gz"),
        ("images/case {}.nii.gz", "labels/case {}.nii.gz"),
        ("images/{}.nii", "labels/{}.nii.gz"),
    ],
)
def test_images_find_their_labels(tmp_path: Path, image: str, label: str) -> None:
    for number in range(3):
        make(tmp_path, image.format(number), label.format(number))
    make(tmp_path, f"{Path(image).parent}/.hidden.nii.gz")
    cases = find_cases(str(tmp_path), part="training", fold="all")
    assert cases == [
        {"image": str(tmp_path / image.format(n)), "label": str(tmp_path / label.format(n))} for n in range(3)
    ]
    require_cases(cases)


def test_folds_are_nnunets(tmp_path: Path) -> None:
    for number in range(10):
        make(tmp_path, f"images/{number}.nii.gz", f"labels/{number}.nii.gz")
    validation = []
    for fold in range(5):
        parts = {part: find_cases(str(tmp_path), part=part, fold=fold) for part in ("training", "validation")}
        names = {part: [Path(case["image"]).name[0] for case in cases] for part, cases in parts.items()}
        assert len(names["training"]) == 8
        assert not set(names["training"]) & set(names["validation"])
        validation += names["validation"]
        if fold == 0:
            assert names["validation"] == ["0", "7"]  # KFold(5, shuffle=True, random_state=12345), as nnU-Net
    assert sorted(validation) == [str(n) for n in range(10)]


def test_without_folds_all_cases_train(tmp_path: Path) -> None:
    make(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    assert len(find_cases(str(tmp_path), part="training", fold="all")) == 1
    assert len(find_cases(str(tmp_path), part="validation", fold="all")) == 1
    assert len(find_cases(str(tmp_path), part="training", fold="none")) == 1
    assert len(find_cases(str(tmp_path), part="validation", fold="none")) == 0


@pytest.mark.parametrize(
    ("files", "fold", "message"),
    [
        ([], 0, "holds no data set. Expected the folders TrainingImg/ and TrainingMask/ or images/ and labels/"),
        (["images/a.nii.gz"], 0, "labels: no such folder"),
        (["images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz"], 0, "b.nii.gz: has no label map in"),
        (["images/a.nii.gz", "labels/a.nii.gz", "labels/c.nii.gz"], 0, "c.nii.gz: has no image in"),
        (["images/a.nii.gz", "labels/a.nii.gz"], 0, "1 cases are too few for 5 folds. Set --fold all"),
        (["images/a.nii.gz", "labels/a.nii.gz"], 5, "fold must be 0 to 4, all or none, got 5"),
        (["images/a.nii.gz", "labels/a.nii.gz"], "every", "fold must be 0 to 4, all or none, got every"),
    ],
)
def test_finding_nothing_is_told_when_the_work_begins(
    tmp_path: Path, files: list[str], fold: int | str, message: str
) -> None:
    make(tmp_path, *files)
    cases = find_cases(str(tmp_path), part="training", fold=fold)
    assert cases == []
    with pytest.raises(BadInput) as caught:
        require_cases(cases)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="gone: no such folder"):
        require_cases(find_cases(str(tmp_path / "gone"), part="training"))
    with pytest.raises(BadInput, match="gone: no such file or folder"):
        require_cases(find_images(str(tmp_path / "gone")))


def test_images_come_from_a_file_a_folder_or_a_data_set(tmp_path: Path) -> None:
    make(tmp_path, "images/a.nii.gz", "images/b.nii", "labels/a.nii.gz", "labels/b.nii.gz")
    a, b = tmp_path / "images" / "a.nii.gz", tmp_path / "images" / "b.nii"
    assert find_images(str(a)) == [{"image": str(a)}]
    for folder in (tmp_path / "images", tmp_path):
        assert find_images(str(folder)) == [{"image": str(a)}, {"image": str(b)}]
    assert [set(case) for case in find_images(str(tmp_path), with_labels=True)] == [{"image", "label"}] * 2


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty: holds no \.nii or \.nii\.gz files"):
        require_cases(find_images(str(tmp_path / "empty")))


def test_an_empty_list_is_refused_unless_it_may_be_empty() -> None:
    with pytest.raises(BadInput, match="give at least one case"):
        require_cases([])
    require_cases([], may_be_empty=True)


def test_headers_are_checked_before_the_work_starts(tmp_path: Path) -> None:
    make(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 9), np.uint8), np.eye(4)), tmp_path / "labels" / "a.nii.gz")
    with pytest.raises(BadInput, match=r"labels/a\.nii\.gz: has the shape \(4, 4, 9\)"):
        require_cases(find_cases(str(tmp_path), part="training", fold="all"))
