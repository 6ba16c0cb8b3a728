"""Interpolation of rotated and scaled slices by cubic splines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .filtering import REACH, Band, cubic_spline, filter_axes, inverse_filter, mirrored

EDGE = 2  # pixels of coefficients beyond the border that a point on the border takes part in
STRIP = 128  # lines that are looked up at once: what is computed for them stays in the processor's cache


def sampling_points(size: Sequence[int], *, degrees: float, scale: float) -> tuple[Tensor, Tensor]:
    """Return where the pixels of a rotated and scaled patch lie: x and y, `(size)` each, in pixels from the centre."""
    x, y = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size)
    cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return (cos * x).float()[:, None] - (sin * y).float(), (sin * x).float()[:, None] + (cos * y).float()


def resample_image(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Evaluate an image's cubic spline: `(channels, width, height)` float32 at points in pixels from its centre.

    The spline is that of `scipy.ndimage.map_coordinates(order=3, mode="constant")`, but for places being rounded to
    float32, in less than half of its time. A point takes 4 x 4 coefficients; as all weights are positive, 2 x 2 linear
    lookups between coefficients do the same (Sigg and Hadwiger, Fast Third-Order Texture Filtering, GPU Gems 2, 2005).
    """
    coefficients = spline_coefficients(image)
    resampled = torch.empty(len(image), *x.shape)
    lookups = torch.empty(4, min(STRIP, len(x)), x.shape[1])  # the strips' own, in turn: new memory costs page faults
    for strip_x, strip_y, strip in zip(x.split(STRIP), y.split(STRIP), resampled.split(STRIP, dim=1), strict=True):
        _evaluate_spline(coefficients, strip_x, strip_y, lookups[:, : len(strip_x)], out=strip)
    return resampled


def scale_image(image: Tensor, size: Sequence[int], *, scale: float) -> Tensor:
    """Return what `resample_image` does at the `sampling_points` of no rotation: `(channels, *size)` float32.

    There the two axes are independent of each other, and a matrix each resamples them.
    """
    return filter_axes(image, partial(_scaling, scale=scale), size)


def _scaling(size: int, wanted: int, *, scale: float) -> Band:
    """Return the matrix that evaluates the cubic spline of a line of `size` pixels at `wanted` points."""
    points = scale * (np.arange(wanted) - (wanted - 1) / 2)
    inside = np.abs(points) <= (size - 1) / 2
    points += (size - 1) / 2
    places, weights = cubic_spline(points)
    return Band.of(mirrored(places, size), weights * inside[:, None])


def spline_coefficients(image: Tensor) -> Tensor:
    """Return the coefficients of an image's cubic B-splines: `(channels, width, height)` float32, and `EDGE` around.

    The image is mirrored at the centres of its border pixels. The inverse filter falls off so fast that `REACH` pixels
    are all of it; as a product with a band matrix it takes a fraction of the time of a recursive filter.
    """
    taps = np.arange(-REACH, REACH + 1)

    def matrix(size: int, _: int) -> Band:
        places = mirrored(np.arange(-EDGE, size + EDGE)[:, None] + taps, size)
        return Band.of(places, np.broadcast_to(inverse_filter(taps), places.shape))

    return filter_axes(image, matrix, image.shape[1:])


