"""The plan of a data set: spacing, patch size, network and normalisation.

The rules are those of nnU-Net v1's planner for 2D networks (`ExperimentPlanner2D_v21`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.errors import BadInput
from .fingerprint import CaseFingerprint, ForegroundIntensities, foreground_intensities

ANISOTROPY = 3  # between slices against in the slice, in mm and in voxels: then slices count as thick
SMALLEST_MAP = 4  # pixels along an axis in the last stage
FIRST_FEATURES, MOST_FEATURES = 32, 480
PAPER_BATCH = 8
# What a batch of 50 takes in nnU-Net's 2D reference, in its unit: feature map pixels. The estimate counts 30 features
# in the first stage.
REFERENCE_COST, REFERENCE_BATCH, COUNTED_FEATURES = 19_739_648, 50, 30
MOST_OF_DATA = 0.05  # of all voxels that a batch may hold
CROPPED_AWAY = 0.75  # the median share that the crop to non-zero keeps, below which normalisation leaves zeros out
LARGEST_ZOOM = 0.85  # nnU-Net's loader: the cut is the patch divided by this
ELONGATED = 1.5  # longer than wide by this, and rotations are small
SLICE_AXES = {2: "RAS", 1: "RSA", 0: "ASR"}  # of x, y and z: the axis codes that put it last


@dataclass(frozen=True)
class Plan:
    """What a configuration needs to know about a data set; see `write_plan` for what each means."""

    cases: int
    orientation: str
    spacing_mm: tuple[float, float]
    spacing_range_mm: tuple[tuple[float, float], tuple[float, float]]
    slice_spacing_mm: float  # the median, for the reader
    median_size: tuple[int, int]  # at `spacing_mm`
    patch_size: tuple[int, int]
    crop_size: tuple[int, int]
    features: tuple[int, ...]
    strides: tuple[tuple[int, int], ...]
    batch_size: int
    planned_batch_size: int  # nnU-Net's own
    rotation_degrees: int
    channel_names: tuple[str, ...]
    intensities: tuple[ForegroundIntensities, ...]
    masked: bool  # most images were cropped a lot


def make_plan(cases: Sequence[CaseFingerprint], *, channel_names: Sequence[str], labels: Mapping[int, str]) -> Plan:
    """Return the plan for a data set.

    Raises:
        BadInput: no case shows any label; images too small for a network.
    """
    if not any(case.label_voxels for case in cases):
        raise BadInput("labels: no case shows any label. Check the label maps.")
    spacings_mm = np.array([case.spacing_mm for case in cases])  # (cases, 3)
    sizes = np.array([case.size for case in cases])
    target_mm = target_spacing_mm(spacings_mm, sizes)
    flat = np.median(sizes, axis=0) == 1  # single slices, however thin, are cut along their own axis
    across = max(range(3), key=lambda axis: (flat[axis], target_mm[axis], axis))  # slices: z if the axes are alike
    orientation = SLICE_AXES[across]
    in_plane = ["RAS".index(code) for code in orientation[:2]]
    median = np.median(spacings_mm / target_mm * sizes, axis=0).round().astype(int)  # voxels at the target
    size = (int(median[in_plane[0]]), int(median[in_plane[1]]))
    spacing_mm = (float(target_mm[in_plane[0]]), float(target_mm[in_plane[1]]))
    strides, patch_size = pooling(spacing_mm, size)
    planned = planned_batch_size(
        patch_size,
        strides,
        channels=len(channel_names),
        classes=len(labels) + 1,
        voxels=int(np.prod(median, dtype=np.int64)) * len(cases),
        slice_pixels=size[0] * size[1],
    )
    elongated = max(patch_size) / min(patch_size) > ELONGATED
    return Plan(
        cases=len(cases),
        orientation=orientation,
        spacing_mm=spacing_mm,
        spacing_range_mm=tuple((float(spacings_mm[:, a].min()), float(spacings_mm[:, a].max())) for a in in_plane),  # type: ignore[arg-type]
        slice_spacing_mm=float(np.median(spacings_mm[:, across])),
        median_size=size,
        patch_size=patch_size,
        crop_size=crop_size(patch_size, elongated=elongated),
        features=tuple(min(FIRST_FEATURES * 2**stage, MOST_FEATURES) for stage in range(len(strides) + 1)),
        strides=strides,
        batch_size=min(PAPER_BATCH, planned),
        planned_batch_size=planned,
        rotation_degrees=15 if elongated else 180,
        channel_names=tuple(channel_names),
        intensities=tuple(foreground_intensities(cases, channel) for channel in range(len(channel_names))),
        masked=bool(np.median([case.share_kept for case in cases]) < CROPPED_AWAY),
    )


def target_spacing_mm(spacings_mm: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the spacing to resample to, `(3,)`, from those of the cases, `(cases, 3)`: the median.

    Where one axis is coarse, in mm and in voxels, it takes the tenth percentile. In 2D nothing is resampled along that
    axis; it only decides, as in nnU-Net, which axis that is.
    """
    target: np.ndarray = np.median(spacings_mm, axis=0)
    size = np.median(sizes, axis=0)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarse]
    if target[coarse] > ANISOTROPY * target[others].max() and size[coarse] * ANISOTROPY < size[others].min():
        fine = float(np.percentile(spacings_mm[:, coarse], 10))
        target[coarse] = max(fine, target[others].max() + 1e-5)
    return target


