"""Straightening what lies on the slices of a tilted gantry: onto a grid with right angles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class StraightGrid:
    """A grid with right angles that covers a sheared one: the same slices, wide enough for all of them.

    A tilted gantry moves each slice sideways of the one before it. The slices stay where they are here, and what lies
    on one is moved within it, so that columns and rows stay columns and rows.

    Attributes:
        affine: from voxel indices to RAS mm.
        shape: `(x, y, z)`.
        offsets: `(slices, 2)`, to be added to a voxel's x and y for those on the sheared grid.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    offsets: np.ndarray

    @classmethod
    def of(cls, affine: np.ndarray, shape: tuple[int, ...]) -> StraightGrid:
        """Return the grid for a sheared one, whose x and y are at right angles."""
        x_axis, y_axis, step = affine[:3, :3].T
        normal = np.cross(x_axis, y_axis)
        straight = affine.copy()
        straight[:3, 2] = normal * (step @ normal) / (normal @ normal)
        sideways = np.linalg.solve(straight[:3, :3], step)[:2] * np.arange(shape[2])[:, None]  # (slices, 2), in voxels
        first = np.floor(sideways.min(axis=0) + 1e-6)
        added = np.ceil(sideways.max(axis=0) - 1e-6) - first
        straight[:3, 3] = (straight @ [*first, 0, 1])[:3]
        return cls(straight, (shape[0] + int(added[0]), shape[1] + int(added[1]), shape[2]), first - sideways)

    def resample(self, voxels: np.ndarray, *, order: int = 0, outside: float = 0) -> np.ndarray:
        """Return voxels `(x, y, z)` of the sheared grid on this one, of the same type.

        Args:
            voxels: labels, or numbers.
            order: 0 takes the nearest voxel, as labels want it; 1 interpolates linearly within a slice.
            outside: the value where there was none.
        """
        straight = np.empty(self.shape, voxels.dtype)
        how: Any = {"order": order, "mode": "grid-constant", "cval": outside}  # plain "constant" loses half of the rim
        for k, offset in enumerate(self.offsets):
            straight[:, :, k] = ndimage.affine_transform(
                voxels[:, :, k], np.ones(2), offset, output_shape=self.shape[:2], **how
            )
        return straight

    def write_nifti(self, path: Path) -> Path:
        """Write a NIfTI file of zeros on the grid, for its header."""
        image = nib.Nifti1Image(np.broadcast_to(np.uint8(0), self.shape), self.affine)
        header: Any = image.header
        header.set_xyzt_units("mm")
        header.set_sform(self.affine, code="scanner")
        header.set_qform(self.affine, code="scanner")
        nib.save(image, path)
        return path
