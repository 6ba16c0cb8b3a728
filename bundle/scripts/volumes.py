"""How is a volume read, and what is refused?"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.transforms import LoadImaged, MapTransform
from nibabel.spatialimages import SpatialImage

from .errors import BadInput, find_bad_input

SUFFIXES = (".nii.gz", ".nii")
AFFINE_TOLERANCE_MM = 1e-3


def case_name(path: str | os.PathLike[str]) -> str:
    """Return a file's name without folder and NIfTI suffix."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.endswith(suffix)), name)


def open_volume(path: str | Path) -> SpatialImage:
    """Open a NIfTI file of three dimensions; its voxels stay on disk.

    Raises:
        BadInput: missing, unreadable, or not three-dimensional.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file. Check the path.")
    try:
        volume: Any = nib.load(path)
    except Exception as error:  # nibabel raises many kinds of errors on damaged files
        raise BadInput(f"{path}: not a readable NIfTI file ({error}). Replace it or take it out.") from error
    if len(volume.shape) != 3 or min(volume.shape) < 1:
        raise BadInput(f"{path}: has the shape {volume.shape}, expected three dimensions. Write one volume a file.")
    return volume


def read_voxels(volume: SpatialImage) -> np.ndarray:
    """Return a volume's voxels, scaled as its header says, in the file's own order: `(x, y, z)`.

    Raises:
        BadInput: truncated or damaged, NaN or infinite.
    """
    path = str(volume.get_filename())
    try:
        voxels = np.asanyarray(volume.dataobj)
    except Exception as error:  # zlib, EOFError, OSError, ...
        raise BadInput(f"{path}: damaged or truncated ({error}). Replace it or take it out.") from error
    require_finite_voxels(voxels, path)
    return voxels


def require_finite_voxels(voxels: np.ndarray, path: str | Path) -> None:
    """Raise `BadInput` if a voxel is NaN or infinite, with the first one's place."""
    if not np.issubdtype(voxels.dtype, np.inexact):
        return
    finite = np.isfinite(voxels)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        count = int((~finite).sum())
        raise BadInput(f"{path}: {count} voxels are NaN or infinite, the first at {where}. Mend the file.")


def require_same_grid(image: SpatialImage, label: SpatialImage) -> None:
    """Raise `BadInput` if an image and its label map differ in shape or affine."""
    if image.shape != label.shape:
        raise BadInput(
            f"{label.get_filename()}: has the shape {label.shape}, but its image {image.get_filename()} has "
            f"{image.shape}. Resample the label map onto the image's grid."
        )
    difference_mm = float(np.abs(image.affine - label.affine).max())
    if difference_mm > AFFINE_TOLERANCE_MM:
        raise BadInput(
            f"{label.get_filename()}: its affine differs from that of its image {image.get_filename()} by up to "
            f"{difference_mm:.4g}. Resample the label map onto the image's grid, or correct its header."
        )


def as_label_ids(voxels: np.ndarray, labels: Mapping[Any, str], path: str | Path) -> np.ndarray:
    """Return label ids as uint8.

    Raises:
        BadInput: an id that is neither 0 nor in `labels`, a number that isn't whole.
    """
    known = {0, *(int(label) for label in labels)}
    found = np.unique(voxels)
    unknown = [value for value in found.tolist() if value not in known]
    if unknown:
        raise BadInput(
            f"{path}: holds the label ids {', '.join(f'{value:g}' for value in unknown[:5])}, which are not in labels "
            f"({', '.join(str(label) for label in sorted(known))}). Correct the file, or labels in the configuration."
        )
    return voxels.astype(np.uint8)


class LoadVolumed(LoadImaged):
    """MONAI's `LoadImaged` for NIfTI volumes, with our checks: every error is one line that names the file."""

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        """Return the data with each key's path replaced by its volume, `(x, y, z)` MetaTensor."""
        opened = [open_volume(data[key]) for key in self.keys]
        for other in opened[1:]:
            require_same_grid(opened[0], other)
        try:
            loaded = super().__call__(data, reader)
        except Exception as error:
            if find_bad_input(error) is not None:
                raise
            names = ", ".join(str(data[key]) for key in self.keys)
            raise BadInput(f"{names}: damaged or truncated ({error}). Replace it or take it out.") from error
        for key in self.keys:
            require_finite_voxels(np.asarray(loaded[key]), data[key])
        return loaded


class LabelIdsd(MapTransform):
    """Refuse label maps with ids that the configuration doesn't know."""

    def __init__(self, keys: Any, *, labels: Mapping[Any, str]) -> None:
        super().__init__(keys)
        self.labels = dict(labels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data as they are.

        Raises:
            BadInput: see `as_label_ids`.
        """
        for key in self.keys:
            as_label_ids(np.asarray(data[key]), self.labels, data[key].meta["filename_or_obj"])
        return dict(data)
