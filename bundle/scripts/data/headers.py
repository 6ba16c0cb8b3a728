"""What the header of a NIfTI file says: refused where it can't be true, remarked on where it contradicts itself."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.openers import Opener
from nibabel.spatialimages import SpatialImage

from ..runtime.errors import BadInput, size_text

ROUNDING_MM = 1e-3  # grids that are nearer to each other than this are the same
SIZES_AGREE = 0.01  # voxel sizes that differ by less of themselves are the same
DEFLATE = 1032  # as much smaller gzip's files may be than what is in them, and no more
PLAUSIBLE_MM = (1e-3, 100.0)  # from a micrometre, for microscopes, to a slab's thickness
FARTHEST_MM = 1e5  # of a voxel from the scanner's centre: 100 m, as no bed goes
LAST_FORM = 5  # of NIfTI's codes for spaces
UNITS = {1: "metres", 3: "micrometres"}  # of NIfTI's xyzt_units; 2 is mm, 0 unknown and taken for mm


def require_all_voxels(volume: SpatialImage, path: Path) -> None:
    """Raise `BadInput` unless voxels begin after the header, and a file is as large as it claims: that takes memory."""
    header: Any = volume.header
    stored: Any = volume.dataobj
    if stored.offset < getattr(header, "single_vox_offset", 0):  # nibabel takes 0 for the file's first byte
        raise BadInput(
            f"{path}: its voxels begin at byte {stored.offset}, within its header. Replace it or take it out."
        )
    number: Any = volume.get_data_dtype()
    claimed, held = math.prod(volume.shape) * number.itemsize, path.stat().st_size
    if claimed > held * (DEFLATE if path.name.endswith(".gz") else 1):
        raise BadInput(
            f"{path}: damaged or truncated (its header claims {size_text(claimed)} of voxels, and the file has "
            f"{size_text(held)}). Replace it or take it out."
        )


def stored_header(volume: SpatialImage) -> Any:
    """Return a file's header as it stands there: nibabel mends what it opens."""
    kind: Any = type(volume.header)
    with Opener(str(volume.get_filename())) as file:
        return kind.from_fileobj(file, check=False)


def require_number_width(volume: SpatialImage, unread: int) -> None:
    """Raise ValueError if a header says two widths of its numbers, and `unread` bytes are left by the one that is used.

    Some programs write a wrong bitpix, and datatype is right: then nothing is left.
    """
    number: Any = volume.get_data_dtype()
    if unread > 0 and stored_header(volume)["bitpix"] != 8 * number.itemsize:
        raise ValueError(f"its datatype and bitpix contradict each other, and {unread} bytes are left over")


def require_voxel_sizes(volume: SpatialImage) -> None:
    """Raise `BadInput` unless the header says how large the voxels are, in mm, and axes that span space."""
    header: Any = volume.header
    path, affine = str(volume.get_filename()), np.asarray(volume.affine)
    sizes = voxel_sizes(affine)
    stored = stored_header(volume)
    used = "sform_code" if stored["sform_code"] != 0 else "qform_code"
    if not 0 <= stored[used] <= LAST_FORM:  # nibabel takes it for 0, others for what is there
        raise BadInput(f"{path}: has a {used} of {stored[used]}, which means nothing. Correct its header.")
    if used == "qform_code":  # the affine is made from pixdim; nibabel has put 1 mm for 0 mm there already
        handedness, sizes = stored["pixdim"][0], stored["pixdim"][1:4]
        if stored[used] > 0 and handedness not in (-1, 0, 1):  # nibabel takes it for 1, others for its sign
            raise BadInput(f"{path}: has a pixdim[0] of {handedness:g}, which must be 1 or -1. Correct its header.")
    if not (np.isfinite(affine).all() and np.isfinite(sizes).all() and min(sizes) > 0):
        raise BadInput(f"{path}: has voxels of {in_mm(sizes)}. Correct its header.")
    unit = UNITS.get(int(header["xyzt_units"]) % 8)
    if unit is not None:
        raise BadInput(f"{path}: gives its voxels in {unit} (xyzt_units), and all is read as mm. Write it in mm.")
    require_plausible_sizes(sizes, path)
    if abs(np.linalg.det(affine[:3, :3] / voxel_sizes(affine))) < 1e-3:
        raise BadInput(f"{path}: has an affine whose axes don't span space. Correct its header.")
    require_near(affine, path)


def require_near(affine: np.ndarray, path: str | Path) -> None:
    """Raise `BadInput` if the first voxel lies where no scanner reaches: single numbers can't tell its neighbours."""
    farthest_mm = float(np.abs(affine[:3, 3]).max())
    if not farthest_mm <= FARTHEST_MM:
        raise BadInput(f"{path}: lies {farthest_mm:.4g} mm from the scanner's centre. Correct its header.")


def require_plausible_sizes(sizes_mm: np.ndarray, path: str | Path) -> None:
    """Raise `BadInput` if voxels have a size that no scanner gives: resampled, they would take all memory."""
    smallest, largest = PLAUSIBLE_MM
    if min(sizes_mm) < smallest or max(sizes_mm) > largest:
        raise BadInput(
            f"{path}: has voxels of {in_mm(sizes_mm)}, which can't be: from {smallest:g} to {largest:g} mm are taken. "
            "Correct its header."
        )


def header_remarks(volume: SpatialImage) -> list[tuple[str, str]]:
    """Return where a header contradicts itself, though the volume can be used: what is wrong, and what to do.

    All of this package takes nibabel's affine: the sform, where there is one, then the qform.
    """
    header: Any = volume.header
    used, said = voxel_sizes(volume.affine), np.asarray(header.get_zooms()[:3], float)
    remarks = []
    if not (np.abs(said - used) <= SIZES_AGREE * used).all():
        what = f"gives two voxel sizes: {in_mm(used)} by its affine, {in_mm(said)} by its pixdim"
        remarks.append((what, "The affine counts; correct it if it is the wrong one."))
    try:
        qform = header.get_qform(coded=True)[0] if header["sform_code"] > 0 else None
    except ValueError as error:
        remarks.append((f"has a qform that makes no sense ({error})", "The sform counts; write the header anew."))
        qform = None
    if qform is not None and np.isfinite(qform).all():
        apart_mm = _apart_mm(volume.affine, qform, volume.shape[:3])
        if apart_mm > max(ROUNDING_MM, SIZES_AGREE * used.min()):
            what = f"gives two places: its sform and its qform lie up to {apart_mm:.3g} mm apart"
            remarks.append((what, "The sform counts; correct it if it is the wrong one, as other programs may differ."))
    return remarks


def grid_shift_mm(image: SpatialImage, other: SpatialImage) -> float:
    """Return how far apart the two grids are where they differ most, at a corner; both have the same shape."""
    return _apart_mm(image.affine, other.affine, image.shape[:3])


def _apart_mm(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape))))
    return float(np.linalg.norm(apply_affine(affine, corners) - apply_affine(other, corners), axis=1).max())


def in_mm(spacing_mm: tuple[float, ...] | np.ndarray) -> str:
    """Return voxel sizes as a person writes them, such as `0.8 x 0.8 x 2.5 mm`."""
    return f"{' x '.join(f'{size:.4g}' for size in spacing_mm)} mm"
