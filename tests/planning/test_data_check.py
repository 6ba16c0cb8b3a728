from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import CT_EXAMPLE, preparation

from cyclic_committee.scripts.data.cases import require_cases
from cyclic_committee.scripts.data.hounsfield import why_not_hu
from cyclic_committee.scripts.data.layouts import read_data_set
from cyclic_committee.scripts.data.slice_store import store_case
from cyclic_committee.scripts.data.volumes import LabelIdsd, LoadVolumed
from cyclic_committee.scripts.planning.case_check import as_problem
from cyclic_committee.scripts.planning.check_report import format_report, report_as_json
from cyclic_committee.scripts.planning.data_check import Report, check_data_set, nothing_to_check
from cyclic_committee.scripts.runtime.errors import BadInput

SIZE = (16, 16, 6)
LABELS = {1: "liver", 2: "kidney", 3: "spleen"}


@dataclass(frozen=True)
class Damage:
    """What is done to a case's image and label, and which of its files is then named, with what."""

    spoil: Callable[[Path, Path], object]
    file: str  # image, label, or another file's name with {} for the case
    what: str
    usable: bool = False
    is_case: bool = True


def anatomy(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a CT in HU with three organs in a body of fat, its label map, and its affine."""
    rng = np.random.default_rng(seed)
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    hu = np.where(x**2 + y**2 < 0.9, -100.0, -1000.0)
    label = np.zeros(SIZE, np.uint8)
    for organ, (left, hu_of_organ) in enumerate(((2, 110), (6, 160), (10, 120)), start=1):
        label[left : left + 3, 5:11, 1:5] = organ
        hu[label == organ] = hu_of_organ
    affine = np.diag([-rng.uniform(0.7, 0.9), -rng.uniform(0.7, 0.9), rng.choice([1.0, 2.5, 5.0]), 1.0])
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return np.rint(hu + rng.normal(0, 10, SIZE)).astype(np.int16), label, affine


def write(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def write_data_set(folder: Path, cases: int, *, labels: Mapping[int, str] = LABELS) -> list[tuple[Path, Path]]:
    """Write a data set in nnU-Net's layout and return its images and label maps."""
    files = []
    for case in range(cases):
        image, label, affine = anatomy(case)
        files.append((folder / f"imagesTr/c{case:03d}_0000.nii.gz", folder / f"labelsTr/c{case:03d}.nii.gz"))
        write(files[-1][0], image, affine)
        write(files[-1][1], label, affine)
    about = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: label for label, name in labels.items()}},
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    return files


def voxels_of(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj).copy()


def with_voxels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: write(path, change(voxels_of(path)), nib.load(path).affine)


