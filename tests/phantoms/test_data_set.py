from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cyclic_committee.scripts.phantoms import data_set as phantom_data_set
from cyclic_committee.scripts.phantoms.data_set import LAYOUTS, corruption_dsc, write_phantoms
from cyclic_committee.scripts.phantoms.label_noise import CORRUPTIONS, choose_corruptions
from cyclic_committee.scripts.phantoms.phantom import LABELS, Phantom, make_phantom
from cyclic_committee.scripts.runtime.atomic_files import HOST, UNFINISHED
from cyclic_committee.scripts.runtime.errors import BadInput

FILES = {
    "flare21": ["TrainingImg/train_000_0000.nii.gz", "TrainingMask/train_000.nii.gz"],
    "nnunet": ["dataset.json", "imagesTr/phantom_000_0000.nii.gz", "labelsTr/phantom_000.nii.gz"],
    "decathlon": ["dataset.json", "imagesTr/phantom_000.nii.gz", "labelsTr/phantom_000.nii.gz"],
}
NAMES = {layout: Path(files[-1]).name.replace(".nii.gz", "") for layout, files in FILES.items()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phantoms of four boxes that take no time."""

    def boxes(seed: int) -> Phantom:
        image_hu = np.random.default_rng(seed).integers(-100, 100, (20, 18, 9)).astype(np.int16)
        label = np.zeros(image_hu.shape, np.uint8)
        label[2:9, 2:8, 1:7], label[11:18, 2:8, 2:8] = 1, 2
        label[2:9, 10:16, 2:8], label[11:18, 10:16, 1:7] = 3, 4
        return Phantom(image_hu, label, np.diag([3.0, 3.0, 5.0, 1.0]))

    monkeypatch.setattr(phantom_data_set, "make_phantom", boxes)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def voxels(path: str | Path) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "corruption.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_hand(label: np.ndarray, clean: np.ndarray) -> list[float]:
    return [float(2 * ((label == i) & (clean == i)).sum() / ((label == i).sum() + (clean == i).sum())) for i in LABELS]


@pytest.mark.parametrize("layout", FILES)
def test_a_layout_has_its_files_and_no_others(small: None, tmp_path: Path, layout: str) -> None:
    written = write_phantoms(tmp_path, cases=2, seed=3, layout=layout)
    second = [name.replace("_000", "_001", 1) for name in FILES[layout] if name.endswith(".gz")]
    assert sorted(content(tmp_path)) == sorted([*FILES[layout], *second])
    for pair, names in zip(written, [FILES[layout], second], strict=True):
        assert [pair["image"], pair["label"]] == [str(tmp_path / name) for name in names[-2:]]
        image, label = nib.Nifti1Image.from_filename(pair["image"]), nib.Nifti1Image.from_filename(pair["label"])
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.shape == label.shape
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        assert image.header.get_xyzt_units()[0] == "mm"


def test_nnunet_is_told_channels_labels_and_the_number_of_cases(small: None, tmp_path: Path) -> None:
    write_phantoms(tmp_path, cases=3, layout="nnunet")
    assert json.loads((tmp_path / "dataset.json").read_text()) == {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "kidney": 2, "spleen": 3, "pancreas": 4},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }


def test_the_decathlon_is_told_every_file(small: None, tmp_path: Path) -> None:
    written = write_phantoms(tmp_path, cases=2, layout="decathlon")
    description = json.loads((tmp_path / "dataset.json").read_text())
    training = description.pop("training")
    assert description.pop("name")
    assert description == {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "kidney", "3": "spleen", "4": "pancreas"},
        "numTraining": 2,
        "numTest": 0,
        "test": [],
    }
    assert training == [
        {"image": f"./imagesTr/phantom_00{case}.nii.gz", "label": f"./labelsTr/phantom_00{case}.nii.gz"}
        for case in range(2)
    ]
    assert [{key: str(tmp_path / path) for key, path in pair.items()} for pair in training] == written


def test_the_phantoms_are_those_of_the_seed_and_their_number(tmp_path: Path) -> None:
    for number, pair in enumerate(write_phantoms(tmp_path, cases=2, seed=3)):
        phantom = make_phantom(int(np.random.SeedSequence((3, number)).generate_state(1)[0]))
        np.testing.assert_array_equal(voxels(pair["image"]), phantom.image_hu)
        np.testing.assert_array_equal(voxels(pair["label"]), phantom.label)
        np.testing.assert_allclose(nib.Nifti1Image.from_filename(pair["image"]).affine, phantom.affine, rtol=1e-6)


def test_a_longer_set_starts_with_the_shorter_one_and_another_seed_gives_other_patients(
    small: None, tmp_path: Path
) -> None:
    long, short, other = (
        [voxels(pair["image"]).tobytes() for pair in write_phantoms(tmp_path / name, cases=cases, seed=seed)]
        for name, cases, seed in [("long", 3, 0), ("short", 1, 0), ("other", 1, 1)]
    )
    assert long[:1] == short
    assert len({*long, *other}) == 4


def test_all_layouts_hold_the_same_voxels_and_the_same_mistakes(small: None, tmp_path: Path) -> None:
    read = {}
    for layout in LAYOUTS:
        written = write_phantoms(tmp_path / layout, cases=6, seed=2, layout=layout, corrupt=0.5)
        read[layout] = [voxels(path).tobytes() for pair in written for path in pair.values()]
        read[layout] += [(row["way"], row["dsc"]) for row in table(tmp_path / layout)]
    assert read["flare21"] == read["nnunet"] == read["decathlon"]


def test_the_table_says_what_is_wrong_with_which_label(tmp_path: Path) -> None:
    written = write_phantoms(tmp_path, cases=4, seed=5, layout="nnunet", corrupt=0.5)
    rows = table(tmp_path)
    assert list(rows[0]) == ["case", "way", "dsc", "dsc_liver", "dsc_kidney", "dsc_spleen", "dsc_pancreas"]
    names = [f"phantom_00{case}" for case in range(4)]
    assert [row["case"] for row in rows] == names
    chosen = choose_corruptions(names, share=0.5, seed=5)
    assert len(chosen) == 2
    assert {row["case"]: row["way"] for row in rows if row["way"]} == chosen
    assert sorted(path.name for path in (tmp_path / "clean_labels").iterdir()) == [f"{name}.nii.gz" for name in names]
    for number, (row, pair) in enumerate(zip(rows, written, strict=True)):
        label, clean = voxels(pair["label"]), voxels(tmp_path / "clean_labels" / f"{row['case']}.nii.gz")
        assert label.dtype == np.uint8
        phantom = make_phantom(int(np.random.SeedSequence((5, number)).generate_state(1)[0]))
        np.testing.assert_array_equal(clean, phantom.label)
        assert np.array_equal(label, clean) == (row["way"] == "")
        scores = by_hand(label, clean)
        assert [float(row[f"dsc_{organ}"]) for organ in LABELS.values()] == pytest.approx(scores, abs=1e-6)
        assert float(row["dsc"]) == pytest.approx(np.mean(scores), abs=1e-6)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_way_does_the_same_to_a_label_whatever_the_number_of_cases(
    small: None, tmp_path: Path, corruption: str
) -> None:
    long, short = (
        [
            voxels(pair["label"]).tobytes()
            for pair in write_phantoms(tmp_path / name, cases=n, corrupt=1, corruptions=corruption)
        ]
        for name, n in (("long", 8), ("short", 3))
    )
    assert long[:3] == short
    assert len(set(long)) > 1  # but not to every label
    assert {row["way"] for row in table(tmp_path / "long")} == {corruption}


def test_writing_again_gives_the_same_bytes_and_replaces_another_seed(small: None, tmp_path: Path) -> None:
    settings: Mapping[str, Any] = {"cases": 4, "layout": "decathlon", "corrupt": 0.5}
    write_phantoms(tmp_path, seed=1, **settings)
    first = content(tmp_path)
    write_phantoms(tmp_path, seed=2, **settings)
    second = content(tmp_path)
    assert sorted(first) == sorted(second)
    assert first["corruption.csv"] != second["corruption.csv"]
    write_phantoms(tmp_path, seed=1, **settings)
    assert content(tmp_path) == first


def test_a_set_may_grow(small: None, tmp_path: Path) -> None:
    write_phantoms(tmp_path, cases=1, layout="nnunet")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / "imagesTr" / f"{UNFINISHED}{HOST}-{ended.pid}-phantom_007.nii.gz"
    left.touch()  # by a process that was killed
    (tmp_path / "notes.txt").touch()
    write_phantoms(tmp_path, cases=2, layout="nnunet")
    assert json.loads((tmp_path / "dataset.json").read_text())["numTraining"] == 2
    assert not left.exists()


@pytest.mark.parametrize(
    ("before", "after", "file"),
    [
        ({"layout": "nnunet"}, {"layout": "nnunet", "cases": 1}, "imagesTr/phantom_001_0000.nii.gz"),
        ({}, {"cases": 1}, "TrainingImg/train_001_0000.nii.gz"),
        ({"layout": "nnunet"}, {"layout": "decathlon"}, "imagesTr/phantom_000_0000.nii.gz"),
        ({"layout": "decathlon"}, {"layout": "nnunet"}, "imagesTr/phantom_000.nii.gz"),
        ({"layout": "nnunet"}, {"layout": "flare21"}, "dataset.json"),
        ({}, {"layout": "nnunet"}, "TrainingImg/train_000_0000.nii.gz"),
        ({"corrupt": 0.5}, {}, "clean_labels/train_000.nii.gz"),
    ],
)
def test_another_data_set_is_never_mixed_with_ours(
    small: None, tmp_path: Path, before: Mapping[str, Any], after: Mapping[str, Any], file: str
) -> None:
    write_phantoms(tmp_path, **{"cases": 2, **before})
    there = content(tmp_path)
    with pytest.raises(BadInput) as caught:
        write_phantoms(tmp_path, **{"cases": 2, "seed": 9, **after})
    assert str(caught.value) == f"{tmp_path / file}: belongs to another data set. Choose another folder with --out."
    assert content(tmp_path) == there


@pytest.mark.parametrize("name", ["TrainingImg/patient.nii.gz", "labelsTr/notes.txt", "corruption.csv"])
def test_a_single_foreign_file_is_enough(small: None, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(BadInput, match=rf"{name}: belongs to another data set"):
        write_phantoms(tmp_path, cases=1)
    assert list(content(tmp_path)) == [name]


def test_a_file_is_no_folder(small: None, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(BadInput, match=r"taken: is a file\. Choose another folder with --out\.$"):
        write_phantoms(tmp_path / "taken", cases=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cases": 0}, r"^cases: must be a whole number from 1 on, got 0\. Give another with --cases\.$"),
        ({"cases": -1}, "^cases: must be a whole number from 1 on, got -1"),
        ({"cases": 2.5}, "^cases: must be a whole number from 1 on, got 2.5"),
        ({"cases": True}, "^cases: must be a whole number from 1 on, got True"),
        ({"seed": -1}, "^seed: must be a whole number from 0 on, got -1"),
        ({"seed": "a"}, "^seed: must be a whole number from 0 on, got 'a'"),
        ({"layout": "coco"}, r"^layout: must be one of flare21, nnunet, decathlon, got 'coco'\. Choose one"),
        ({"layout": ["nnunet"]}, "^layout: must be one of flare21, nnunet, decathlon"),
        ({"corrupt": -0.1}, r"^corrupt: must be in \[0, 1\], got -0.1\."),
        ({"corrupt": 30}, r"^corrupt: must be in \[0, 1\], got 30\."),
        ({"corrupt": True}, r"^corrupt: must be in \[0, 1\], got True\."),
        ({"corrupt": float("nan")}, r"^corrupt: must be in \[0, 1\], got nan\."),
        ({"corruptions": "blur"}, r"^corruptions: must be one or more of dilation, .*, got 'blur'\."),
        ({"corrupt": 0.5, "corruptions": ("shift", "blur")}, "^corruptions: must be one or more of dilation"),
        ({"corrupt": 0.5, "corruptions": ()}, "^corruptions: must be one or more of dilation"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_written(
    small: None, tmp_path: Path, arguments: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        write_phantoms(tmp_path / "data", **{"cases": 1, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing_behind_and_is_said(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(BadInput, match=r"train_000_0000\.nii\.gz: can't be written \(disk full\)\. Make room"):
        write_phantoms(tmp_path, cases=1)
    assert content(tmp_path) == {}


def test_what_is_said_of_a_set_vanishes_before_its_files_change(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantoms(tmp_path, cases=2, layout="nnunet", corrupt=0.5)
    replace, replaced = os.replace, []

    def fill(source: Path, target: Path) -> None:
        if len(replaced) == 4:
            raise OSError("disk full")
        replaced.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", fill)
    with pytest.raises(BadInput, match="disk full"):
        write_phantoms(tmp_path, cases=2, layout="nnunet", corrupt=0.5, seed=1)
    assert replaced == [
        "phantom_000_0000.nii.gz",
        "phantom_000.nii.gz",
        "phantom_000.nii.gz",
        "phantom_001_0000.nii.gz",
    ]
    assert not (tmp_path / "dataset.json").exists()
    assert not (tmp_path / "corruption.csv").exists()
    assert not [name for name in content(tmp_path) if UNFINISHED in name]


def test_agreement_is_over_the_organs_that_are_there() -> None:
    clean, wrong = np.zeros((2, 4, 1, 1), np.uint8)
    clean[:2], clean[2:] = 1, 3
    wrong[:2], wrong[2:3], wrong[3:] = 1, 3, 2
    assert corruption_dsc(wrong, clean) == {
        "dsc": "0.833333",
        "dsc_liver": "1.000000",
        "dsc_kidney": "",
        "dsc_spleen": "0.666667",
        "dsc_pancreas": "",
    }
    assert corruption_dsc(np.zeros_like(clean), np.zeros_like(clean))["dsc"] == "1.000000"


def test_a_share_that_comes_to_no_case_is_still_told(small: None, tmp_path: Path) -> None:
    write_phantoms(tmp_path, cases=3, corrupt=0.1)
    assert [(row["way"], row["dsc"]) for row in table(tmp_path)] == [("", "1.000000")] * 3
    assert len(list((tmp_path / "clean_labels").iterdir())) == 3
