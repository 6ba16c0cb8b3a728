from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd

from cyclic_committee.scripts.data.headers import grid_shift_mm
from cyclic_committee.scripts.data.volumes import (
    LabelIdsd,
    LoadVolumed,
    as_label_ids,
    case_name,
    label_ids,
    open_volume,
    read_image,
    read_voxels,
    require_same_grid,
)
from cyclic_committee.scripts.runtime.errors import BadInput

LOAD = "from cyclic_committee.scripts.data.volumes import LoadVolumed; LoadVolumed('image')"


def write(path: Path, voxels: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    voxels = np.zeros((6, 5, 4), np.int16) if voxels is None else voxels
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def truncated(path: Path) -> Path:
    write(path, np.random.default_rng(0).integers(-1000, 1000, (32, 32, 16)).astype(np.int16))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("name", "case"),
    [("a/train_000_0000.nii.gz", "train_000_0000"), ("b.nii", "b"), ("c.d.nii.gz", "c.d"), ("e.txt", "e.txt")],
)
def test_a_case_is_called_by_its_file(name: str, case: str) -> None:
    assert case_name(name) == case


def test_monais_readers_for_other_formats_say_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    assert "dicom" not in done.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.nii\.gz: no such file"):
        open_volume(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize("content", [b"", b"not a volume", b"\x1f\x8b broken"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.nii.gz"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"broken\.nii\.gz: not a readable NIfTI file"):
        open_volume(path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = truncated(tmp_path / "short.nii.gz")
    with pytest.raises(BadInput, match=r"short\.nii\.gz: damaged or truncated"):
        read_voxels(open_volume(path))
    with pytest.raises(BadInput, match=r"short\.nii\.gz: damaged or truncated"):
        LoadVolumed("image", image_only=True)({"image": str(path)})


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4, 2), (6, 5, 4, 1, 2)])
def test_only_three_dimensions_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "v.nii.gz", np.zeros(shape, np.int16))
    with pytest.raises(BadInput, match=r"v\.nii\.gz: has the shape .* expected three dimensions"):
        open_volume(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_voxel_that_is_no_number_is_named_with_its_place(tmp_path: Path, bad: float) -> None:
    voxels = np.zeros((6, 5, 4), np.float32)
    voxels[1, 2, 3] = bad
    path = write(tmp_path / "v.nii.gz", voxels)
    for read in (lambda: read_voxels(open_volume(path)), lambda: LoadVolumed("image")({"image": str(path)})):
        with pytest.raises(BadInput, match=r"v\.nii\.gz: 1 voxels are NaN or infinite, the first at \(1, 2, 3\)"):
            read()


def test_image_and_label_must_share_shape_and_affine(tmp_path: Path) -> None:
    image = open_volume(write(tmp_path / "image.nii.gz"))
    other = open_volume(write(tmp_path / "other.nii.gz", np.zeros((6, 5, 5), np.uint8)))
    moved = open_volume(write(tmp_path / "moved.nii.gz", affine=np.diag([1, 1, 1.5, 1])))
    nearly = open_volume(write(tmp_path / "nearly.nii.gz", affine=np.diag([1, 1, 1 + 1e-5, 1])))
    with pytest.raises(BadInput, match=r"other\.nii\.gz: has the shape \(6, 5, 5\), but its image .*image\.nii\.gz"):
        require_same_grid(image, other)
    with pytest.raises(BadInput, match=r"moved\.nii\.gz: its voxels lie up to 1\.5 mm from those of its image"):
        require_same_grid(image, moved)
    require_same_grid(image, nearly)


@pytest.mark.parametrize(("shift_mm", "tolerable"), [(0.09, True), (0.11, False)])
def test_a_tenth_of_a_voxel_is_the_same_grid(tmp_path: Path, shift_mm: float, tolerable: bool) -> None:
    image = open_volume(write(tmp_path / "image.nii.gz"))
    affine = np.eye(4)
    affine[0, 3] = shift_mm
    other = open_volume(write(tmp_path / "other.nii.gz", affine=affine))
    assert grid_shift_mm(image, other) == pytest.approx(shift_mm, abs=1e-6)
    if tolerable:
        require_same_grid(image, other)
    else:
        with pytest.raises(BadInput, match=r"other\.nii\.gz: its voxels lie up to 0\.11 mm"):
            require_same_grid(image, other)


def test_an_image_is_a_file_a_channel_or_one_file_with_channels(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4, 2)).astype(np.int16)
    together = write(tmp_path / "both.nii.gz", voxels)
    apart = [write(tmp_path / f"c_000{c}.nii.gz", voxels[..., c]) for c in range(2)]
    for files in (str(together), [together], apart):
        image, grid = read_image(files)
        assert np.array_equal(image, np.moveaxis(voxels, -1, 0))
        assert grid.shape[:3] == (6, 5, 4)
        loaded = Compose([LoadVolumed("image", image_only=True), EnsureChannelFirstd("image")])
        source = files if isinstance(files, str) else [str(file) for file in files]
        assert np.array_equal(np.asarray(loaded({"image": source})["image"]), image)


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "c_0000.nii.gz")
    with pytest.raises(BadInput, match=r"c_0001\.nii\.gz: has the shape"):
        read_image([one, write(tmp_path / "c_0001.nii.gz", np.zeros((6, 5, 5), np.int16))])