def with_affine(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: write(path, voxels_of(path), change(nib.load(path).affine))


def with_value(value: float, dtype: Any) -> Callable[[Path], None]:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(dtype)
        voxels[1, 2, 3] = value
        return voxels

    return with_voxels(change)


def with_header(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Change the header's bytes: nibabel would mend or refuse them."""

    def spoil(path: Path) -> None:
        volume = nib.load(path)
        unpacked = path.with_name("unpacked.nii")
        nib.save(volume, unpacked)
        content = bytearray(unpacked.read_bytes())
        change(np.frombuffer(content, nib.Nifti1Header.template_dtype, count=1)[0])
        unpacked.write_bytes(content)
        path.write_bytes(gzip.compress(content))
        unpacked.unlink()

    return spoil


def without_spacing(header: Any) -> None:
    header["sform_code"], header["qform_code"] = 0, 0
    header["pixdim"][3] = 0


def flat(header: Any) -> None:
    header["srow_z"] = 0


def other_pixdim(header: Any) -> None:
    header["pixdim"][1:4] = 3


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def bit_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # of the checksum: as if the voxels had changed in a way that can still be unpacked
    path.write_bytes(content)


def of_image(spoil: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    return lambda image, label: spoil(image)


def of_label(spoil: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    return lambda image, label: spoil(label)


def of_both(spoil: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    return lambda image, label: (spoil(image), spoil(label))


def scale(factor: float, offset: float, dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda hu: (hu * factor + offset).astype(dtype)


def shift(millimetres: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(affine: np.ndarray) -> np.ndarray:
        affine = affine.copy()
        affine[0, 3] += millimetres
        return affine

    return change


def same_as_first(image: Path, label: Path) -> None:
    write(image, voxels_of(image.with_name("c000_0000.nii.gz")).astype(np.float32), nib.load(image).affine)


def colours(voxels: np.ndarray) -> np.ndarray:
    return np.zeros(voxels.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])


def standardised(hu: np.ndarray) -> np.ndarray:
    return ((hu - hu.mean()) / hu.std()).astype(np.float32)


def lost_header(affine: np.ndarray) -> np.ndarray:
    return np.eye(4)


def twice(image: Path, label: Path) -> None:
    nib.save(nib.load(image), image.with_name(image.name.removesuffix(".gz")))


def second_channel(image: Path, label: Path) -> None:
    shutil.copy(image, image.with_name(image.name.replace("_0000", "_0001")))


def stack(copies: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda voxels: np.stack([voxels] * copies, axis=-1)


DAMAGES = {
    "label missing": Damage(lambda image, label: label.unlink(), "image", "has no label map", is_case=False),
    "image missing": Damage(lambda image, label: image.unlink(), "label", "has no image", is_case=False),
    "id twice": Damage(twice, "imagesTr/{}_0000.nii.gz", "is of the same case as", is_case=False),
    "channel too many": Damage(second_channel, "imagesTr/{}_0001.nii.gz", "is a channel too many", is_case=False),
    "no volume": Damage(of_image(lambda path: path.write_text("x")), "image", "not a readable NIfTI file"),
    "empty file": Damage(of_label(lambda path: path.write_bytes(b"")), "label", "not a readable NIfTI file"),
    "image truncated": Damage(of_image(truncated), "image", "damaged or truncated"),
    "label truncated": Damage(of_label(truncated), "label", "damaged or truncated"),
    "image flipped": Damage(of_image(bit_flipped), "image", "damaged or truncated (CRC check failed"),
    "colours": Damage(of_image(with_voxels(colours)), "image", "colours or complex numbers"),
    "other shape": Damage(of_label(with_voxels(lambda v: v[:, :, :5])), "label", "has the shape (16, 16, 5), but"),
    "other affine": Damage(of_label(with_affine(shift(3))), "label", "its voxels lie up to 3 mm from those of"),
    "rounded affine": Damage(of_label(with_affine(shift(0.005))), "label", "its voxels lie 0.005 mm beside", True),
    "4D label": Damage(of_label(with_voxels(stack(2))), "label", "expected three dimensions"),
    "4D image": Damage(of_image(with_voxels(stack(3))), "image", "is 4D and has 3 channels where the data set has 1"),
    "5D image": Damage(of_image(with_voxels(lambda v: v[..., None, None].repeat(2, -1))), "image", "has the shape"),
    "half a label": Damage(of_label(with_value(0.5, np.float32)), "label", "aren't whole: 0.5 (1 voxel)"),
    "unknown label": Damage(of_label(with_value(7, np.uint8)), "label", "holds ids that no label has: 7 (1 voxel)"),
    "negative label": Damage(of_label(with_value(-1, np.int16)), "label", "holds ids that no label has: -1"),
    "image as label": Damage(
        lambda image, label: write(label, anatomy(99)[0] * np.float32(1.00037), nib.load(image).affine),
        "label",
        "aren't whole",
    ),
    "empty label": Damage(of_label(with_voxels(np.zeros_like)), "label", "shows no label", True),
    "NaN": Damage(of_image(with_value(np.nan, np.float32)), "image", "1 voxels are NaN or infinite"),
    "infinite": Damage(of_image(with_value(-np.inf, np.float64)), "image", "1 voxels are NaN or infinite"),
    "NaN in label": Damage(of_label(with_value(np.nan, np.float32)), "label", "1 voxels are NaN or infinite"),
    "same image": Damage(same_as_first, "image", "is the same image as imagesTr/c000_0000.nii.gz", True),
    "no spacing": Damage(of_image(with_header(without_spacing)), "image", "x 0 mm"),
    "flat": Damage(of_image(with_header(flat)), "image", "x 0 mm"),
    "thick": Damage(
        of_both(with_affine(lambda a: a @ np.diag([1, 1, 30 / np.linalg.norm(a[:3, 2]), 1]))),
        "image",
        "has unlikely voxels of",
        True,
    ),
    "metres": Damage(of_image(with_affine(lambda a: a / 1000)), "image", "which can't be"),
    "tiny": Damage(of_both(with_affine(lambda a: a / 100)), "image", "has unlikely voxels of 0.00", True),
    "centimetres": Damage(of_both(with_affine(lambda a: a / 10)), "image", "the median, sides sorted, is", True),
    "lost header": Damage(of_both(with_affine(lost_header)), "image", "as if its header was lost", True),
    "other pixdim": Damage(of_image(with_header(other_pixdim)), "image", "gives two voxel sizes", True),
    "offset": Damage(
        of_image(with_voxels(scale(1, 1100, np.int16))), "image", "can't be HU: no values lie below 0", True
    ),
    "noisy offset": Damage(of_image(with_voxels(scale(1, 1000, np.int16))), "image", "an offset of 1024", True),
    "0 to 1": Damage(
        of_image(with_voxels(scale(1 / 1400, 0.8, np.float32))), "image", "can't be HU: all values lie between", True
    ),
    "0 to 255": Damage(of_image(with_voxels(scale(0.15, 160, np.uint8))), "image", "no values lie below 0", True),
    "standardised": Damage(of_image(with_voxels(standardised)), "image", "can't be HU: all values lie between", True),
    "offset twice": Damage(of_image(with_voxels(scale(1, -1024, np.int16))), "image", "no values lie above 0", True),
    "tenfold": Damage(of_image(with_voxels(scale(10, 0, np.int16))), "image", "of the values lie below -1500", True),
    "constant": Damage(of_image(with_voxels(lambda v: np.full_like(v, 40))), "image", "every value is 40", True),
}


def accused(report: Report) -> set[tuple[str, bool]]:
    return {(problem.file, problem.usable) for problem in report.problems}


def expected_of(damage: Damage, image: Path, label: Path) -> tuple[str, bool]:
    file = {"image": image, "label": label}.get(damage.file)
    return str(file or image.parents[1] / damage.file.format(label.name[:4])), damage.usable


def test_each_damage_is_named_none_is_missed_and_no_good_case_is_accused(tmp_path: Path) -> None:
    files = write_data_set(tmp_path, 2 * len(DAMAGES), labels={**LABELS, 4: "pancreas"})
    expected = {(str(tmp_path), True)}  # pancreas is in no label map
    for (image, label), damage in zip(files[1::2], DAMAGES.values(), strict=True):
        damage.spoil(image, label)
        expected.add(expected_of(damage, image, label))
    report = check_data_set(tmp_path, processes=0)
    assert accused(report) == expected
    assert len(report.problems) == len(DAMAGES) + 1
    assert report.usable_cases == report.cases - sum(d.is_case and not d.usable for d in DAMAGES.values())
    assert not report.all_usable


@pytest.mark.parametrize("name", DAMAGES)
def test_one_case_of_six_is_named_with_what_is_wrong(name: str, tmp_path: Path) -> None:
    damage, files = DAMAGES[name], write_data_set(tmp_path, 6)
    damage.spoil(*files[4])
    report = check_data_set(tmp_path, processes=0)
    assert accused(report) == {expected_of(damage, *files[4])}
    [problem] = report.problems
    assert damage.what in problem.what.replace(f"{tmp_path}/", "")
    assert problem.remedy.endswith(".")
    assert "\n" not in str(problem)


def stored(case: dict[str, str], folder: Path) -> None:
    store_case(case, folder=folder / "store", preparation=preparation(labels=LABELS))


def validated(case: dict[str, str], folder: Path) -> None:
    load, as_ids = LoadVolumed(["image", "label"], image_only=True), LabelIdsd("label", labels=LABELS)
    as_ids(load(case))


def checked_for_validation(case: dict[str, str], folder: Path) -> None:
    require_cases([case], labels=LABELS)


def predicted(case: dict[str, str], folder: Path) -> None:
    """Read as `predict` does: the image alone."""
    LoadVolumed("image", image_only=True)(case)


CASES = [name for name, damage in DAMAGES.items() if damage.is_case]
COUNTED_LATER = "4D image"  # these readers take any number of channels; the inferer takes the network's only


@pytest.mark.parametrize("reader", [stored, validated, checked_for_validation])
@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_used_is_what_training_and_validation_refuse(
    name: str, reader: Callable[..., None], tmp_path: Path
) -> None:
    image, label = write_data_set(tmp_path, 3)[2]
    DAMAGES[name].spoil(image, label)
    refused = False
    try:
        reader({"name": "c002", "image": str(image), "label": str(label)}, tmp_path)
    except BadInput:
        refused = True
    assert refused is not DAMAGES[name].usable or (name == COUNTED_LATER and reader is not stored)


@pytest.mark.parametrize("name", [name for name in CASES if name != COUNTED_LATER])
def test_predict_takes_every_image_that_can_be_used_and_no_other(name: str, tmp_path: Path) -> None:
    image, label = write_data_set(tmp_path, 3)[2]
    DAMAGES[name].spoil(image, label)
    try:
        predicted({"image": str(image)}, tmp_path)
    except BadInput:
        assert not DAMAGES[name].usable
        assert DAMAGES[name].file != "label"
    else:
        assert DAMAGES[name].usable or DAMAGES[name].file != "image"


def test_all_that_is_wrong_with_one_case_is_told_at_once(tmp_path: Path) -> None:
    image, label = write_data_set(tmp_path, 4)[3]
    with_value(np.nan, np.float32)(image)
    with_voxels(scale(1, 1100, np.float32))(image)
    with_value(np.nan, np.float32)(label)
    write(label, np.where(np.arange(6) == 5, 0.5, voxels_of(label) + 8 * (np.arange(6) == 0)), np.eye(4))
    report = check_data_set(tmp_path, processes=0)
    told = " | ".join(f"{Path(problem.file).name} {problem.what}" for problem in report.problems)
    for part in (
        "c003_0000.nii.gz 1 voxels are NaN",
        "lie below 0",
        "c003.nii.gz its voxels lie",
        "whole: 0.5",
        "has: 8",
    ):
        assert part in told
    assert report.usable_cases == 3


def test_a_broken_image_does_not_hide_its_label(tmp_path: Path) -> None:
    image, label = write_data_set(tmp_path, 2)[1]
    truncated(image), with_value(9, np.uint8)(label)
    assert accused(check_data_set(tmp_path, processes=0)) == {(str(image), False), (str(label), False)}


@pytest.mark.parametrize("processes", [0, 2])
def test_good_phantoms_are_not_accused(phantoms: Path, processes: int) -> None:
    report = check_data_set(phantoms, processes=processes)
    assert report.problems == ()
    assert (report.cases, report.usable_cases, report.layout) == (5, 5, "flare21")
    assert format_report(report, width=100).startswith("5 cases: all can be used, and there is nothing to remark.\n")


@pytest.mark.skipif(not CT_EXAMPLE.is_dir(), reason="no real CT at ../shared/data/ct_example")
def test_a_real_ct_is_not_accused(tmp_path: Path) -> None:
    for name in ("image", "label"):
        (tmp_path / f"{name}s").mkdir()
        shutil.copy(CT_EXAMPLE / f"{name}.nii.gz", tmp_path / f"{name}s" / "ct.nii.gz")
    report = check_data_set(tmp_path, channel_names=["CT"], processes=0)
    assert report.problems == ()
    assert report.spacing_mm == ((3.0, 3.0, 3.0), (3.0, 3.0, 3.0))
    assert [count.cases for count in (report.labels or {}).values()] == [1, 1, 1, 1]


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    files = write_data_set(tmp_path, 12)
    for (image, label), name in zip(
        files[::2], ("NaN", "offset", "4D label", "tiny", "image truncated", "other affine"), strict=True
    ):
        DAMAGES[name].spoil(image, label)
    reports = [check_data_set(tmp_path, processes=processes) for processes in (0, 2)]
    assert reports[0] == reports[1]
    assert len(reports[0].problems) == 6


# ---- Labels
def test_without_names_any_id_is_right_but_numbers_must_be_ids(tmp_path: Path) -> None:
    files = write_data_set(tmp_path, 6, labels={})
    with_value(200, np.uint8)(files[0][1])
    with_value(300, np.int16)(files[1][1])
    with_value(-2, np.int16)(files[2][1])
    with_value(1.5, np.float32)(files[3][1])
    report = check_data_set(tmp_path, processes=0)
    assert accused(report) == {(str(files[case][1]), False) for case in (1, 2, 3)}
    assert "200 in 1 case" in format_report(report, width=200)


def test_given_labels_count_for_more_than_the_data_sets_own(tmp_path: Path) -> None:
    files = write_data_set(tmp_path, 3)
    report = check_data_set(tmp_path, labels={1: "liver", 2: "kidney"}, processes=0)
    assert accused(report) == {(str(label), False) for _, label in files}


def test_labels_as_whole_floats_are_right(tmp_path: Path) -> None:
    for _, label in write_data_set(tmp_path, 2):
        with_voxels(lambda voxels: voxels.astype(np.float64))(label)
    assert check_data_set(tmp_path, processes=0).problems == ()


def test_an_image_in_place_of_a_label_map_is_called_one(tmp_path: Path) -> None:
    image, label = write_data_set(tmp_path, 2, labels={})[1]
    write(label, np.arange(np.prod(SIZE), dtype=np.int16).reshape(SIZE), nib.load(image).affine)
    [problem] = check_data_set(tmp_path, processes=0).problems
    assert (problem.file, problem.usable) == (str(label), False)
    assert "more than 1000 different numbers" in problem.what


def test_flare21_has_its_own_labels(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms, tmp_path / "data")
    label = tmp_path / "data/TrainingMask/train_002.nii.gz"
    with_value(5, np.uint8)(label)
    assert accused(check_data_set(tmp_path / "data", processes=0)) == {(str(label), False)}


# ---- Channels
def as_folders(
    folder: Path, *, channels: int = 1, cases: int = 6, image: Callable[[np.ndarray], np.ndarray] = np.array
) -> None:
    """Write plain folders, in which nothing says labels or modality."""
    for case in range(cases):
        hu, label, affine = anatomy(case)
        for channel in range(channels):
            suffix = f"_{channel:04d}" if channels > 1 else ""
            write(folder / f"images/c{case}{suffix}.nii.gz", image(hu + channel), affine)
        write(folder / f"labels/c{case}.nii.gz", label, affine)


def test_a_data_set_that_is_no_ct_and_does_not_say_so_is_accused_once(tmp_path: Path) -> None:
    as_folders(tmp_path, image=lambda hu: np.abs(hu) // 2)
    [problem] = check_data_set(tmp_path, processes=0).problems
    assert (problem.file, problem.usable) == (str(tmp_path), True)
    assert "names no modality" in problem.what
    assert check_data_set(tmp_path, channel_names=["MR"], processes=0).problems == ()
    assert len(check_data_set(tmp_path, channel_names=["ct"], processes=0).problems) == 6


def test_one_image_that_is_no_ct_among_many_without_names_is_accused_itself(tmp_path: Path) -> None:
    as_folders(tmp_path)
    with_voxels(scale(1, 1100, np.int16))(tmp_path / "images/c4.nii.gz")
    assert accused(check_data_set(tmp_path, processes=0)) == {(str(tmp_path / "images/c4.nii.gz"), True)}


def test_only_channels_named_ct_must_be_hu(tmp_path: Path) -> None:
    as_folders(tmp_path, channels=2)
    spoiled = [tmp_path / f"images/c1_000{channel}.nii.gz" for channel in range(2)]
    for path in spoiled:
        with_voxels(scale(1, 1100, np.int16))(path)
    assert accused(check_data_set(tmp_path, channel_names=["CT", "PET"], processes=0)) == {(str(spoiled[0]), True)}


@pytest.mark.parametrize(("names", "refused"), [(("CT", "CT"), False), (("CT",), True), ((), True)])
def test_a_fourth_dimension_is_channels_only_if_they_are_named(
    names: tuple[str, ...], refused: bool, tmp_path: Path
) -> None:
    as_folders(tmp_path, cases=3, image=stack(2))
    report = check_data_set(tmp_path, channel_names=names, processes=0)
    assert accused(report) == ({(str(tmp_path / f"images/c{k}.nii.gz"), False) for k in range(3)} if refused else set())


def test_a_fourth_dimension_of_one_is_no_matter(tmp_path: Path) -> None:
    as_folders(tmp_path, cases=3, image=stack(1))
    assert check_data_set(tmp_path, processes=0).problems == ()


def test_channels_on_different_grids_are_named(tmp_path: Path) -> None:
    as_folders(tmp_path, channels=2)
    second = tmp_path / "images/c1_0001.nii.gz"
    with_voxels(lambda hu: hu[:, :15])(second)
    assert accused(check_data_set(tmp_path, processes=0)) == {(str(second), False)}


def test_fewer_channels_than_the_others_are_named(tmp_path: Path) -> None:
    as_folders(tmp_path, channels=2)
    entries = [
        {"image": [f"images/c{k}_000{c}.nii.gz" for c in range(2)], "label": f"labels/c{k}.nii.gz"} for k in range(6)
    ]
    entries[3]["image"] = entries[3]["image"][:1]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries}))
    report = check_data_set(tmp_path / "datalist.json", processes=0)
    assert accused(report) == {(str(tmp_path / "images/c3_0000.nii.gz"), False)}


# ---- Spacing
@pytest.mark.parametrize(
    ("spacings", "expected"),
    [
        ([(0.7, 0.7, 0.5), (0.8, 0.8, 1), (0.9, 0.9, 5), (0.6, 0.6, 8), (0.8, 0.8, 1)], []),  # CT as it comes
        ([(0.8, 0.8, 5), (5, 0.8, 0.8), (0.8, 5, 0.8), (0.8, 0.8, 5)], []),  # slices along other axes
        ([(1, 1, 1)] * 5, []),  # resampled by somebody
        ([(1, 1, 1), (1, 1, 1), (1, 1, 1), (0.9, 0.9, 1.2)], []),
        ([(1, 1, 1), (0.8, 0.8, 5)], []),  # too few to tell
        ([(1, 1, 1), (0.8, 0.8, 5), (0.8, 0.8, 5), (0.7, 0.7, 5)], [0]),
        ([(0.08, 0.08, 0.5), (0.8, 0.8, 5), (0.8, 0.8, 5), (0.7, 0.7, 5)], [0]),  # cm for mm
        ([(0.8, 0.8, 25), (0.8, 0.8, 5)], [0]),
        ([(0.04, 0.8, 5), (0.8, 0.8, 5)], [0]),
    ],
)
def test_suspicious_spacings_and_usual_ones(
    spacings: list[tuple[float, ...]], expected: list[int], tmp_path: Path
) -> None:
    as_folders(tmp_path, cases=len(spacings))
    for case, spacing_mm in enumerate(spacings):
        for folder in ("images", "labels"):
            with_affine(lambda affine, s=spacing_mm: shift(7)(np.diag([*s, 1.0])))(
                tmp_path / folder / f"c{case}.nii.gz"
            )
    found = check_data_set(tmp_path, processes=0)
    assert accused(found) == {(str(tmp_path / f"images/c{case}.nii.gz"), True) for case in expected}


# ---- Intensities
def crop(hu: np.ndarray) -> np.ndarray:
    return hu[4:12, 4:12]


def padded(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(hu: np.ndarray) -> np.ndarray:
        hu = hu.copy()
        hu[:4] = value
        return hu

    return change


def with_metal(hu: np.ndarray) -> np.ndarray:
    hu = hu.copy()
    hu[8, 8] = 30000
    return hu


@pytest.mark.parametrize(
    "change",
    [
        np.array,
        crop,
        padded(-2000),
        padded(-3024),
        padded(-32768),
        padded(0),
        with_metal,
        lambda hu: hu.clip(-160, 240),
    ],
)
def test_values_that_may_be_hu(change: Callable[[np.ndarray], np.ndarray]) -> None:
    assert why_not_hu(change(anatomy(3)[0])) == ""


def test_lungs_and_bones_as_labels_are_right() -> None:
    hu, label, _ = anatomy(3)
    for organ, value in ((1, -850), (2, 1500)):
        changed = np.where(label == organ, value, hu)
        assert why_not_hu(changed, label == organ) == ""


@pytest.mark.parametrize("padding", [-2000, -1000, -3024, -32768])
def test_an_offset_is_seen_behind_padding(padding: int) -> None:
    assert why_not_hu(padded(padding)(anatomy(3)[0] + 1100)) != ""


def test_large_volumes_are_judged_by_a_sample() -> None:
    hu = np.kron(anatomy(3)[0], np.ones((10, 10, 20), np.int16))
    assert hu.size > 3_000_000
    assert why_not_hu(hu) == ""
    assert why_not_hu(hu + 1100) != ""


# ---- Report
@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_table_names_each_file_uncut_and_keeps_to_its_width(width: int, tmp_path: Path) -> None:
    files = write_data_set(tmp_path, 2 * len(DAMAGES))
    for (image, label), damage in zip(files[1::2], DAMAGES.values(), strict=True):
        damage.spoil(image, label)
    report = check_data_set(tmp_path, processes=0)
    text = format_report(report, width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for problem in report.problems:
        assert any(line.split("  ")[0] == str(Path(problem.file).relative_to(tmp_path)) for line in lines)
    assert text.index("Can't be used:") < text.index("Can be used, but look at it:")
    assert f"{report.cases} cases, {report.cases - report.usable_cases} can't be used" in text
    for part in ("layout    nnunet", "channels  CT", "1 liver in", "spacing ", "size "):
        assert part in text


def test_json_says_the_same(tmp_path: Path) -> None:
    files = write_data_set(tmp_path, 4)
    DAMAGES["NaN"].spoil(*files[1]), DAMAGES["empty label"].spoil(*files[2])
    report = check_data_set(tmp_path, processes=0)
    read = json.loads(report_as_json(report))
    assert (read["layout"], read["cases"], read["usable"], read["channels"]) == ("nnunet", 4, 3, ["CT"])
    assert [(p["file"], p["usable"]) for p in read["problems"]] == [(str(files[1][0]), False), (str(files[2][1]), True)]
    assert set(read["problems"][0]) == {"file", "what", "remedy", "usable"}
    assert read["labels"]["1"] == {"name": "liver", "cases": 3}


def test_what_is_no_data_set_can_be_reported_too(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        check_data_set(tmp_path / "gone")
    report = nothing_to_check(tmp_path / "gone", error.value)
    assert (report.cases, report.all_usable) == (0, False)
    [problem] = json.loads(report_as_json(report))["problems"]
    assert problem["file"] == str(tmp_path / "gone")
    assert problem["what"] == "no such folder"


@pytest.mark.parametrize(
    ("message", "file", "what", "remedy"),
    [
        ("a/b.nii: is bad. Mend it.", "a/b.nii", "is bad", "Mend it."),
        (
            "a. b: c.nii: lies 0.5 mm off (v1.2. No). Move it, or not.",
            "a. b: c.nii",
            "lies 0.5 mm off (v1.2. No)",
            "Move it, or not.",
        ),
        ("a  b.nii: is bad. Mend it.", "a  b.nii", "is bad", "Mend it."),
        ("other: is bad. Mend it.", "x.nii", "other: is bad", "Mend it."),
        ("x.nii: is bad.", "x.nii", "is bad", ""),
    ],
)
def test_an_errors_line_is_split_into_its_parts(message: str, file: str, what: str, remedy: str) -> None:
    problem = as_problem(BadInput(message), file)
    assert (problem.file, problem.what, problem.remedy) == (file, what, remedy)


def test_the_good_data_set_of_these_tests_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_data_set(tmp_path, 3)
    assert read_data_set(tmp_path).labels == LABELS
    assert check_data_set(tmp_path, processes=0).problems == ()
