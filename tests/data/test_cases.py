from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cyclic_committee.scripts.data.cases import find_cases, find_images, require_cases
from cyclic_committee.scripts.runtime.errors import BadInput


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 3), np.int16), np.eye(4)), path)
    return folder


def describe(folder: Path, content: dict[str, Any], name: str = "dataset.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def message_of(cases: list[dict[str, Any]]) -> str:
    assert cases == []
    with pytest.raises(BadInput) as caught:
        require_cases(cases)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
        ([], 0, "holds no data set. Expected one of: TrainingImg/NAME_0000.nii.gz and TrainingMask/NAME.nii.gz"),
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
    assert message in message_of(find_cases(str(tmp_path), part="training", fold=fold))


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


def test_a_data_set_of_several_channels_and_its_names_are_found(tmp_path: Path) -> None:
    for name in "ab":
        make(tmp_path, f"imagesTr/{name}_0000.nii.gz", f"imagesTr/{name}_0001.nii.gz", f"labelsTr/{name}.nii.gz")
    describe(tmp_path, {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"background": 0, "zone": 1}})
    image = [[str(tmp_path / "imagesTr" / f"{name}_000{channel}.nii.gz") for channel in (0, 1)] for name in "ab"]
    labels = [str(tmp_path / "labelsTr" / f"{name}.nii.gz") for name in "ab"]
    expected = [{"image": files, "label": label} for files, label in zip(image, labels, strict=True)]
    for cases in (
        find_cases(str(tmp_path), part="training", fold="all"),
        find_cases(str(tmp_path), part="training", fold="all", layout="nnunet"),
        find_images(str(tmp_path), with_labels=True),
    ):
        assert cases == expected
        assert (cases.labels, cases.channel_names) == ({1: "zone"}, ("T2", "ADC"))
        require_cases(cases, labels={1: "zone"})
    for images in (find_images(str(tmp_path)), find_images(str(tmp_path / "imagesTr"))):
        assert images == [{"image": files} for files in image]
        assert (images.labels, images.channel_names) == ({}, ())