@pytest.mark.parametrize("labels", [{}, {"1": "a", 1: "b"}, {"0": "background"}, {"256": "far"}])
def test_labels_have_different_ids_that_a_byte_holds(labels: dict[object, str]) -> None:
    with pytest.raises(BadInput, match="labels must have different ids from 1 to 255"):
        label_ids(labels)


@pytest.mark.parametrize("voxels", [[0, 1, 7], [0, 1.5], [-1, 0], [0, 255]])
def test_unknown_label_ids_are_named(voxels: list[float]) -> None:
    with pytest.raises(BadInput, match=r"l\.nii: holds the label ids .*not in labels \(0, 1, 4\)"):
        as_label_ids(np.array(voxels), {"1": "liver", 4: "pancreas"}, "l.nii")


def test_known_label_ids_become_bytes() -> None:
    ids = as_label_ids(np.array([0.0, 1.0, 4.0]), {"1": "liver", 4: "pancreas"}, "l.nii")
    assert ids.dtype == np.uint8
    assert ids.tolist() == [0, 1, 4]


def test_a_loaded_reference_is_checked_against_the_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "label.nii.gz", np.full((3, 3, 3), 9, np.uint8))
    loaded = LoadVolumed("label", image_only=True)({"label": str(path)})
    with pytest.raises(BadInput, match=r"label\.nii\.gz: holds the label ids 9"):
        LabelIdsd("label", labels={"1": "liver"})(loaded)


@pytest.mark.parametrize("name", ["claims.nii.gz", "claims.nii"])
def test_memory_is_not_taken_on_the_word_of_a_header(tmp_path: Path, name: str) -> None:
    """69 bytes that claim 20 GB are refused by their size, when they are opened."""
    path = write(tmp_path / name)
    header = nib.load(path).header
    header.set_data_shape((3000, 3000, 1200))
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wb") as file:
        header.write_to(file)
    with pytest.raises(BadInput, match=rf"{name}: damaged or truncated \(its header claims 21.6 GB of voxels"):
        open_volume(path)


def test_a_voxel_that_is_too_large_for_single_numbers_is_named(tmp_path: Path) -> None:
    voxels = np.zeros((4, 3, 2))
    voxels[1, 2, 0] = 1e39
    with pytest.raises(BadInput, match=r"a\.nii: 1 voxels are NaN or infinite, the first at \(1, 2, 0\)"):
        read_image(write(tmp_path / "a.nii", voxels))


def test_labels_that_a_damaged_scale_factor_makes_0_of_are_named() -> None:
    tiny = np.array([0.0, 1e-30, 2e-30])
    with pytest.raises(BadInput, match="holds the label ids 1e-30, 2e-30, which are not in labels"):
        as_label_ids(tiny, {"1": "liver", "2": "kidney"}, "a.nii")
    assert as_label_ids(np.array([1e-9, 1e-9, 1 + 1e-9]), {"1": "liver"}, "a.nii").tolist() == [0, 0, 1]
