from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

pytest.importorskip("pydicom", reason="DICOM needs pip install '.[dicom]'")

from dicom_studies import alter, write_series
from pydicom import dcmread
from test_series import AFFINES, AXIAL, turned

from cyclic_committee.scripts.dicom.gantry_tilt import StraightGrid
from cyclic_committee.scripts.dicom.series import find_series

SHAPE = (20, 16, 9)


def sheared(affine: np.ndarray, x: float, y: float) -> np.ndarray:
    """Slices that go on by so many voxels along x and y each."""
    moved = affine.copy()
    moved[:3, 2] += affine[:3, :2] @ [x, y]
    return moved


def random_labels() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 5, SHAPE).astype(np.uint8)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
@pytest.mark.parametrize("shift", [(0.37, 0), (0, -0.8), (1.4, -0.6), (-2, 1)])
def test_each_voxel_is_that_which_lay_there(affine: np.ndarray, shift: tuple[float, float]) -> None:
    tilted, label_map = sheared(affine, *shift), random_labels()
    grid = StraightGrid.of(tilted, SHAPE)
    axes = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3))
    straight = grid.resample(label_map)
    assert straight.dtype == np.uint8
    places = apply_affine(np.linalg.inv(tilted) @ grid.affine, np.indices(grid.shape).reshape(3, -1).T)
    assert np.allclose(places[:, 2], places[:, 2].round())
    clear = np.abs(places - np.floor(places) - 0.5).min(axis=1) > 0.01  # else two voxels are equally near
    expected = np.zeros(len(places), np.uint8)
    nearest = places.round().astype(int)
    inside = ((nearest >= 0) & (nearest < SHAPE)).all(axis=1)
    expected[inside] = label_map[tuple(nearest[inside].T)]
    assert np.array_equal(straight.ravel()[clear], expected[clear])


def test_shifts_by_whole_voxels_lose_nothing() -> None:
    label_map = random_labels()
    grid = StraightGrid.of(sheared(AXIAL, 2, -1), SHAPE)
    straight = grid.resample(label_map)
    assert straight.shape == (20 + 16, 16 + 8, 9)
    for k in range(9):
        assert np.array_equal(straight[2 * k : 2 * k + 20, 8 - k : 24 - k, k], label_map[:, :, k])
    assert np.count_nonzero(straight) == np.count_nonzero(label_map)


def test_outside_of_the_slices_is_what_was_asked_for() -> None:
    grid = StraightGrid.of(sheared(AXIAL, 0.5, 0), SHAPE)
    straight = grid.resample(np.full(SHAPE, 0.25, np.float32), order=1, outside=1)
    assert straight[0, 0, -1] == 1
    assert np.allclose(straight[:20, :, 0], 0.25)


def test_a_volumes_organ_keeps_its_size_and_place() -> None:
    tilted = sheared(turned(around=2, degrees=20) @ AXIAL, 0.45, 0.7)
    centre = apply_affine(tilted, [10, 8, 4])
    where = apply_affine(tilted, np.indices(SHAPE).reshape(3, -1).T)
    ball = (np.linalg.norm(where - centre, axis=1) < 6).reshape(SHAPE)
    grid = StraightGrid.of(tilted, SHAPE)
    straight = grid.resample(ball.astype(np.uint8))
    middle = apply_affine(grid.affine, np.argwhere(straight)).mean(axis=0)
    assert np.linalg.norm(middle - centre) < 0.4
    assert abs(int(straight.sum()) - int(ball.sum())) < 0.1 * ball.sum()


def test_itk_reads_what_is_straightened_and_nothing_else(tmp_path: Path) -> None:
    itk = pytest.importorskip("SimpleITK", reason="nnU-Net brings it")
    affine = sheared(AXIAL, 0, 1.5)
    grid = StraightGrid.of(affine, SHAPE)
    read = itk.ReadImage(str(grid.write_nifti(tmp_path / "straight.nii")))
    assert np.allclose(np.array(read.GetOrigin()) * [-1, -1, 1], grid.affine[:3, 3], atol=1e-4)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine), tmp_path / "sheared.nii")
    with pytest.raises(RuntimeError, match="orthonormal"):
        itk.ReadImage(str(tmp_path / "sheared.nii"))


def test_rounded_positions_and_directions_are_no_tilt(tmp_path: Path) -> None:
    """Positions to 0.1 mm and directions to 3 digits: right angles all the same, for ITK wants them."""
    for path in write_series(tmp_path, np.zeros((20, 16, 30), np.int16), AFFINES["oblique"]):
        slice_ = dcmread(path)
        alter(
            path,
            ImagePositionPatient=[round(float(one), 1) for one in slice_.ImagePositionPatient],
            ImageOrientationPatient=[round(float(one), 3) for one in slice_.ImageOrientationPatient],
        )
    (series,) = find_series(tmp_path).series
    axes = series.affine[:3, :3] / np.linalg.norm(series.affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    assert series.tilt_degrees == 0
