"""Separable filters along a slice's axes: blur, and lower resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

POLE = math.sqrt(3) - 2  # of the cubic B-spline's inverse filter
REACH = 12  # pixels: |POLE|^12 is 1e-7, below what float32 resolves
BLOCK = 48  # rows of a matrix that are multiplied at once
TRUNCATE = 4  # standard deviations of a Gaussian that are all of it, as in scipy
SHARPNESS = -0.75  # of the cubic convolution, as in `torch.nn.functional.interpolate`


@dataclass(frozen=True)
class Band:
    """A matrix `(rows out, rows in)` that is 0 but for a band: only the band is held, and only it is multiplied."""

    blocks: tuple[Tensor, ...]  # of BLOCK rows each, `(BLOCK, width of the band)`
    starts: tuple[int, ...]  # where in the rows the blocks begin

    @classmethod
    def of(cls, places: np.ndarray, weights: np.ndarray) -> Band:
        """Return the matrix whose rows have these weights at these places: `(rows out, taps)` both.

        Of a place that a row names twice the weights add up.
        """
        every = np.arange(0, len(places), BLOCK)
        starts = np.minimum.reduceat(places.min(axis=1), every)
        ends = np.maximum.reduceat(places.max(axis=1), every) + 1
        width = int((ends - starts).max())
        starts = np.maximum(np.minimum(starts, ends.max() - width), 0)  # so that no block ends beyond the matrix
        offsets = torch.from_numpy(places - starts.repeat(BLOCK)[: len(places), None])
        rows = torch.zeros(len(places), width).scatter_add_(1, offsets, torch.from_numpy(weights.astype(np.float32)))
        return cls(rows.split(BLOCK), tuple(starts.tolist()))

    @property
    def rows(self) -> int:
        """The number of rows out."""
        return sum(map(len, self.blocks))

    def dense(self, columns: int) -> Tensor:
        """Return the whole matrix, `(rows out, columns)`."""
        whole = torch.zeros(self.rows, columns)
        for start, block, rows in zip(self.starts, self.blocks, whole.split(BLOCK), strict=True):
            rows[:, start : start + block.shape[1]] = block
        return whole

    def times(self, lines: Tensor, *, out: Tensor) -> None:
        """Write the product with `lines`, `(rows in, columns)` float32, to `out`, `(rows out, columns)`."""
        for start, block, rows in zip(self.starts, self.blocks, out.split(BLOCK), strict=True):
            torch.mm(block, lines[start : start + block.shape[1]], out=rows)


def filter_axes(image: Tensor, matrix: Callable[[int, int], Band], size: Sequence[int]) -> Tensor:
    """Return an image `(channels, width, height)` float32 brought to a size, each axis multiplied by its matrix.

    Args:
        image: as said.
        matrix: of an axis, by the number of pixels that it has and shall have.
        size: width and height wanted.
    """
    axes = list(zip(image.shape[1:], size, strict=True))
    matrices = {axis: matrix(*axis) for axis in set(axes)}  # most slices are square: one for both axes
    along_x, along_y = (matrices[axis] for axis in axes)
    half = torch.empty(along_x.rows, image.shape[2])
    filtered = torch.empty(len(image), along_x.rows, along_y.rows)
    for channel, result in zip(image, filtered, strict=True):
        along_x.times(channel, out=half)
        along_y.times(half.T, out=result.T)
    return filtered


def blur(image: Tensor, width: float) -> Tensor:
    """Return the image `(channels, width, height)` blurred by a Gaussian, its width the standard deviation in pixels.

    It is `scipy.ndimage.gaussian_filter`, but for rounding: the image is mirrored at its outer edge.
    """
    radius = int(TRUNCATE * width + 0.5)
    taps = np.arange(-radius, radius + 1)
    gaussian = np.exp(-0.5 * (taps / width) ** 2)
    gaussian /= gaussian.sum()

    def matrix(size: int, _: int) -> Band:
        places = (np.arange(size)[:, None] + taps) % (2 * size)
        return Band.of(np.minimum(places, 2 * size - 1 - places), np.broadcast_to(gaussian, places.shape))

    return filter_axes(image, matrix, image.shape[1:])


def lower_resolution(image: Tensor, zoom: float) -> Tensor:
    """Return the image `(channels, width, height)` made smaller by the nearest pixels, and large again by bicubic ones.

    It is `torch.nn.functional.interpolate` with `nearest-exact` to the rounded size and with `bicubic` back.
    """
    taps = np.arange(-1, 3)

    def matrix(size: int, _: int) -> Band:
        small = max(1, round(size * zoom))
        nearest = (2 * np.arange(small) + 1) * size // (2 * small)
        points = (np.arange(size) + 0.5) * small / size - 0.5
        below = np.floor(points).astype(np.int64)[:, None]
        places = nearest[np.clip(below + taps, 0, small - 1)]
        return Band.of(places, _cubic_convolution(points[:, None] - below - taps))

    return filter_axes(image, matrix, image.shape[1:])


def _cubic_convolution(distance: np.ndarray) -> np.ndarray:
    """Return the weight of a pixel at a distance of at most 2 (Keys, 1981)."""
    d = np.abs(distance)
    near = ((SHARPNESS + 2) * d - (SHARPNESS + 3)) * d**2 + 1
    weights: np.ndarray = np.where(d <= 1, near, SHARPNESS * (((d - 5) * d + 8) * d - 4))
    return weights


def mirrored(places: np.ndarray, size: int) -> np.ndarray:
    """Return which pixels stand for places beyond the border if the image is mirrored at its border pixels' centres."""
    places = places % max(2 * (size - 1), 1)
    inside: np.ndarray = np.minimum(places, np.abs(2 * (size - 1) - places))
    return inside


def cubic_spline(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels make up a line's cubic spline at some points, and their weights: `(points, taps)` both.

    Places may lie beyond the border; it is the caller's to say which pixels stand for them.
    """
    below = np.floor(points).astype(np.int64)[:, None]
    knots = np.arange(-1, 3)  # of the four coefficients that a point takes
    taps = np.arange(-1 - REACH, 3 + REACH)  # of the pixels that these take
    distance = np.abs(points[:, None] - below - knots)
    basis = np.where(distance < 1, 4 - 6 * distance**2 + 3 * distance**3, (2 - distance) ** 3) / 6
    return below + taps, basis @ inverse_filter(taps - knots[:, None])


def inverse_filter(distance: np.ndarray) -> np.ndarray:
    """Return what a pixel at this distance adds to a cubic spline's coefficient."""
    return np.where(np.abs(distance) <= REACH, math.sqrt(3) * POLE ** np.abs(distance), 0.0)
