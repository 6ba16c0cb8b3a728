"""What does a slice show between its pixels?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

POLE = math.sqrt(3) - 2  # of the cubic B-spline's inverse filter
REACH = 12  # pixels: |POLE|^12 is 1e-7, below what float32 resolves
EDGE = 2  # pixels of coefficients beyond the border that a point on the border takes part in
BLOCK = 32  # pixels that are filtered at once
STRIP = 128  # lines that are resampled at once: larger arrays go back to the system, and new ones cost page faults


def sampling_points(size: Sequence[int], *, degrees: float, scale: float) -> tuple[Tensor, Tensor]:
    """Return where the pixels of a rotated and scaled patch lie: x and y, `(size)` each, in pixels from the centre."""
    x, y = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size)
    cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return (cos * x).float()[:, None] - (sin * y).float(), (sin * x).float()[:, None] + (cos * y).float()


def resample_image(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Evaluate an image's cubic spline: `(channels, width, height)` float32 at points in pixels from its centre.

    The spline is that of `scipy.ndimage.map_coordinates(order=3, mode="constant")`, but for places being rounded to
    float32, in half of its time. A point takes 4 x 4 coefficients; as all weights are positive, 2 x 2 linear lookups
    between coefficients do the same (Sigg and Hadwiger, Fast Third-Order Texture Filtering, GPU Gems 2, 2005).
    """
    coefficients = spline_coefficients(image)
    strips = zip(x.split(STRIP), y.split(STRIP), strict=True)
    return torch.cat([_evaluate_spline(coefficients, *strip) for strip in strips], dim=1)


def spline_coefficients(image: Tensor) -> Tensor:
    """Return the coefficients of an image's cubic B-splines: `(channels, width, height)` float32, and `EDGE` around.

    The image is mirrored at the centres of its border pixels. The inverse filter falls off so fast that `REACH` pixels
    are all of it; as a product of a band matrix with blocks of lines it takes half of the time of a recursive filter.
    """
    taps = math.sqrt(3) * POLE ** torch.arange(-REACH, REACH + 1, dtype=torch.float64).abs()
    band = torch.zeros(BLOCK, BLOCK + 2 * REACH)
    for line in range(BLOCK):
        band[line, line : line + len(taps)] = taps
    lines = functional.pad(image, [REACH + EDGE] * 4, mode="reflect")
    for _ in range(2):
        count = lines.shape[1] - 2 * REACH
        lines = functional.pad(lines, (0, 0, 0, -count % BLOCK))
        blocks = lines.unfold(1, BLOCK + 2 * REACH, BLOCK) @ band.T  # (channels, blocks, other axis, BLOCK)
        lines = blocks.transpose(1, 2).flatten(2)[..., :count]  # the axes change places: the other one's turn
    return lines


def resample_label(label: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Resample a label map class by class: `(width, height)` at points in pixels from its centre.

    A point takes the class whose linearly interpolated mask is at least 1/2 there, and 0 if there is none, as in
    nnU-Net v1. Where the four pixels around a point are of one class it is that; only the other points are computed.
    """
    differ_x, differ_y = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    mixed = differ_x[:, 1:] | differ_y[1:] | differ_y[:-1]
    cells = torch.where(mixed, -1.0, label[:-1, :-1].float())  # between four pixels each
    found = _look_up(cells[None], x, y, mode="nearest")[0]
    resampled = found.clamp(min=0).to(label.dtype)
    border = (found < 0).nonzero(as_tuple=True)
    resampled[border] = _class_between_four(label, x[border], y[border])
    return resampled


def _class_between_four(label: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return what `resample_label` does, at a list of points within the map."""
    places = [points + (n - 1) / 2 for points, n in zip((x, y), label.shape, strict=True)]
    low_x, low_y = (place.floor().clamp(0, n - 2) for place, n in zip(places, label.shape, strict=True))
    share_x, share_y = places[0] - low_x, places[1] - low_y
    low_x, low_y = low_x.long(), low_y.long()
    classes = torch.stack([label[low_x + right, low_y + up] for right in (0, 1) for up in (0, 1)])  # (4, points)
    weights = torch.stack([wx * wy for wx in (1 - share_x, share_x) for wy in (1 - share_y, share_y)])
    found = torch.zeros_like(classes[0])
    for value in classes.unique().tolist():
        found[(weights * (classes == value)).sum(0) >= 0.5] = value
    return found


def _evaluate_spline(coefficients: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the spline's values, `(channels, width, height)`, at points in pixels from the image's centre."""
    width, height = (n - 2 * EDGE for n in coefficients.shape[1:])
    share_x, low_x, high_x = _linear_lookups(x, width)
    share_y, low_y, high_y = _linear_lookups(y, height)
    low = torch.lerp(_look_up(coefficients, low_x, low_y), _look_up(coefficients, low_x, high_y), share_y)
    high = torch.lerp(_look_up(coefficients, high_x, low_y), _look_up(coefficients, high_x, high_y), share_y)
    outside = (x.abs() > (width - 1) / 2) | (y.abs() > (height - 1) / 2)
    return torch.lerp(low, high, share_x).masked_fill_(outside, 0)


def _linear_lookups(points: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the share of the upper two of a point's four coefficients, and where to look between the lower and the
    upper two: each pair's weights are those of a linear interpolation there.

    At the fraction t the four weights are (1 - t)^3, ..., t^3, the upper two add up to 1 + 3t + 3t^2 - 2t^3, all / 6.
    """
    place = points + (size - 1) / 2
    below = place.floor()
    t = place.sub_(below)
    rest = 1 - t
    upper = torch.addcmul(t, t, t).mul_(3).add_(1).sub_(t**3, alpha=2)  # in place: memory costs more than arithmetic
    below.sub_((size - 1) / 2)
    low = below - rest.pow_(3).div_(6 - upper)
    high = below.add_(1).add_(t.pow_(3).div_(upper))
    return upper.div_(6), low, high


def _look_up(array: Tensor, x: Tensor, y: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Return `(channels, width, height)` at points in pixels from its centre, 0 outside."""
    width, height = array.shape[1:]
    grid = torch.stack((y * (2 / (height - 1)), x * (2 / (width - 1)))).permute(1, 2, 0)
    return functional.grid_sample(array[None], grid[None], mode=mode, padding_mode="zeros", align_corners=True)[0]