def test_a_workers_copy_of_the_cases_is_whole(tmp_path: Path) -> None:
    make(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    describe(tmp_path, {"labels": {"liver": 1}})
    cases = find_cases(str(tmp_path), part="training", fold="all")
    copy = pickle.loads(pickle.dumps(cases))
    assert copy == cases
    assert (copy.problem, copy.labels, copy.channel_names) == ("", {1: "liver"}, ())


def test_a_data_lists_own_folds_are_taken(tmp_path: Path) -> None:
    training = []
    for number, fold in enumerate((0, 0, 2, 2, 2)):
        make(tmp_path / "data", f"{number}.nii.gz", f"{number}_seg.nii.gz")
        training.append({"image": f"{number}.nii.gz", "label": f"{number}_seg.nii.gz", "fold": fold})
    path = str(describe(tmp_path, {"training": training}, "list.json"))
    root = str(tmp_path / "data")
    for fold, validating in ((0, "01"), (2, "234")):
        parts = {part: find_cases(path, part=part, fold=fold, data_root=root) for part in ("training", "validation")}
        names = {part: "".join(Path(case["image"]).name[0] for case in cases) for part, cases in parts.items()}
        assert names == {"training": "01234".translate({ord(x): None for x in validating}), "validation": validating}
    assert len(find_cases(path, part="training", fold="all", data_root=root)) == 5
    message = message_of(find_cases(path, part="training", fold=1, data_root=root))
    assert message == "fold must be 0, 2 (the data list's), all or none, got 1."
    assert "list.json names it" in message_of(find_cases(path, part="training", fold=0))
    describe(tmp_path, {"training": training[:2]}, "list.json")
    message = message_of(find_cases(path, part="training", fold=0, data_root=root))
    assert message.endswith("list.json: all cases are of fold 0, none is left to train on. Set --fold all.")


def test_one_problem_is_told_and_how_many_more_there_are(tmp_path: Path) -> None:
    make(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "images/c.nii.gz", "labels/a.nii.gz")
    more = " Add it, or take the image out. And 1 more: `cyclic-committee check DATASET` lists them."
    for cases in (find_cases(str(tmp_path), part="training"), find_images(str(tmp_path), with_labels=True)):
        message = message_of(cases)
        assert message.startswith(f"{tmp_path}/images/b.nii.gz: has no label map in ")
        assert message.endswith(more)
    (tmp_path / "images" / "c.nii.gz").unlink()
    assert message_of(find_cases(str(tmp_path), part="training")).endswith("Add it, or take the image out.")


def test_a_problem_that_is_put_right_stops_nothing(tmp_path: Path) -> None:
    make(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz")
    training = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    describe(tmp_path, {"modality": {"0": "CT"}, "training": training})
    cases = find_cases(str(tmp_path), part="training", fold="all")
    assert [Path(case["label"]).name for case in cases] == ["a.nii.gz"]


@pytest.mark.parametrize(
    ("files", "items"),
    [
        (["a_0000", "b_0000"], [["a_0000"], ["b_0000"]]),
        (["a_0000", "a_0001", "b_0000", "b_0001"], [["a_0000", "a_0001"], ["b_0000", "b_0001"]]),
        (["ct_0001", "ct_0002"], [["ct_0001"], ["ct_0002"]]),  # numbers of cases: no channel begins at 1
        (["a", "b_0000", "b_0001"], [["a"], ["b_0000"], ["b_0001"]]),
    ],
)
def test_channels_are_put_together(tmp_path: Path, files: list[str], items: list[list[str]]) -> None:
    make(tmp_path, *(f"{file}.nii.gz" for file in files))
    paths = [[str(tmp_path / f"{file}.nii.gz") for file in item] for item in items]
    assert find_images(str(tmp_path)) == [{"image": item if len(item) > 1 else item[0]} for item in paths]


def test_numbered_images_of_one_channel_are_single_ones(tmp_path: Path) -> None:
    make(tmp_path, *(f"{folder}/ct_000{number}.nii.gz" for folder in ("images", "labels") for number in range(3)))
    assert [case["image"] for case in find_images(str(tmp_path / "images"))] == [
        [str(tmp_path / "images" / f"ct_000{number}.nii.gz") for number in range(3)]
    ]
    single = [{"image": str(tmp_path / "images" / f"ct_000{number}.nii.gz")} for number in range(3)]
    assert find_images(str(tmp_path / "images"), channels=1) == single
    assert find_images(str(tmp_path)) == single  # the label maps' names show it


def test_an_image_without_all_channels_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    message = message_of(find_images(str(tmp_path)))
    assert message.startswith(f"{tmp_path}/b_0001.nii.gz: is missing: the data set has 2 channels")


def test_images_come_from_a_data_list(tmp_path: Path) -> None:
    make(tmp_path, "a.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", "c.nii.gz", "seg.nii.gz")
    a, b0, b1, c = (str(tmp_path / f"{name}.nii.gz") for name in ("a", "b_0000", "b_0001", "c"))
    lists = {
        "training": [{"image": "a.nii.gz", "label": "seg.nii.gz"}],
        "test": ["./c.nii.gz"],
        "testing": [{"image": ["b_0000.nii.gz", "b_0001.nii.gz"]}],
    }
    for expected in ([b0, b1], c, a):
        path = describe(tmp_path, lists)
        assert find_images(str(path)) == [{"image": expected}]
        if "training" in lists:
            assert find_images(str(tmp_path), layout="datalist") == [{"image": expected}]
        lists.pop("testing" if "testing" in lists else "test", None)
    describe(tmp_path / "lists", lists)
    found = find_images(str(tmp_path / "lists" / "dataset.json"), data_root=str(tmp_path))
    assert found == [{"image": a}]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"training": []}, "list.json: lists no images. Name them under testing or training."),
        ({"testing": [{"label": "a.nii.gz"}]}, "list.json: testing[0] names no image. Correct the entry."),
        ({"testing": [3]}, "list.json: testing[0] is no object with image and label. Correct the entry."),
        ({"testing": ["gone.nii.gz"]}, "gone.nii.gz: no such file. Check the path."),
    ],
)
def test_a_data_list_without_images_is_named(tmp_path: Path, lists: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        require_cases(find_images(str(describe(tmp_path, lists, "list.json"))))
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_a_layout_that_is_unknown_or_does_not_fit_is_named(tmp_path: Path) -> None:
    make(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    for cases in (find_cases(str(tmp_path), part="training", layout="kits"), find_images(str(tmp_path), layout="kits")):
        assert message_of(cases).startswith("layout: kits is unknown. Choose auto, flare21")
    message = message_of(find_images(str(tmp_path), layout="flare21", with_labels=True))
    assert message.startswith(f"{tmp_path}: no data set in the layout flare21: the folder TrainingImg is missing.")
    assert "TrainingImg: no such file or folder" in message_of(find_images(str(tmp_path), layout="flare21"))
    assert "holds 0 data lists, expected one" in message_of(find_images(str(tmp_path), layout="datalist"))


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


def test_channels_on_different_grids_are_named_before_the_work_starts(tmp_path: Path) -> None:
    make(tmp_path, "images/a_0000.nii.gz", "images/a_0001.nii.gz", "labels/a.nii.gz")
    cases = find_cases(str(tmp_path), part="training", fold="all")
    require_cases(cases)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 9), np.int16), np.eye(4)), tmp_path / "images" / "a_0001.nii.gz")
    with pytest.raises(BadInput, match=r"images/a_0001\.nii\.gz: has the shape \(4, 4, 9\)"):
        require_cases(cases)


