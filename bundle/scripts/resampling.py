"""How does a slice come to another in-plane spacing, and back?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


class Resampling(Protocol):
    """In which order slices are resampled and normalised; its `repr` tells prepared cases apart."""

    def __call__(self, slices: Tensor, size: Sequence[int], normalise: Callable[[Tensor], Tensor]) -> Tensor:
        """Return slices `(..., height, width)` of one channel at another size (cubic), normalised."""


@dataclass(frozen=True)
class ResampleThenNormalise:
    """nnU-Net v1's order, the paper's: edges stay sharp, since they are clipped after they were resampled."""

    def __call__(self, slices: Tensor, size: Sequence[int], normalise: Callable[[Tensor], Tensor]) -> Tensor:
        """See `Resampling`."""
        return normalise(resample_slices(slices, size, order=3))


@dataclass(frozen=True)
class NormaliseThenResample:
    """nnU-Net v2's order; what the spline overshoots beyond a slice's own range is cut off, as there."""

    def __call__(self, slices: Tensor, size: Sequence[int], normalise: Callable[[Tensor], Tensor]) -> Tensor:
        """See `Resampling`."""
        normalised = normalise(slices)
        low, high = normalised.amin(dim=(-2, -1), keepdim=True), normalised.amax(dim=(-2, -1), keepdim=True)
        return resample_slices(normalised, size, order=3).clamp(low, high)


def resampled_size(size: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]) -> list[int]:
    """Return the number of pixels along each axis at the target spacing, at least 1."""
    return [max(1, round(n * s / t)) for n, s, t in zip(size, spacing_mm, target_mm, strict=True)]


def resample_slices(slices: Tensor, size: Sequence[int], *, order: int) -> Tensor:
    """Resample slices to another size by a spline, as two matrix products.

    A spline is linear in the pixels, so that one dense matrix an axis holds all of it; the result is that of
    `skimage.transform.resize(order=order, mode="edge", anti_aliasing=False)`, nnU-Net's way.

    Args:
        slices: `(..., height, width)` float, on any device.
        size: height and width wanted.
        order: of the spline; 1 linear, 3 cubic.
    """
    if list(slices.shape[-2:]) == list(size):
        return slices
    rows = spline_matrix(slices.shape[-2], size[0], order=order).to(slices)  # (height out, height in)
    columns = spline_matrix(slices.shape[-1], size[1], order=order).to(slices)  # (width out, width in)
    return rows @ slices @ columns.T


def spline_matrix(size_in: int, size_out: int, *, order: int) -> Tensor:
    """Return the matrix that resamples a line of pixels: `(size_out, size_in)` float32, rows add up to 1."""
    unit_pulses = np.eye(size_in)
    lines = ndimage.zoom(unit_pulses, (size_out / size_in, 1), order=order, mode="nearest", grid_mode=True)
    return torch.from_numpy(lines.astype(np.float32))


def resample_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resample label maps class by class: `(slices, height, width)` uint8 to the same with another size.

    A pixel takes the class whose linearly resampled mask is at least 1/2 there, as in nnU-Net's `resize_segmentation`.
    """
    if list(labels.shape[-2:]) == list(size):
        return labels
    resampled = torch.zeros((len(labels), *size), dtype=labels.dtype)
    for value in labels.unique().tolist():
        resampled[resample_slices((labels == value).float(), size, order=1) >= 0.5] = value
    return resampled
