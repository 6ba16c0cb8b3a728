"""The NIfTI files that `predict` writes beside label maps, and the grid of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..data.volumes import open_image
from ..dicom.gantry_tilt import StraightGrid
from ..dicom.series import DicomSeries
from ..runtime.atomic_files import put_in_place, unfinished_path
from ..runtime.errors import BadInput


class Straightening:
    """What is written of a volume: as it is, or straightened where the gantry was tilted.

    Attributes:
        source: the file with the grid of what is written.
    """

    def __init__(self, source: str, series: DicomSeries | None, path: Path) -> None:
        """Take a volume's file and series; the straight grid, if there is one, becomes the file `path`."""
        tilted = series is not None and series.tilt_degrees > 0
        self.grid = StraightGrid.of(series.affine, open_image(source)[0].shape) if series and tilted else None
        self.source = source if self.grid is None else self.grid.write_nifti(path)

    def __call__(self, voxels: np.ndarray, **how: Any) -> np.ndarray:
        """Return voxels `(x, y, z)` on the grid of what is written; see `StraightGrid.resample`."""
        return voxels if self.grid is None else self.grid.resample(voxels, **how)


def write_map(voxels: np.ndarray, image_path: str | Path, path: Path, *, slope: float = 1.0) -> Path:
    """Write numbers `(x, y, z)` or `(x, y, z, channels)` to a NIfTI file on an image's grid, whole or not at all.

    Args:
        voxels: as they are stored.
        image_path: the image.
        path: of the file.
        slope: what the file says that they are to be multiplied with.

    Raises:
        BadInput: can't be written.
    """
    image = open_image(image_path)[0]
    header: Any = image.header.copy()
    header.set_data_dtype(voxels.dtype)
    header["cal_min"], header["cal_max"] = 0, 1
    unfinished = unfinished_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made: Any = type(image)(voxels, image.affine, header)
        made.header.set_slope_inter(slope, 0)
        nib.save(made, unfinished)
        put_in_place(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise BadInput(f"{path}: can't be written ({error}). Make room, or choose another --out.") from error
    return path
