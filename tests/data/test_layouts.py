from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cyclic_committee.scripts.data.case_files import Problem
from cyclic_committee.scripts.data.layouts import LAYOUTS, DataSet, read_data_set
from cyclic_committee.scripts.runtime.errors import BadInput

V1 = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "zone", "2": "tumour"}}
V2 = {
    "channel_names": {"0": "T2", "1": "ADC"},
    "labels": {"background": 0, "zone": 1, "tumour": 2},
    "file_ending": ".nii.gz",
}
ZONES = {1: "zone", 2: "tumour"}
CT = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
FLARE = ["TrainingImg/{}_0000.nii.gz", "TrainingMask/{}.nii.gz"]
NNUNET = ["imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"]
NNUNET_2 = ["imagesTr/{}_0000.nii.gz", "imagesTr/{}_0001.nii.gz", "labelsTr/{}.nii.gz"]
DECATHLON = ["imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz"]
FOLDERS = ["images/{}.nii.gz", "labels/{}.nii.gz"]
FOLDERS_2 = ["images/{}_0000.nii.gz", "images/{}_0001.nii.gz", "labels/{}.nii.gz"]


def touch(root: Path, *files: str) -> Path:
    """Make empty files: no layout needs to look into them."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def fill(root: Path, patterns: list[str], names: str = "a b c") -> Path:
    return touch(root, *(pattern.format(name) for name in names.split() for pattern in patterns))


def describe(root: Path, content: Any, name: str = "dataset.json") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return root / name


def listing(patterns: list[str], names: str = "a b c", **more: Any) -> list[dict[str, Any]]:
    return [{"image": patterns[0].format(name), "label": patterns[-1].format(name), **more} for name in names.split()]


def names_of(data_set: DataSet) -> list[str]:
    return [case.name for case in data_set.cases]


def files_of(data_set: DataSet, root: Path) -> list[list[str]]:
    return [[str(file.relative_to(root)) for file in (*case.image, case.label)] for case in data_set.cases]


def told(data_set: DataSet, root: Path) -> list[str]:
    return [str(problem).replace(f"{root}/", "") for problem in data_set.problems]


ARRANGED: dict[str, tuple[str, list[str], Any, tuple[str, ...], dict[int, str]]] = {
    "FLARE21": ("flare21", FLARE, None, ("CT",), {}),
    "FLARE21 without channel numbers": ("flare21", ["TrainingImg/{}.nii.gz", FLARE[1]], None, ("CT",), {}),
    "nnU-Net 1 with a list": ("nnunet", NNUNET_2, V1 | {"training": listing(DECATHLON)}, ("T2", "ADC"), ZONES),
    "nnU-Net 1 without a list": ("nnunet", NNUNET_2, V1, ("T2", "ADC"), ZONES),
    "nnU-Net 2": ("nnunet", NNUNET_2, V2, ("T2", "ADC"), ZONES),
    "nnU-Net 2, unzipped": (
        "nnunet",
        ["imagesTr/{}_0000.nii", "labelsTr/{}.nii"],
        CT | {"file_ending": ".nii"},
        ("CT",),
        {1: "liver"},
    ),
    "Decathlon": ("decathlon", DECATHLON, V1 | {"training": listing(DECATHLON)}, ("T2", "ADC"), ZONES),
    "data list": (
        "datalist",
        ["{}/ct.nii.gz", "{}/seg.nii.gz"],
        {"training": listing(["{}/ct.nii.gz", "{}/seg.nii.gz"])},
        (),
        {},
    ),
    "folders": ("folders", FOLDERS, None, (), {}),
    "folders with channels": ("folders", FOLDERS_2, V2, ("T2", "ADC"), ZONES),
    "folders of 4D files": ("folders", FOLDERS, V2, ("T2", "ADC"), ZONES),
    "folders with several channels that nothing names": ("folders", FOLDERS_2, None, (), {}),
}


@pytest.mark.parametrize("named", [False, True], ids=["detected", "named"])
@pytest.mark.parametrize("arranged", ARRANGED)
def test_cases_channels_and_labels_are_found(tmp_path: Path, arranged: str, named: bool) -> None:
    layout, patterns, description, channels, labels = ARRANGED[arranged]
    fill(tmp_path, patterns)
    touch(tmp_path, *(str(Path(pattern).with_name("._a.nii.gz")) for pattern in patterns if "/{}" in pattern))
    if description is not None:
        describe(tmp_path, description)
        touch(tmp_path, "._dataset.json")
    found = read_data_set(tmp_path, layout=layout if named else "auto")
    assert found.layout == layout
    assert found.problems == ()
    assert files_of(found, tmp_path) == [[pattern.format(name) for pattern in patterns] for name in "abc"]
    assert names_of(found) == (["a_ct", "b_ct", "c_ct"] if layout == "datalist" else ["a", "b", "c"])
    assert (found.channel_names, found.labels) == (channels, labels)
    assert {case.fold for case in found.cases} == {None}


def test_layouts_are_tried_in_their_order(tmp_path: Path) -> None:
    assert LAYOUTS == ("flare21", "nnunet", "decathlon", "datalist", "folders")
    fill(tmp_path, FOLDERS)
    assert read_data_set(tmp_path).layout == "folders"
    describe(tmp_path, {"training": listing(FOLDERS)}, "mine.json")
    assert read_data_set(tmp_path).layout == "datalist"
    fill(tmp_path, NNUNET)
    describe(tmp_path, CT)
    assert read_data_set(tmp_path).layout == "nnunet"
    fill(tmp_path, FLARE)
    assert read_data_set(tmp_path).layout == "flare21"
    assert read_data_set(tmp_path, layout="folders").layout == "folders"


@pytest.mark.parametrize(
    ("patterns", "description", "layout"),
    [
        (DECATHLON, {"modality": {"0": "CT"}, "training": listing(DECATHLON, "ct_0000 ct_0001")}, "decathlon"),
        (FOLDERS, None, "folders"),
        (["TrainingImg/{}.nii.gz", FLARE[1]], None, "flare21"),
    ],
)
def test_numbers_that_the_label_maps_bear_too_count_cases(
    tmp_path: Path, patterns: list[str], description: Any, layout: str
) -> None:
    fill(tmp_path, patterns, "ct_0000 ct_0001")
    if description:
        describe(tmp_path, description)
    found = read_data_set(tmp_path)
    assert found.layout == layout
    assert found.problems == ()
    assert names_of(found) == ["ct_0000", "ct_0001"]


# each: how the good cases a and c lie, what else is done, the problems with their remedies
BROKEN: dict[str, tuple[list[str], Any, Callable[[Path], Any], list[str]]] = {
    "no label map": (
        FLARE,
        None,
        lambda root: touch(root, "TrainingImg/b_0000.nii.gz"),
        ["TrainingImg/b_0000.nii.gz: has no label map in TrainingMask. Add it, or take the image out."],
    ),
    "no label maps of numbered cases": (
        FOLDERS,
        None,
        lambda root: touch(root, "images/ct_0001.nii.gz", "images/ct_0002.nii.gz"),
        [
            "images/ct_0001.nii.gz: has no label map in labels. Add it, or take the image out.",
            "images/ct_0002.nii.gz: has no label map in labels. Add it, or take the image out.",
        ],
    ),
    "no image": (
        FOLDERS,
        None,
        lambda root: touch(root, "labels/b.nii.gz"),
        ["labels/b.nii.gz: has no image in images. Add it, or take the label map out."],
    ),
    "an image twice": (
        FOLDERS,
        None,
        lambda root: touch(root, "images/c.nii"),
        ["images/c.nii.gz: is of the same case as c.nii. Take one of them out."],
    ),
    "an image with and without channel number": (
        FOLDERS,
        None,
        lambda root: touch(root, "images/b.nii.gz", "images/b_0000.nii.gz", "labels/b.nii.gz"),
        ["images/b_0000.nii.gz: is of the same case as b.nii.gz. Take one of them out."],
    ),
    "a label map twice": (
        NNUNET,
        CT,
        lambda root: touch(root, "labelsTr/c.nii"),
        ["labelsTr/c.nii.gz: is of the same case as c.nii. Take one of them out."],
    ),
    "names that differ in case only": (
        NNUNET,
        CT,
        lambda root: fill(root, NNUNET, "C"),
        ["imagesTr/c_0000.nii.gz: has the same name as imagesTr/C_0000.nii.gz. Take one of them out, or rename it."],
    ),
    "a missing channel": (
        NNUNET_2,
        V2,
        lambda root: touch(root, "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"),
        ["imagesTr/b_0001.nii.gz: is missing: the data set has 2 channels. Add it, or take the case out."],
    ),
    "the first channel missing": (
        NNUNET_2,
        V1,
        lambda root: touch(root, "imagesTr/b_0001.nii.gz", "labelsTr/b.nii.gz"),
        ["imagesTr/b_0000.nii.gz: is missing: the data set has 2 channels. Add it, or take the case out."],
    ),
    "a missing channel of unnamed ones": (
        FOLDERS_2,
        None,
        lambda root: touch(root, "images/b_0001.nii.gz", "labels/b.nii.gz"),
        ["images/b_0000.nii.gz: is missing: the data set has 2 channels. Add it, or take the case out."],
    ),
    "a channel too many": (
        FLARE,
        None,
        lambda root: fill(root, [*FLARE, "TrainingImg/{}_0001.nii.gz"], "b"),
        ["TrainingImg/b_0001.nii.gz: is a channel too many: the data set has 1 channel. Take it out."],
    ),
    "no channel number": (
        NNUNET,
        CT,
        lambda root: fill(root, DECATHLON, "b"),
        ["imagesTr/b.nii.gz: carries no channel number. Call it b_0000.nii.gz."],
    ),
    "a listed case that isn't there": (
        NNUNET_2,
        V1 | {"training": listing(DECATHLON)},
        lambda root: None,
        ["labelsTr/b.nii.gz: no such file, though training[1] in dataset.json names it. Add it, or take it out."],
    ),
    "a case listed twice by nnU-Net 1": (
        NNUNET_2,
        V1 | {"training": listing(DECATHLON, "a a c")},
        lambda root: None,
        ["dataset.json: training[1] repeats a. Take one of them out."],
    ),
    "files that a list names aren't there": (
        DECATHLON,
        {"training": listing(DECATHLON)},
        lambda root: touch(root, "labelsTr/b.nii.gz"),
        [
            "imagesTr/b.nii.gz: no such file, though training[1] in dataset.json names it. "
            "Correct its path or the data root, or take it out."
        ],
    ),
    "an entry twice": (
        DECATHLON,
        {"training": listing(DECATHLON, "a c c")},
        lambda root: None,
        ["imagesTr/c.nii.gz: is listed twice. Take one of them out, or rename it."],
    ),
    "an entry without label map": (
        ["{}.nii.gz", "{}_seg.nii.gz"],
        {"training": [*listing(["{}.nii.gz", "{}_seg.nii.gz"], "a c"), {"image": "b.nii.gz"}]},
        lambda root: touch(root, "b.nii.gz"),
        ["b.nii.gz: has no label map: training[2] in dataset.json names none. Add it, or take the entry out."],
    ),
    "entries that make no sense": (
        ["{}.nii.gz", "{}_seg.nii.gz"],
        {
            "training": [
                *listing(["{}.nii.gz", "{}_seg.nii.gz"], "a c"),
                7,
                {"label": "b.nii.gz"},
                {"image": 3},
                {"image": "b.nii.gz", "label": ["a", "b"]},
                {"image": "b.nii.gz", "label": "b_seg.nii.gz", "fold": "one"},
            ]
        },
        lambda root: None,
        [
            "dataset.json: training[2] is no object with image and label. Correct the entry, or take it out.",
            "dataset.json: training[3] names no image. Correct the entry, or take it out.",
            "dataset.json: training[4] has an image that is neither a path nor a list of paths. "
            "Correct the entry, or take it out.",
            "dataset.json: training[5] has a label that is no path. Correct the entry, or take it out.",
            'dataset.json: training[6] has the fold "one", which is no whole number. '
            "Correct the entry, or take it out.",
        ],
    ),
    "an entry without fold where others have one": (
        ["{}.nii.gz", "{}_seg.nii.gz"],
        {
            "training": [
                *listing(["{}.nii.gz", "{}_seg.nii.gz"], "a c", fold=0),
                *listing(["{}.nii.gz", "{}_seg.nii.gz"], "b"),
            ]
        },
        lambda root: fill(root, ["{}.nii.gz", "{}_seg.nii.gz"], "b"),
        ["b.nii.gz: has no fold: training[2] in dataset.json names none, others do. Give each entry a fold."],
    ),
    "an entry with too few channel files": (
        ["{}_t2.nii.gz", "{}_adc.nii.gz", "{}_seg.nii.gz"],
        {
            "training": [
                {"image": [f"{name}_t2.nii.gz", f"{name}_adc.nii.gz"], "label": f"{name}_seg.nii.gz"} for name in "ac"
            ]
            + [{"image": ["b_t2.nii.gz"], "label": "b_seg.nii.gz"}],
        },
        lambda root: fill(root, ["{}_t2.nii.gz", "{}_seg.nii.gz"], "b"),
        ["b_t2.nii.gz: has 1 channel file (training[2] in dataset.json), expected 2. Name as many for each image."],
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_wrong_with_a_case_is_told_and_the_others_stay(tmp_path: Path, broken: str) -> None:
    patterns, description, spoil, problems = BROKEN[broken]
    fill(tmp_path, patterns, "a c")
    spoil(tmp_path)
    if description is not None:
        describe(tmp_path, description)
    found = read_data_set(tmp_path)
    assert told(found, tmp_path) == problems
    assert not any(problem.usable for problem in found.problems)
    assert sorted(name.lower().removesuffix("_t2") for name in names_of(found)) == ["a", "c"]


def test_a_case_that_the_list_of_nnunet_1_leaves_out_is_left_out_and_said(tmp_path: Path) -> None:
    fill(tmp_path, NNUNET_2)
    describe(tmp_path, V1 | {"training": listing(DECATHLON, "a c")})
    found = read_data_set(tmp_path)
    assert names_of(found) == ["a", "c"]
    assert [problem.usable for problem in found.problems] == [True]
    assert told(found, tmp_path) == [
        "imagesTr/b_0000.nii.gz: isn't in the training list of the data set. It is left out; list it to train on it."
    ]


def test_a_list_that_is_left_over_means_nothing_to_nnunet_2(tmp_path: Path) -> None:
    fill(tmp_path, NNUNET_2)
    describe(tmp_path, V2 | {"training": listing(DECATHLON, "a x")})
    found = read_data_set(tmp_path)
    assert names_of(found) == ["a", "b", "c"]
    assert found.problems == ()


def test_nnunet_2_may_name_each_cases_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))
    touch(tmp_path, "elsewhere/1/t2.nii.gz", "elsewhere/1/adc.nii.gz", "raw/seg/1.nii.gz", "raw/seg/2.nii.gz")
    dataset = {
        "one": {"images": ["${ELSEWHERE}/1/t2.nii.gz", "../elsewhere/1/adc.nii.gz"], "label": "seg/1.nii.gz"},
        "two": {"images": ["../elsewhere/1/t2.nii.gz"], "label": "seg/2.nii.gz"},
        "three": None,
    }
    describe(tmp_path / "raw", V2 | {"dataset": dataset})
    found = read_data_set(tmp_path / "raw")
    [case] = found.cases
    assert (found.layout, case.name) == ("nnunet", "one")
    assert [file.resolve() for file in case.image] == [tmp_path / f"elsewhere/1/{x}.nii.gz" for x in ("t2", "adc")]
    assert case.label == tmp_path / "raw" / "seg" / "1.nii.gz"
    assert [problem.what for problem in found.problems] == [
        "has 1 channel file (dataset[two] in dataset.json), expected 2",
        "dataset[three] is no object with image and label",
    ]


def test_a_data_list_brings_its_folds(tmp_path: Path) -> None:
    fill(tmp_path, FOLDERS)
    training = [entry | {"fold": number} for number, entry in enumerate(listing(FOLDERS))]
    path = describe(tmp_path, {"training": training, "labels": {"1": "liver"}, "modality": "MRI"}, "list.json")
    for place in (path, tmp_path):
        found = read_data_set(place)
        assert found.layout == "datalist"
        assert [(case.name, case.fold) for case in found.cases] == [("a", 0), ("b", 1), ("c", 2)]
        assert (found.labels, found.channel_names) == ({1: "liver"}, ("MRI",))


def test_what_is_listed_for_validation_is_the_first_fold(tmp_path: Path) -> None:
    fill(tmp_path, FOLDERS, "a b c d")
    lists = {"training": listing(FOLDERS, "c a"), "validation": listing(FOLDERS, "d b")}
    path = describe(tmp_path, lists)
    assert [(case.name, case.fold) for case in read_data_set(path).cases] == [("a", 1), ("b", 0), ("c", 1), ("d", 0)]
    describe(tmp_path, lists | {"validation": [{"image": "images/b.nii.gz"}]})  # nothing to validate against
    assert [(case.name, case.fold) for case in read_data_set(path).cases] == [("a", None), ("c", None)]


def test_folds_count_more_than_a_validation_list(tmp_path: Path) -> None:
    fill(tmp_path, FOLDERS)
    lists = {"training": listing(FOLDERS, "a b", fold=3), "validation": listing(FOLDERS, "c")}
    found = read_data_set(describe(tmp_path, lists))
    assert [(case.name, case.fold) for case in found.cases] == [("a", 3), ("b", 3)]
    assert [problem.usable for problem in found.problems] == [True]
    assert "besides a validation list. The folds count" in str(found.problems[0])


def test_paths_of_a_list_begin_beside_it_or_at_the_data_root(tmp_path: Path) -> None:
    fill(tmp_path / "data", FOLDERS)
    beside = describe(
        tmp_path / "lists", {"training": listing(["../data/images/{}.nii.gz", "../data/labels/{}.nii.gz"])}
    )
    rooted = describe(tmp_path / "lists", {"training": listing(FOLDERS)}, "rooted.json")
    absolute = describe(
        tmp_path / "lists", {"training": listing([str(tmp_path / "data" / file) for file in FOLDERS])}, "absolute.json"
    )
    for found in (
        read_data_set(beside),
        read_data_set(rooted, data_root=tmp_path / "data"),
        read_data_set(absolute, data_root="/nowhere"),
    ):
        assert found.problems == ()
        assert [case.image[0].resolve() for case in found.cases] == sorted((tmp_path / "data" / "images").iterdir())
    assert len(read_data_set(rooted).problems) == 6


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (["p/ct_1_0000.nii.gz", "p/ct_2_0000.nii.gz"], ["ct_1", "ct_2"]),
        (["1/image.nii.gz", "2/image.nii.gz"], ["1_image", "2_image"]),
        (["1/image_0000.nii.gz", "2/Image_0000.nii.gz"], ["1_image", "2_Image"]),
        (["1/p/image.nii.gz", "2/p/image.nii.gz"], ["image"]),
    ],
)
def test_a_listed_case_is_called_by_its_image_and_if_need_be_its_folder(
    tmp_path: Path, images: list[str], names: list[str]
) -> None:
    touch(tmp_path, "seg.nii.gz", *images)
    describe(tmp_path, {"training": [{"image": image, "label": "seg.nii.gz"} for image in images]})
    found = read_data_set(tmp_path)
    assert names_of(found) == names
    assert len(found.problems) == len(images) - len(names)


def test_one_entry_twice_leaves_the_others_their_names(tmp_path: Path) -> None:
    patterns = ["{}/image.nii.gz", "{}/seg.nii.gz"]
    fill(tmp_path, patterns)
    describe(tmp_path, {"training": listing(patterns, "a b b c")})
    found = read_data_set(tmp_path)
    assert names_of(found) == ["a_image", "b_image", "c_image"]
    assert told(found, tmp_path) == ["b/image.nii.gz: is listed twice. Take one of them out, or rename it."]


def test_one_modality_is_that_of_all_channel_files(tmp_path: Path) -> None:
    files = ["t1.nii.gz", "t2.nii.gz", "seg.nii.gz"]
    touch(tmp_path, *files)
    describe(tmp_path, {"modality": "MRI", "training": [{"image": files[:2], "label": files[2]}]})
    found = read_data_set(tmp_path)
    assert found.channel_names == ("MRI", "MRI")
    assert files_of(found, tmp_path) == [files]


def test_hidden_files_in_a_list_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, FOLDERS, "a ._a")
    describe(tmp_path, {"training": listing(FOLDERS, "a ._a")})
    found = read_data_set(tmp_path)
    assert (names_of(found), found.problems) == (["a"], ())


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    fill(tmp_path, NNUNET)
    (tmp_path / "dataset.json").write_text(json.dumps(CT), encoding="utf-8-sig")
    assert read_data_set(tmp_path).labels == {1: "liver"}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"0": "background", "2": "b", "1": "a"}, {1: "a", 2: "b"}),
        ({"b": 2, "background": 0, "a": 1}, {1: "a", 2: "b"}),
        ({"3": 1}, {1: "3"}),
        ({}, {}),
    ],
)
def test_labels_are_read_in_both_ways(tmp_path: Path, labels: dict[str, Any], names: dict[int, str]) -> None:
    fill(tmp_path, NNUNET)
    describe(tmp_path, CT | {"labels": labels})
    assert read_data_set(tmp_path).labels == names


# each: what dataset.json says of FLARE21-like files, the message
REFUSED: dict[str, tuple[Any, str]] = {
    "regions": (
        CT | {"labels": {"background": 0, "whole": [1, 2]}},
        "the label whole is a region, which isn't supported",
    ),
    "an ignore label": (CT | {"labels": {"background": 0, "a": 1, "ignore": 2}}, "the label ignore isn't supported"),
    "another file ending": (CT | {"file_ending": ".nrrd"}, "the file_ending .nrrd isn't supported. Convert the files"),
    "one number for two labels": (
        CT | {"labels": {"a": 1, "b": 1}},
        'the label "b": 1 is no number from 0 with a name',
    ),
    "labels without numbers": (CT | {"labels": {"a": "b"}}, 'the label "a": "b" is no number from 0'),
    "a negative label": (CT | {"labels": {"a": -1}}, 'the label "a": -1 is no number from 0'),
    "labels as a list": (CT | {"labels": ["a", "b"]}, "labels is no object"),
    "channels that aren't numbered": (CT | {"channel_names": {"CT": "0"}}, "channel_names doesn't number the channels"),
    "channels that begin at 1": (V1 | {"modality": {"1": "CT"}}, "modality doesn't number the channels from 0"),
    "a list that is none": (V1 | {"training": {"a": 1}}, "training is no list"),
    "damaged JSON": ('{\n"labels": {\n', "damaged JSON in line 3 ("),
    "an empty file": ("", "damaged JSON in line 1 ("),
    "no object": ("[1]", "holds no JSON object"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_description_that_can_not_be_used_is_named(tmp_path: Path, refused: str) -> None:
    description, message = REFUSED[refused]
    fill(tmp_path, NNUNET)
    path = describe(tmp_path, description)
    with pytest.raises(BadInput) as caught:
        read_data_set(tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_other_files_than_nifti_are_refused_as_such(tmp_path: Path) -> None:
    fill(tmp_path, ["imagesTr/{}_0000.png", "labelsTr/{}.png"])
    describe(tmp_path, CT | {"file_ending": ".png"})
    with pytest.raises(BadInput, match=r"dataset\.json: the file_ending \.png isn't supported"):
        read_data_set(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe{\x00", '{"training": ["ä"]}'.encode("latin-1")])
def test_a_list_that_is_no_utf_8_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"list\.json: not written in UTF-8"):
        read_data_set(tmp_path / "list.json")


# each: files, dataset.json, layout, the message after the folder's name
NO_DATA_SET: dict[str, tuple[list[str], Any, str, str]] = {
    "an unknown layout": (
        [],
        None,
        "kits",
        "layout: kits is unknown. Choose auto, flare21, nnunet, decathlon, datalist or folders.",
    ),
    "nothing": (
        ["readme.txt"],
        None,
        "auto",
        ": holds no data set. Expected one of: TrainingImg/NAME_0000.nii.gz",
    ),
    "imagesTr without description": (
        ["imagesTr/a_0000.nii.gz"],
        None,
        "auto",
        ": holds no data set: dataset.json is missing. Expected one of",
    ),
    "imagesTr with numbers of cases": (
        [
            "imagesTr/PID_0000.nii.gz",
            "imagesTr/PID_0001.nii.gz",
            "labelsTr/PID_0000.nii.gz",
            "labelsTr/PID_0001.nii.gz",
        ],
        CT,
        "auto",
        ": holds no data set: the number in imagesTr/PID_0000.nii.gz is the case's, as labelsTr holds PID_0000.nii.gz, "
        "too: rename the image to PID_0000_0000.nii.gz, or the folders to images and labels",
    ),
    "imagesTr without channel numbers or list": (
        ["imagesTr/a.nii.gz"],
        CT,
        "auto",
        ": holds no data set: the files in imagesTr carry no channel numbers such as _0000.",
    ),
    "a description without channels": (
        ["imagesTr/a_0000.nii.gz"],
        {},
        "auto",
        ": holds no data set: dataset.json names no channels",
    ),
    "several lists": (
        ["readme.txt"],
        {"training": []},
        "several",
        ": holds no data set: dataset.json, other.json all hold a training list",
    ),
    "an empty list": (["readme.txt"], {"training": []}, "auto", ": holds no cases. Expected datalist.json"),
    "no label maps": (["images/a.nii.gz"], None, "auto", "/labels: no such folder. The label maps of"),
    "no images": (["images/a.txt", "labels/a.nii.gz"], None, "auto", "/images: holds no .nii or .nii.gz files"),
    "no images of nnU-Net": (
        ["imagesTr/a.txt", "labelsTr/a.nii.gz"],
        CT,
        "auto",
        "/imagesTr: holds no .nii or .nii.gz files",
    ),
    "not FLARE21": (
        ["images/a.nii.gz"],
        None,
        "flare21",
        ": no data set in the layout flare21: the folder TrainingImg is missing. Expected TrainingImg/",
    ),
    "not nnU-Net": (
        ["images/a.nii.gz"],
        None,
        "nnunet",
        ": no data set in the layout nnunet: dataset.json is missing. Expected imagesTr/",
    ),
    "nnU-Net without images": (
        ["images/a.nii.gz"],
        CT,
        "nnunet",
        ": no data set in the layout nnunet: the folder imagesTr is missing.",
    ),
    "not the Decathlon": (
        ["imagesTr/a.nii.gz"],
        CT,
        "decathlon",
        ": no data set in the layout decathlon: dataset.json holds no training list.",
    ),
    "no data list": (
        ["images/a.nii.gz"],
        CT,
        "datalist",
        ": no data set in the layout datalist: no JSON file with a training list is in it.",
    ),
    "no plain folders": (
        ["TrainingImg/a.nii.gz"],
        None,
        "folders",
        ": no data set in the layout folders: the folder images is missing.",
    ),
}


@pytest.mark.parametrize("missing", NO_DATA_SET)
def test_where_there_is_no_data_set_it_is_said_what_was_looked_for(tmp_path: Path, missing: str) -> None:
    files, description, layout, message = NO_DATA_SET[missing]
    touch(tmp_path, *files)
    if description is not None:
        describe(tmp_path, description)
    if layout == "several":
        describe(tmp_path, {"training": []}, "other.json")
    with pytest.raises(BadInput) as caught:
        read_data_set(tmp_path, layout="auto" if layout == "several" else layout)
    assert str(caught.value).removeprefix(str(tmp_path)).startswith(message)


def test_a_path_that_is_no_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone: no such folder\. Give the data set's folder, or the JSON file"):
        read_data_set(tmp_path / "gone")
    touch(tmp_path, "a.nii.gz")
    with pytest.raises(BadInput, match=r"a\.nii\.gz: it is no JSON file\. Give the data set's folder"):
        read_data_set(tmp_path / "a.nii.gz")
    path = describe(tmp_path, CT)
    with pytest.raises(BadInput, match=r"dataset\.json: it holds no training list\. Give the data set's"):
        read_data_set(path)
    with pytest.raises(BadInput, match=r"dataset\.json: no data set in the layout folders: it is a file"):
        read_data_set(path, layout="folders")


def test_several_lists_leave_the_choice_to_datalist_json(tmp_path: Path) -> None:
    fill(tmp_path, ["{}.nii.gz", "{}_seg.nii.gz"])
    for name, cases in (("a.json", "a"), ("b.json", "b"), ("datalist.json", "c")):
        describe(tmp_path, {"training": listing(["{}.nii.gz", "{}_seg.nii.gz"], cases)}, name)
    assert names_of(read_data_set(tmp_path)) == ["c"]


def test_problems_without_any_case_are_still_told(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz", "labels/b.nii.gz")
    found = read_data_set(tmp_path)
    assert found.cases == ()
    assert len(found.problems) == 2


def test_a_problem_is_one_line() -> None:
    assert str(Problem("a.nii.gz", "is short", "Replace it.")) == "a.nii.gz: is short. Replace it."
