"""Plausibility check for Hounsfield units."""

from __future__ import annotations

import math

import numpy as np

SAMPLE = 1_000_000  # voxels that are enough for percentiles


def why_not_hu(voxels: np.ndarray, foreground: np.ndarray | None = None) -> str:
    """Return why a channel's values can't be HU, or nothing if they may be.

    A CT shows values on both sides of 0: air, lung and fat below, water and tissue above it. So it is none if

    - its values lie within 50: scaled to 0 to 1, or standardised;
    - less than 0.1 % of them are below 0: scaled to 0 to 255, or stored with an offset of 1024; or less than 0.5 %
      are above 0: an offset subtracted twice;
    - next to none are below -50, but 10 % or the labelled ones' median are above 500: an offset, with noisy air;
    - more than 5 % are below -1500 in more than one value: another scale.

    What is left out is the lowest 0.1 % and all that is equal to the highest of these: padding, whatever its value.
    Crops without air, windows cut off at -160 and 240, metal of 30,000 HU, lungs or bones as labels pass.

    Args:
        voxels: `(x, y, z)`; NaN and infinite ones are left out.
        foreground: of the same shape, where the label map shows a label.
    """
    part = sample(voxels.shape)
    values = voxels[part].astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return ""
    inside = finite & (values > np.percentile(values[finite], 0.1))
    real = values[inside]
    if real.size == 0:
        return f"every value is {values[finite][0]:g}"
    low, high, tissue = np.percentile(real, [0.1, 99.9, 90])
    if high - low < 50:
        return f"all values lie between {low:.3g} and {high:.3g}"
    if np.mean(real < 0) < 0.001:
        return f"no values lie below 0, all between {low:.4g} and {high:.4g}"
    if np.mean(real > 0) < 0.005:
        return f"no values lie above 0, all between {low:.4g} and {high:.4g}"
    labelled = [] if foreground is None else values[inside & foreground[part]]
    tissue = max(tissue, np.median(labelled)) if len(labelled) else tissue
    if low > -50 and tissue > 500:
        return f"tissue lies around {tissue:.0f} and nothing below {low:.0f}, as with an offset of 1024"
    deep = real[real < -1500]
    deep_values, counts = np.unique(deep, return_counts=True)
    if len(deep_values) > 1 and deep.size - counts.max() > 0.05 * real.size:
        return f"{deep.size / real.size:.0%} of the values lie below -1500, from {low:.0f} on"
    return ""


def sample(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return every so manieth voxel along each axis, so that about a million are left."""
    step = max(1, math.ceil((math.prod(shape) / SAMPLE) ** (1 / len(shape))))
    return (slice(None, None, step),) * len(shape)
