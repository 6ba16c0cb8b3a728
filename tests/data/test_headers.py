"""What headers say: one affine everywhere, what contradicts itself is named, what can't be true is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cyclic_committee.scripts.data.headers import header_remarks
from cyclic_committee.scripts.data.volumes import LabelIdsd, LoadVolumed, open_volume, read_voxels, whole_numbers
from cyclic_committee.scripts.runtime.errors import BadInput


def write(path: Path, voxels: np.ndarray | None = None, affine: np.ndarray | None = None, **header: Any) -> Path:
    """Write a NIfTI file whose header's fields are then as given, contradictory or not."""
    image = nib.Nifti1Image(
        np.zeros((6, 5, 4), np.int16) if voxels is None else voxels, np.eye(4) if affine is None else affine
    )
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def contradictory(path: Path) -> Path:
    """Write a volume whose sform is mirrored, and of 2.4 mm; its qform is of 3 mm."""
    image = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(6, 5, 4), np.diag([-2.4, 2.4, 5, 1]))
    image.set_qform(np.diag([3, 3, 5, 1]), code=1, update_affine=False)
    image.header["pixdim"][1:4] = (3, 3, 5)
    nib.save(image, path)
    return path


def test_training_and_inference_take_one_affine_where_sform_and_qform_differ(tmp_path: Path) -> None:
    """MONAI's own reader takes the qform there, for the pixdim's sake."""
    path = contradictory(tmp_path / "a.nii.gz")
    loaded = LoadVolumed("image")({"image": str(path)})["image"]
    opened = open_volume(path)
    assert np.allclose(loaded.affine, opened.affine)
    assert np.allclose(np.diag(opened.affine), [-2.4, 2.4, 5, 1])
    assert np.array_equal(np.asarray(loaded), read_voxels(opened))


def test_a_header_that_contradicts_itself_is_told(tmp_path: Path) -> None:
    said = [f"{what}. {remedy}" for what, remedy in header_remarks(open_volume(contradictory(tmp_path / "a.nii.gz")))]
    assert len(said) == 2
    assert "2.4 x 2.4 x 5 mm by its affine, 3 x 3 x 5 mm by its pixdim. The affine counts" in said[0]
    assert "its sform and its qform lie up to" in said[1]
    assert "The sform counts" in said[1]
    assert header_remarks(open_volume(write(tmp_path / "b.nii.gz"))) == []