def resample_label(label: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Resample a label map class by class: `(width, height)` at points in pixels from its centre.

    A point takes the class whose linearly interpolated mask is at least 1/2 there, and 0 if there is none, as in
    nnU-Net v1. Where the four pixels around a point are of one class it is that; only the other points are computed.
    """
    if not label.any():
        return torch.zeros(x.shape, dtype=label.dtype)
    differ_x, differ_y = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    mixed = differ_x[:, 1:] | differ_y[1:] | differ_y[:-1]
    # between four pixels each; below 0 where they differ: torch's masks take ten times as long as arithmetic
    cells = label[:-1, :-1].float().sub_(mixed.float(), alpha=256)
    width, height = cells.shape
    points = torch.stack((y, x))
    points.mul_(torch.tensor([2 / (height - 1), 2 / (width - 1)])[:, None, None])
    classes = _look_up(cells[None], points, mode="nearest")[0]
    border = torch.from_numpy(np.flatnonzero((classes < 0).numpy()))  # torch's nonzero takes ten times as long
    resampled = torch.from_numpy(classes.clamp_(min=0).numpy().astype(label.numpy().dtype))
    resampled.view(-1)[border] = _class_between_four(label, x.flatten()[border], y.flatten()[border])
    return resampled


def _class_between_four(label: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return what `resample_label` does, at a list of points within the map."""
    places = [points + (n - 1) / 2 for points, n in zip((x, y), label.shape, strict=True)]
    low_x, low_y = (place.floor().clamp(0, n - 2) for place, n in zip(places, label.shape, strict=True))
    share_x, share_y = places[0] - low_x, places[1] - low_y
    corner = low_x.long() * label.shape[1] + low_y.long()
    steps = torch.tensor([[0], [1], [label.shape[1]], [label.shape[1] + 1]])
    classes = label.contiguous().view(-1)[corner + steps]  # (4, points)
    weights = torch.stack([wx * wy for wx in (1 - share_x, share_x) for wy in (1 - share_y, share_y)])
    masks = torch.stack([(weights * (classes == one)).sum(0) for one in classes])  # each corner's class' there
    return torch.where(masks >= 0.5, classes, 0).amax(0)


def _evaluate_spline(coefficients: Tensor, x: Tensor, y: Tensor, lookups: Tensor, *, out: Tensor) -> None:
    """Write the spline's values at points in pixels from the image's centre to `out`, `(channels, width, height)`.

    `lookups` is memory to work in: `(4, width, height)`.
    """
    width, height = (n - 2 * EDGE for n in coefficients.shape[1:])
    low_y, high_y, low_x, high_x = lookups
    share_x = _linear_lookups(x, width, low=low_x, high=high_x)
    share_y = _linear_lookups(y, height, low=low_y, high=high_y)
    # steps through the four: each pair of y and x without a copy
    low = _look_up(coefficients, lookups[0::2]).lerp_(_look_up(coefficients, lookups[1:3]), share_y)
    high = _look_up(coefficients, lookups[0::3]).lerp_(_look_up(coefficients, lookups[1::2]), share_y)
    torch.lerp(low, high, share_x, out=out)


def _linear_lookups(points: Tensor, size: int, *, low: Tensor, high: Tensor) -> Tensor:
    """Return the share of the upper two of a point's four coefficients; write to `low` and `high` where to look between
    the lower and the upper two, from -1 to 1 over all coefficients: each pair's weights are those of a linear
    interpolation there. Of a point outside of the image both are outside of the coefficients, where 0 is found.

    At the fraction t the four weights are (1 - t)^3, ..., t^3, the upper two add up to 1 + 3t + 3t^2 - 2t^3, all / 6.
    """
    unit = 2 / (size + 2 * EDGE - 1)
    one, three = torch.tensor(1.0), torch.tensor(3.0)
    place = points + (size - 1) / 2
    below = place.floor()
    t = place.sub_(below)
    below.sub_((size - 1) / 2).add_(functional.hardshrink(points, (size - 1) / 2), alpha=size).mul_(unit)
    upper = torch.addcmul(one, t, torch.addcmul(three, t, torch.add(three, t, alpha=-2)))
    torch.addcdiv(below, (1 - t).pow_(3), 6 - upper, value=-unit, out=low)
    torch.addcdiv(below.add_(unit), t.pow_(3), upper, value=unit, out=high)
    return upper.div_(6)


def _look_up(array: Tensor, points: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Return `(channels, width, height)` at points `(y and x, width, height)` from -1 to 1; 0 outside."""
    grid = points.permute(1, 2, 0)[None]
    return functional.grid_sample(array[None], grid, mode=mode, padding_mode="zeros", align_corners=True)[0]