def pooling(spacing_mm: Sequence[float], size: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], tuple[int, int]]:
    """Return the strides of the stages after the first, and the patch: the size, rounded up to what they divide.

    An axis is halved as long as 4 pixels remain, and as long as its pixels are less than twice as large as the
    other's.

    Raises:
        BadInput: the size is too small for any stride.
    """
    spacing, remaining = list(spacing_mm), list(size)
    strides: list[tuple[int, int]] = []
    while True:
        halved = [s / min(spacing) < 2 and n >= 2 * SMALLEST_MAP for s, n in zip(spacing, remaining, strict=True)]
        if sum(halved) == 1 and remaining[halved.index(True)] < 3 * SMALLEST_MAP:
            break
        if not any(halved):
            break
        stride = (2 if halved[0] else 1, 2 if halved[1] else 1)
        strides.append(stride)
        spacing = [s * step for s, step in zip(spacing, stride, strict=True)]
        remaining = [math.ceil(n / step) for n, step in zip(remaining, stride, strict=True)]
    if not strides:
        raise BadInput(f"images: {size[0]} x {size[1]} pixels are too few for a network. Use larger images.")
    divisors = [math.prod(stride[axis] for stride in strides) for axis in (0, 1)]
    patch = [math.ceil(n / divisor) * divisor for n, divisor in zip(size, divisors, strict=True)]
    return tuple(strides), (patch[0], patch[1])


def planned_batch_size(
    patch_size: Sequence[int],
    strides: Sequence[Sequence[int]],
    *,
    channels: int,
    classes: int,
    voxels: int,
    slice_pixels: int,
) -> int:
    """Return nnU-Net's batch size: what fits into the memory of its reference, at most 5 % of the data, at least 1.

    Args:
        patch_size: pixels.
        strides: of the stages after the first.
        channels: of the image.
        classes: background included.
        voxels: of the whole data set at the target spacing.
        slice_pixels: of a median slice.
    """
    pixels = patch_size[0] * patch_size[1]
    cost = pixels * (5 * COUNTED_FEATURES + channels + classes)  # 4 convolutions and the way up
    features, size = COUNTED_FEATURES, list(patch_size)
    for stage, stride in enumerate(strides, start=1):
        size = [n // step for n, step in zip(size, stride, strict=True)]
        features = min(2 * features, MOST_FEATURES)
        cost += (5 if stage < len(strides) else 2) * size[0] * size[1] * features
    fits = int(REFERENCE_COST * REFERENCE_BATCH / cost)
    return max(1, min(fits, round(MOST_OF_DATA * voxels / slice_pixels)))


def crop_size(patch_size: Sequence[int], *, elongated: bool) -> tuple[int, int]:
    """Return the size that is cut out before rotation and scaling, so that few borders come in."""
    long = [float(max(patch_size))] * 2  # a rotation by 90 degrees exchanges the axes
    if elongated:
        turn = math.radians(15)
        a, b = patch_size
        long = [a * math.cos(turn) + b * math.sin(turn), b * math.cos(turn) + a * math.sin(turn)]
    return int(long[0] / LARGEST_ZOOM), int(long[1] / LARGEST_ZOOM)
