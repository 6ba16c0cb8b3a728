"""Do the pictures show the right slices, the right way round, for any CT?"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from cyclic_committee.scripts.runtime.errors import BadInput
from cyclic_committee.scripts.visualize.overlays import Pictures, draw_curves, draw_overlay, pick_slices

LABELS = {0: "background", 1: "liver", 2: "kidney"}
AIR_HU, BONE_HU = -1000, 1000


def write_ct(path: Path, *, codes: str = "RAS", spacing_mm: tuple[float, ...] = (1.0, 1.0, 2.0)) -> np.ndarray:
    """Write a CT with a bright block at the patient's right and front, in any orientation; return the block's mask."""
    image, affine = np.full((40, 40, 12), AIR_HU, np.int16), np.diag([*spacing_mm, 1.0])
    image[24:34, 26:36] = BONE_HU  # (right, anterior, superior)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    turned = nib.Nifti1Image(image, affine).as_reoriented(turn)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(turned, path)
    return (np.asanyarray(turned.dataobj) == BONE_HU).astype(np.uint8)


def bright_box(folder: Path, **ct: tuple[float, ...]) -> tuple[int, int, int, int]:
    """Draw such a CT; return left, right, top and bottom of its block in the plain picture, in pixels of the CT."""
    mask = write_ct(folder / "a.nii.gz", **ct)
    path = folder / "a.png"
    draw_overlay(folder / "a.nii.gz", prediction=mask, reference=None, labels=LABELS, path=path, slices=1)
    bright = imread(path)[90:-65, 25:694, :3].min(axis=-1) > 0.97  # without margins: the CT's own letters are greyer
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    return columns[0], columns[-1], rows[0], rows[-1]


def test_the_patients_right_is_on_the_left_and_anterior_is_on_top(tmp_path: Path) -> None:
    _, right, _, bottom = bright_box(tmp_path)
    assert right < 669 / 2
    assert bottom < 669 / 2


def test_pixels_have_the_proportions_of_the_spacing(tmp_path: Path) -> None:
    left, right, top, bottom = bright_box(tmp_path, spacing_mm=(1.0, 0.5, 2.0))
    assert (right - left) / (bottom - top) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("codes", ["LPS", "LAS", "SLP", "PIR"])
def test_the_picture_is_the_same_for_every_orientation_of_the_file(tmp_path: Path, codes: str) -> None:
    pictures = []
    for name in ("RAS", codes):
        mask = write_ct(tmp_path / name / "a.nii.gz", codes=name)
        path = tmp_path / name / "a.png"
        draw_overlay(tmp_path / name / "a.nii.gz", prediction=mask, reference=mask, labels=LABELS, path=path, slices=1)
        pictures.append(imread(path))
    np.testing.assert_allclose(*pictures, atol=0.01)


@pytest.mark.parametrize(
    ("area", "count", "expected"),
    [
        ([0, 1, 2, 1, 0, 0], 1, [2]),
        ([0, 0, 0, 0, 0, 0], 1, [2]),  # no foreground: the middle
        ([0, 0, 5, 0, 0, 0], 3, [2]),  # one slice
        ([1, 1, 1, 1, 1, 1, 1, 1, 1], 3, [1, 4, 7]),
        ([1, 2, 1, 1, 1, 3, 1, 1, 9, 1, 1, 1], 3, [1, 5, 9]),  # 8 is on the edge of its band
        ([3, 0, 0, 0, 0, 3], 2, [0, 5]),
    ],
)
def test_slices_are_the_fullest_of_bands_over_the_foreground(area: list[int], count: int, expected: list[int]) -> None:
    mask = np.zeros((4, 4, len(area)), np.uint8)
    for z, pixels in enumerate(area):
        mask.reshape(16, -1)[:pixels, z] = 1
    assert pick_slices(mask, count) == expected


@pytest.mark.parametrize("with_reference", [True, False])
def test_masks_without_any_foreground_can_be_drawn(tmp_path: Path, with_reference: bool) -> None:
    empty = np.zeros_like(write_ct(tmp_path / "a.nii"))
    reference = empty if with_reference else None
    path = tmp_path / "new" / "folder" / "a.png"
    draw_overlay(tmp_path / "a.nii", prediction=empty, reference=reference, labels=LABELS, path=path)
    assert [found.name for found in path.parent.iterdir()] == ["a.png"]  # and nothing unfinished
    assert imread(path).shape[1] == 1400


def test_a_fourth_axis_of_length_one_does_no_harm(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 4, 1), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    mask = np.ones((8, 8, 4), np.uint8)
    draw_overlay(tmp_path / "a.nii.gz", prediction=mask, reference=mask, labels=LABELS, path=tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_a_mask_on_another_grid_is_refused_in_a_line_that_names_the_image(tmp_path: Path) -> None:
    mask = write_ct(tmp_path / "a.nii.gz")[:-1]
    with pytest.raises(BadInput, match=r"a\.nii\.gz has shape .* prediction"):
        draw_overlay(tmp_path / "a.nii.gz", prediction=mask, reference=None, labels=LABELS, path=tmp_path / "a.png")


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(BadInput, match=r"a\.nii\.gz can't be drawn"):
        draw_overlay(
            tmp_path / "a.nii.gz", prediction=np.zeros((1, 1, 1)), reference=None, labels=LABELS, path=tmp_path / "a"
        )


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"epoch": 1}],
        [{"epoch": 1, "loss/member_0": 0.7}],
        [{"epoch": 1, "kept/member_0": 0.75, "agreement/members_0_1": 0.6}, {"epoch": 2}],
        [{"epoch": 1, "validation/dsc_liver": float("nan")}, {"epoch": 2, "validation/dsc_mean": 0.9}],
    ],
)
def test_curves_are_drawn_from_whatever_is_there(tmp_path: Path, history: list[dict[str, float]]) -> None:
    draw_curves(history, tmp_path / "pictures" / "curves.png")
    assert imread(tmp_path / "pictures" / "curves.png").shape[:2] == (500, 1400)


class Threshold(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image > 0).float()


def make_evaluator(
    folder: Path, cases: list[str], *, keys: tuple[str, ...] = ("image", "label")
) -> SupervisedEvaluator:
    for case in cases:
        mask = write_ct(folder / f"{case}.nii.gz")
        nib.save(nib.Nifti1Image(mask, np.diag([1, 1, 2, 1])), folder / f"{case}_label.nii.gz")
    files = [{"image": folder / f"{case}.nii.gz", "label": folder / f"{case}_label.nii.gz"} for case in cases]
    load = Compose([LoadImaged(keys), EnsureChannelFirstd(keys)])
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{key: item[key] for key in keys} for item in files], load), batch_size=2),
        network=Threshold(),
    )


@pytest.mark.parametrize("keys", [("image", "label"), ("image",)])
def test_the_first_cases_of_every_evaluation_are_drawn(tmp_path: Path, keys: tuple[str, ...]) -> None:
    evaluator = make_evaluator(tmp_path / "data", ["a", "b", "c", "d"], keys=keys)
    Pictures(tmp_path / "pictures", labels=LABELS, cases=3).attach(evaluator)
    for epoch in (1, 2):
        evaluator.run(epoch)
        drawn = sorted((tmp_path / "pictures").iterdir())
        assert [path.name for path in drawn] == ["a.png", "b.png", "c.png"]
        for path in drawn:
            path.unlink()


def test_a_negative_number_of_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cases must be 0 or more, got -1"):
        Pictures(tmp_path, labels=LABELS, cases=-1)