def test_the_voxels_of_every_channel_are_checked(tmp_path: Path) -> None:
    make(tmp_path, "images/a_0000.nii.gz", "images/a_0001.nii.gz", "labels/a.nii.gz")
    cases = find_cases(str(tmp_path), part="training", fold="all")
    voxels = np.full((4, 4, 3), np.nan, np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "images" / "a_0001.nii.gz")
    require_cases(cases)
    with pytest.raises(BadInput, match=r"images/a_0001\.nii\.gz: 48 voxels are NaN or infinite"):
        require_cases(cases, labels={1: "liver"})


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (None, "abcd"),
        ([], "abcd"),
        (["a", "c"], "bd"),
        (["a", "e"], "bcd"),  # e validates, and goes on doing so
        ("a  # the liver is missing\n\n# all else is well\nb\n", "cd"),
        ("case,rank,distrust\nb,1,9.5\n", "acd"),
    ],
)
def test_excluded_cases_are_validated_but_not_trained_on(
    tmp_path: Path, exclude: str | list[str] | None, left: str
) -> None:
    make(tmp_path, *(f"{folder}/{name}.nii.gz" for folder in ("images", "labels") for name in "abcde"))
    if isinstance(exclude, str):
        (tmp_path / "suspects.txt").write_text(exclude)
        exclude = str(tmp_path / "suspects.txt")
    parts = {
        part: find_cases(str(tmp_path), part=part, folds=5, fold=1, exclude=exclude)
        for part in ("training", "validation")
    }
    names = {part: "".join(Path(case["label"]).name[0] for case in cases) for part, cases in parts.items()}
    assert names == {"training": left, "validation": "e"}


def test_cases_of_the_same_name_are_excluded_by_the_audits_names(tmp_path: Path) -> None:
    training = []
    for folder in ("x", "y"):
        make(tmp_path, f"{folder}/ct.nii.gz", f"{folder}/seg.nii.gz")
        training.append({"image": f"{folder}/ct.nii.gz", "label": f"{folder}/seg.nii.gz"})
    path = str(describe(tmp_path, {"training": training}, "list.json"))
    cases = find_cases(path, part="training", fold="none", exclude=["y_seg"])
    assert [case["label"] for case in cases] == [str(tmp_path / "x" / "seg.nii.gz")]


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (["a", "f"], "exclude: f is no case of the data set. Correct the name or take it out."),
        (["a", "b"], "exclude: no case is left to train on. Name fewer cases."),
        ("gone.txt", "exclude: gone.txt can't be read ([Errno 2] No such file or directory: 'gone.txt'). Give a file"),
        (3, "exclude: must be names of cases or a file, got 3. Give it as [name, name]."),
    ],
)
def test_an_exclusion_that_can_not_be_is_named(tmp_path: Path, exclude: Any, message: str) -> None:
    make(tmp_path, *(f"{folder}/{name}.nii.gz" for folder in ("images", "labels") for name in "ab"))
    assert message_of(find_cases(str(tmp_path), part="training", fold="none", exclude=exclude)).startswith(message)
