from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cyclic_committee.scripts.data.case_files import Case
from cyclic_committee.scripts.planning.fingerprint import (
    MOST_VALUES,
    CaseFingerprint,
    count_values,
    foreground_intensities,
    measure_case,
    measure_cases,
)
from cyclic_committee.scripts.runtime.atomic_files import read_with_checksum, with_checksum
from cyclic_committee.scripts.runtime.errors import BadInput


def write(folder: Path, name: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray | None = None) -> Case:
    affine = np.diag([0.5, 1.5, 4.0, 1.0]) if affine is None else affine
    paths = [folder / f"{name}_{part}.nii.gz" for part in ("image", "label")]
    for path, voxels in zip(paths, (image, label), strict=True):
        nib.save(nib.Nifti1Image(voxels, affine), path)
    return Case(name, (paths[0],), paths[1])


def random_case(folder: Path, name: str, seed: int = 0) -> tuple[Case, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(-1000, 1000, (10, 9, 8)).astype(np.int16)
    label = rng.choice([0, 0, 1, 4], image.shape).astype(np.uint8)
    return write(folder, name, image, label), image, label


LABELS = {1: "a", 4: "b"}


def test_a_case_is_measured_on_the_axes_right_anterior_superior(tmp_path: Path) -> None:
    image, label = np.ones((10, 9, 8), np.int16), np.ones((10, 9, 8), np.uint8)
    turned = np.array([[0, 0, -4.0, 0], [0.5, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])  # file axes: A, S, L
    found = measure_case(write(tmp_path, "a", image, label, turned), labels=LABELS)
    assert found.spacing_mm == pytest.approx([4.0, 0.5, 1.5])
    assert found.size == [8, 10, 9]
    assert found.label_voxels == {"1": 720}
    assert found.share_kept == 1.0


def test_a_case_is_measured_as_it_is_cropped(tmp_path: Path) -> None:
    image = np.zeros((10, 9, 8), np.int16)
    image[2:7, 3:9, 1:5] = 40
    found = measure_case(write(tmp_path, "a", image, (image > 0).astype(np.uint8)), labels=LABELS)
    assert found.size == [5, 6, 4]
    assert found.share_kept == pytest.approx(120 / 720)
    assert found.foreground == [{"values": [40.0], "counts": [120]}]


def test_all_labelled_voxels_of_all_cases_count_once(tmp_path: Path) -> None:
    made = [random_case(tmp_path, name, seed) for seed, name in enumerate("abc")]
    measured = measure_cases([case for case, _, _ in made], labels=LABELS, folder=tmp_path / "f", processes=2)
    voxels = np.concatenate([image[label > 0] for _, image, label in made]).astype(float)
    found = foreground_intensities(measured, 0)
    assert found.mean == pytest.approx(voxels.mean())
    assert found.sd == pytest.approx(voxels.std())
    assert found.percentile_00_5 == pytest.approx(np.percentile(voxels, 0.5), abs=5)
    assert found.percentile_99_5 == pytest.approx(np.percentile(voxels, 99.5), abs=5)
    assert found.median == pytest.approx(np.median(voxels), abs=5)
    assert (found.smallest, found.largest) == (voxels.min(), voxels.max())


def test_a_million_different_values_are_counted_in_equal_steps() -> None:
    voxels = np.random.default_rng(0).normal(300, 50, 200_000).astype(np.float32)
    counted = count_values(voxels)
    assert len(counted["values"]) <= MOST_VALUES
    assert sum(counted["counts"]) == len(voxels)
    case = CaseFingerprint("a", [1, 1, 1], [1, 1, 1], 1.0, {"1": 1}, [counted])
    found = foreground_intensities([case], 0)
    assert found.mean == pytest.approx(float(voxels.mean()), abs=0.01)
    assert found.percentile_99_5 == pytest.approx(np.percentile(voxels, 99.5), abs=0.05)


def test_what_was_measured_is_read_again_until_a_file_changes(tmp_path: Path) -> None:
    case, _, _ = random_case(tmp_path, "a")
    first = measure_cases([case], labels=LABELS, folder=tmp_path / "f")
    [path] = (tmp_path / "f").iterdir()
    path.write_text(with_checksum({**(read_with_checksum(path) or {}), "name": "read"}))
    assert measure_cases([case], labels=LABELS, folder=tmp_path / "f")[0].name == "read"
    os.utime(case.label, ns=(1, 1))
    assert measure_cases([case], labels=LABELS, folder=tmp_path / "f") == first


def test_what_was_measured_and_is_damaged_is_measured_again(tmp_path: Path) -> None:
    case, _, _ = random_case(tmp_path, "a")
    first = measure_cases([case], labels=LABELS, folder=tmp_path / "f", processes=0)
    [path] = (tmp_path / "f").iterdir()
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(whole), size=20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert measure_cases([case], labels=LABELS, folder=tmp_path / "f", processes=0) == first
        path.write_bytes(whole[:place])
        assert measure_cases([case], labels=LABELS, folder=tmp_path / "f", processes=0) == first
        assert path.read_bytes() == whole


def test_a_bad_case_is_named_and_the_finished_ones_are_kept(tmp_path: Path) -> None:
    good, _, _ = random_case(tmp_path, "a")
    bad, _, _ = random_case(tmp_path, "b", 1)
    write(tmp_path, "a", np.ones((3, 3, 3), np.int16), np.ones((3, 3, 3), np.uint8))
    with pytest.raises(BadInput, match=r"b_label\.nii\.gz: holds the label ids 4, which are not in labels"):
        measure_cases([good, bad], labels={1: "a"}, folder=tmp_path / "f", processes=0)
    assert [path.name[:2] for path in (tmp_path / "f").iterdir()] == ["a-"]


def test_without_labelled_voxels_there_are_no_intensities() -> None:
    case = CaseFingerprint("a", [1, 1, 1], [1, 1, 1], 1.0, {}, [{"values": [], "counts": []}])
    assert foreground_intensities([case], 0).mean is None
