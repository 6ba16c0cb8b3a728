"""Resampling of slices to the training's spacing, and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .filtering import Band, cubic_spline

Axis = tuple[np.ndarray, np.ndarray, np.ndarray]  # two neighbours of each pixel, and the share of the second


class Resampling(Protocol):
    """In which order slices are resampled and normalised; its `repr` tells prepared cases apart."""

    def __call__(self, slices: Tensor, size: Sequence[int], normalise: Callable[[Tensor], Tensor]) -> Tensor:
        """Return slices `(..., height, width)` of one channel at another size (cubic), normalised."""


@dataclass(frozen=True)
class ResampleThenNormalise:
    """nnU-Net v1's order, the paper's: edges stay sharp, since they are clipped after they were resampled."""

    def __call__(self, slices: Tensor, size: Sequence[int], normalise: Callable[[Tensor], Tensor]) -> Tensor:
        """Return slices resampled, then normalised."""
        return normalise(resample_slices(slices, size, order=3))


@dataclass(frozen=True)
class NormaliseThenResample:
    """nnU-Net v2's order; what the spline overshoots beyond a slice's own range is cut off, as there."""

    def __call__(self, slices: Tensor, size: Sequence[int], normalise: Callable[[Tensor], Tensor]) -> Tensor:
        """Return slices normalised, then resampled."""
        normalised = normalise(slices)
        low, high = normalised.amin(dim=(-2, -1), keepdim=True), normalised.amax(dim=(-2, -1), keepdim=True)
        return resample_slices(normalised, size, order=3).clamp(low, high)


def resampled_size(size: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]) -> list[int]:
    """Return the number of pixels along each axis at the target spacing, at least 1."""
    return [max(1, round(n * s / t)) for n, s, t in zip(size, spacing_mm, target_mm, strict=True)]


def resample_slices(slices: Tensor, size: Sequence[int], *, order: int) -> Tensor:
    """Resample slices to another size by a spline, as two matrix products.

    A spline is linear in the pixels, and a pixel reaches no further than some others: so a matrix an axis with a narrow
    band of numbers holds all of it. The result is that of `skimage.transform.resize(order=order, mode="edge",
    anti_aliasing=False)`, nnU-Net's way, to 1e-6 of the largest pixel.

    Args:
        slices: `(..., height, width)` float, on any device.
        size: height and width wanted.
        order: of the spline; 1 linear, 3 cubic.
    """
    if list(slices.shape[-2:]) == list(size):
        return slices
    rows, columns = (spline_band(n, m, order=order) for n, m in zip(slices.shape[-2:], size, strict=True))
    if slices.device.type != "cpu" or slices.dtype != torch.float32:  # few large products are better there
        return rows.dense(slices.shape[-2]).to(slices) @ slices @ columns.dense(slices.shape[-1]).to(slices).T
    down = slices.stride(-2) < slices.stride(-1)  # in memory, a column lies in one piece
    resampled = torch.empty(*slices.shape[:-2], *(size[::-1] if down else size))
    resampled = resampled.mT if down else resampled
    half = torch.empty(size[0], slices.shape[-1])
    for index in np.ndindex(slices.shape[:-2]):
        rows.times(slices[index], out=half)
        columns.times(half.T, out=resampled[index].T)
    return resampled


@functools.lru_cache(maxsize=8)  # the same for all slices of a volume
def spline_band(size_in: int, size_out: int, *, order: int) -> Band:
    """Return the matrix that resamples a line of pixels: `(size_out, size_in)`, rows add up to 1.

    Beyond the border the line goes on with its outermost pixels.
    """
    points = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    if order == 3:
        places, weights = cubic_spline(points)
    else:
        below = np.floor(points).astype(np.int64)
        places, share = np.stack((below, below + 1), axis=1), points - below
        weights = np.stack((1 - share, share), axis=1)
    return Band.of(np.clip(places, 0, size_in - 1), weights)


def resample_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resample label maps class by class: `(slices, height, width)` uint8 to the same with another size.

    A pixel takes the class whose linearly resampled mask is at least 1/2 there, the last one of two, as in nnU-Net's
    `resize_segmentation`, and 0 if there is none. Where the four pixels around it are of one class it is that; only the
    other places are computed.
    """
    if list(labels.shape[-2:]) == list(size):
        return labels
    resampled = np.zeros((len(labels), *size), np.uint8)
    axes = [_neighbours(n, m) for n, m in zip(labels.shape[1:], size, strict=True)]
    for label, result in zip(labels.numpy(), resampled, strict=True):
        if label.any():
            _resample_label(label, *axes, out=result)
    return torch.from_numpy(resampled)


def _neighbours(size_in: int, size_out: int) -> Axis:
    """Return the pixels on both sides of each resampled pixel of a line, and the share of the second."""
    points = ((np.arange(size_out) + 0.5) * size_in / size_out - 0.5).clip(0, size_in - 1)
    below = np.floor(points).astype(np.int64)
    return below, np.minimum(below + 1, size_in - 1), points - below


def _seeing(axis: Axis, shown: np.ndarray) -> slice:
    """Return the resampled pixels of a line that have a neighbour between the first and the last one that is shown."""
    first, last = np.flatnonzero(shown)[[0, -1]]
    return slice(np.searchsorted(axis[1], first), np.searchsorted(axis[0], last, side="right"))


def _resample_label(label: np.ndarray, rows: Axis, columns: Axis, *, out: np.ndarray) -> None:
    """Write what `resample_labels` makes of a label map `(height, width)` to `out`, which is 0."""
    part = [_seeing(axis, np.asarray(label.any(axis=across))) for axis, across in ((rows, 1), (columns, 0))]
    rows, columns = ((axis[0][p], axis[1][p], axis[2][p]) for axis, p in zip((rows, columns), part, strict=True))
    out = out[part[0], part[1]]  # organs take up a small part of most slices
    lines = [label[row] for row in rows[:2]]
    around = np.stack([np.take(line, column, axis=1) for line in lines for column in columns[:2]])  # (4, height, width)
    out[:] = around[0]
    x, y = (around[1:] != around[0]).any(axis=0).nonzero()
    classes = around[:, x, y]  # (4, places)
    shares = [(1 - share[at], share[at]) for share, at in ((rows[2], x), (columns[2], y))]
    weights = np.stack([row * column for row in shares[0] for column in shares[1]])
    masks = np.stack([(weights * (classes == one)).sum(axis=0) for one in classes])  # each one's class' there
    out[x, y] = np.where(masks >= 0.5, classes, 0).max(axis=0)