@pytest.mark.parametrize("turned", [0.0, 0.4])
def test_a_qform_that_agrees_but_for_its_rounding_is_no_remark(tmp_path: Path, turned: float) -> None:
    cos, sin = np.cos(turned), np.sin(turned)
    affine = np.array([[-0.78 * cos, sin, 0, 180.3], [0.78 * sin, cos, 0, -201.7], [0, 0, 2.5, -1012.5], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.zeros((512, 512, 4), np.uint8), affine)
    image.set_qform(affine, code=1)
    nib.save(image, tmp_path / "a.nii.gz")
    assert header_remarks(open_volume(tmp_path / "a.nii.gz")) == []


@pytest.mark.parametrize(("unit", "name"), [(1, "metres"), (3, "micrometres"), (1 + 8, "metres")])
def test_other_units_than_mm_are_refused(tmp_path: Path, unit: int, name: str) -> None:
    path = write(tmp_path / "a.nii.gz", xyzt_units=unit)
    with pytest.raises(BadInput, match=rf"a\.nii\.gz: gives its voxels in {name} \(xyzt_units\).* Write it in mm"):
        open_volume(path)


@pytest.mark.parametrize("unit", [0, 2, 10])
def test_mm_and_no_unit_are_taken(tmp_path: Path, unit: int) -> None:
    open_volume(write(tmp_path / "a.nii.gz", xyzt_units=unit))


@pytest.mark.parametrize("size_mm", [6000.0, 1e-5])
def test_sizes_that_no_scanner_gives_are_refused(tmp_path: Path, size_mm: float) -> None:
    path = write(tmp_path / "a.nii.gz", affine=np.diag([size_mm, 1, 1, 1]))
    with pytest.raises(BadInput, match=r"a\.nii\.gz: has voxels of .* which can't be: from 0\.001 to 100 mm"):
        open_volume(path)


def test_a_label_map_may_have_a_fourth_dimension_of_length_1(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 3, (6, 5, 4, 1)).astype(np.uint8)
    for name in ("a.nii.gz", "a.nii"):
        path = write(tmp_path / name, voxels)
        opened = open_volume(path)
        assert opened.shape == (6, 5, 4)
        assert opened.get_filename() == str(path)
        assert np.array_equal(read_voxels(opened), voxels[..., 0])
    with pytest.raises(BadInput, match=r"b\.nii\.gz: has the shape \(6, 5, 4, 2\), expected three dimensions"):
        open_volume(write(tmp_path / "b.nii.gz", voxels.repeat(2, axis=3)))


def test_label_maps_with_a_scale_factor_hold_whole_ids(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (6, 5, 4))
    image = nib.Nifti1Image((ids * 10).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.1, 0)
    nib.save(image, tmp_path / "a.nii.gz")
    stored = read_voxels(open_volume(tmp_path / "a.nii.gz"))
    assert not np.array_equal(stored, ids)  # 1.0000000149
    assert np.array_equal(whole_numbers(stored), ids)
    loaded = LoadVolumed("label")({"label": str(tmp_path / "a.nii.gz")})
    checked = LabelIdsd("label", labels={1: "liver", 2: "spleen"})(loaded)["label"]
    assert np.array_equal(np.asarray(checked), ids)
    assert checked.meta["filename_or_obj"] == str(tmp_path / "a.nii.gz")


def test_numbers_that_are_far_from_whole_stay_as_they_are() -> None:
    assert whole_numbers(np.array([0.5, 1.999, 2.00001])).tolist() == [0.5, 1.999, 2.0]


def changed(path: Path, **fields: tuple[str, int, Any]) -> Path:
    """Write a volume, then change fields in the file: nibabel would mend them. Each by its format and place."""
    data = bytearray(write(path).read_bytes())
    for kind, place, value in fields.values():
        struct.pack_into(kind, data, place, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sform_code": ("<h", 254, 128)}, "has a sform_code of 128, which means nothing"),
        ({"sform_code": ("<h", 254, 0), "qform_code": ("<h", 252, 1280)}, "has a qform_code of 1280"),
        (
            {"sform_code": ("<h", 254, 0), "qform_code": ("<h", 252, 1), "pixdim": ("<f", 76, -2.0)},
            r"has a pixdim\[0\] of -2, which must be 1 or -1",
        ),
        ({"srow": ("<f", 292, 1e9)}, r"lies 1e\+09 mm from the scanner's centre"),
        ({"vox_offset": ("<f", 108, 0.0)}, "its voxels begin at byte 0, within its header"),
    ],
)
def test_a_field_that_readers_take_differently_is_refused(
    tmp_path: Path, fields: dict[str, tuple[str, int, Any]], message: str
) -> None:
    with pytest.raises(BadInput, match=rf"a\.nii: {message}.*\. (Correct its header|Replace it or take it out)\.$"):
        open_volume(changed(tmp_path / "a.nii", **fields))


def test_a_qform_that_is_no_turn_is_a_remark_where_the_sform_counts(tmp_path: Path) -> None:
    path = changed(tmp_path / "a.nii", code=("<h", 252, 1), quatern=("<f", 256, 5.0))
    [(what, remedy)] = header_remarks(open_volume(path))
    assert what.startswith("has a qform that makes no sense")
    assert remedy.startswith("The sform counts")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_number_format_that_contradicts_itself_and_leaves_bytes_over_is_refused(tmp_path: Path, suffix: str) -> None:
    data = changed(tmp_path / "a.nii", datatype=("<h", 70, 2)).read_bytes()  # uint8, but bitpix is 16
    path = tmp_path / f"b{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == ".nii.gz" else data)
    with pytest.raises(BadInput, match="its datatype and bitpix contradict each other, and 120 bytes are left over"):
        read_voxels(open_volume(path))
    right = changed(tmp_path / "c.nii", bitpix=("<h", 72, 8))  # a program's mistake, and nothing is left over
    assert read_voxels(open_volume(right)).dtype == np.int16
