"""Corruptions of label maps, and the choice of the cases that get one.

Each of `CORRUPTIONS` is a pure function of a label map (x, y, z), the size of its voxels and a random generator.
Amounts are in mm, so that a corruption means the same at every spacing; on phantoms each leaves a mean DSC of 0.5 to
0.9. A corruption that can't change a label map, such as swapping a single organ, returns it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..runtime.errors import BadInput

Label = NDArray[np.uint8]
Spacing = tuple[float, float, float]

GROWTH_MM = (2.0, 5.0)
LOSS_MM = (2.0, 5.0)
WAVE_MM = (4.0, 7.0)  # root mean square along each axis
WAVE_LENGTH_MM = 18.0  # sd of the Gaussian that smooths the waves; shorter ones would fold and leave debris
WAY_OFF_MM = (6.0, 12.0)


class Corruption(Protocol):
    """One way of being wrong."""

    def __call__(self, label: Label, *, spacing_mm: Spacing, rng: np.random.Generator) -> Label:
        """Return a wrong label map (x, y, z); the right one is left as it is."""


def dilation(label: Label, *, spacing_mm: Spacing, rng: np.random.Generator) -> Label:
    """All organs grow by 2 to 5 mm into the background, as if outlined generously; where two meet, the nearer one."""
    inside = label > 0
    if not inside.any():
        return label.copy()
    distance_mm, nearest = _distance_mm(inside, spacing_mm)
    grown = label[tuple(nearest)]
    return np.where(distance_mm <= rng.uniform(*GROWTH_MM), grown, label)


def erosion(label: Label, *, spacing_mm: Spacing, rng: np.random.Generator) -> Label:
    """All organs shrink by 2 to 5 mm, as if outlined sparingly; of an organ no thicker its deepest voxels stay.

    The end of the volume is no border: an organ that is cut off there goes on outside.
    """
    loss_mm = rng.uniform(*LOSS_MM)
    shrunk = np.zeros_like(label)
    for organ in _organs(label):
        inside = label == organ
        if inside.all():
            return label.copy()
        depth_mm, _ = _distance_mm(~inside, spacing_mm)
        shrunk[inside & ((depth_mm > loss_mm) | (depth_mm == depth_mm.max()))] = organ
    return shrunk


def elastic(label: Label, *, spacing_mm: Spacing, rng: np.random.Generator) -> Label:
    """Borders are displaced by smooth random waves of 4 to 7 mm (root mean square along each axis)."""
    spacing = np.asarray(spacing_mm)
    places = np.indices(label.shape).astype(np.float32)
    wave_mm = rng.uniform(*WAVE_MM)
    for axis in range(3):
        noise = rng.standard_normal(label.shape, dtype=np.float32)
        wave = ndimage.gaussian_filter(noise, WAVE_LENGTH_MM / spacing, mode="wrap")  # no higher at the ends
        places[axis] += wave * (wave_mm / np.sqrt(np.mean(wave**2)) / spacing[axis])
    # what is displaced over the end of the volume goes on as it was at the end
    warped: Label = ndimage.map_coordinates(label, places, order=0, mode="nearest")
    return warped


def missing_organ(label: Label, *, spacing_mm: Spacing, rng: np.random.Generator) -> Label:
    """One organ of two or more is forgotten; the only one stays, since an empty label map misleads nobody."""
    organs = _organs(label)
    if len(organs) < 2:
        return label.copy()
    return np.where(label == rng.choice(organs), 0, label).astype(label.dtype)


def swapped_organs(label: Label, *, spacing_mm: Spacing, rng: np.random.Generator) -> Label:
    """Two organs have each other's ids."""
    organs = _organs(label)
    if len(organs) < 2:
        return label.copy()
    first, second = rng.choice(organs, 2, replace=False)
    id_of = np.arange(256, dtype=label.dtype)
    id_of[[first, second]] = second, first
    return id_of[label]


def shift(label: Label, *, spacing_mm: Spacing, rng: np.random.Generator) -> Label:
    """The whole label map lies 6 to 12 mm off in a random direction, in whole voxels and at least one of them.

    Background comes in at one end; what leaves at the other one is lost.
    """
    direction = rng.standard_normal(3)
    offset = rng.uniform(*WAY_OFF_MM) * direction / np.linalg.norm(direction) / spacing_mm  # in voxels
    steps = np.rint(offset).astype(int)
    if not steps.any():
        axis = np.abs(offset).argmax()
        steps[axis] = np.sign(offset[axis])
    pairs = [(step, size) for step, size in zip(steps.tolist(), label.shape, strict=True)]
    if any(abs(step) >= size for step, size in pairs):  # nothing would be left
        return label.copy()
    target = tuple(slice(max(step, 0), size + min(step, 0)) for step, size in pairs)
    source = tuple(slice(max(-step, 0), size + min(-step, 0)) for step, size in pairs)
    moved = np.zeros_like(label)
    moved[target] = label[source]
    return moved


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {
        "dilation": dilation,
        "erosion": erosion,
        "elastic": elastic,
        "missing_organ": missing_organ,
        "swapped_organs": swapped_organs,
        "shift": shift,
    }
)


def choose_corruptions(
    case_names: Sequence[str], *, share: float, corruptions: str | Sequence[str] = tuple(CORRUPTIONS), seed: int
) -> dict[str, str]:
    """Return the cases whose labels are to be corrupted, each with its corruption, sorted by name.

    They are `share * cases` in number, a half rounded up, and each corruption is given to as many as any other, or to
    one more. The order of `case_names` and of `corruptions` makes no difference.

    Raises:
        BadInput: a share outside of [0, 1]; an unknown corruption, one named twice, none at all.
    """
    corruptions = check_corruptions(corruptions)
    if not is_share(share):
        raise BadInput(f"share: must be in [0, 1], got {share}. Give the part of the cases to corrupt.")
    names = sorted(set(case_names))
    # as decimals: 0.145 of 100 are 14.5, which binary numbers make a little less, and 14 of it
    count = int((Decimal(str(share)) * len(names)).to_integral_value(ROUND_HALF_UP))
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(names))[:count].tolist()
    turns = rng.permutation(sorted(corruptions)).tolist()
    way_of = {names[case]: turns[turn % len(turns)] for turn, case in enumerate(chosen)}
    return dict(sorted(way_of.items()))


def corrupt_label(label: Label, *, corruption: str, spacing_mm: Spacing, seed: int | Sequence[int]) -> Label:
    """Return a label map (x, y, z) made wrong by one of `CORRUPTIONS`; as it was, if that one can't change it.

    Raises:
        BadInput: an unknown corruption.
    """
    check_corruptions(corruption)
    return CORRUPTIONS[corruption](label, spacing_mm=spacing_mm, rng=np.random.default_rng(seed))


def corrupt_somehow(
    label: Label, *, first: str, corruptions: str | Sequence[str], spacing_mm: Spacing, seed: int | Sequence[int]
) -> tuple[Label, str]:
    """Return a label map (x, y, z) made wrong by the first corruption that fits, and its name.

    A corruption fits if it changes the label map and leaves some of it. Where `first` doesn't, the others are drawn one
    after another; where none does, as with an empty label map, it stays as it is and the name is "".
    """
    others = sorted(set(check_corruptions(corruptions)) - {first})
    for corruption in (first, *np.random.default_rng(seed).permutation(others).tolist()):
        corrupted = corrupt_label(label, corruption=corruption, spacing_mm=spacing_mm, seed=seed)
        if corrupted.any() and not np.array_equal(corrupted, label):
            return corrupted, corruption
    return label.copy(), ""


def check_corruptions(corruptions: str | Sequence[str]) -> tuple[str, ...]:
    """Return names of corruptions; one alone may be a string. Raises `BadInput`: unknown, named twice, none."""
    given = (corruptions,) if isinstance(corruptions, str) else corruptions
    names = tuple(given) if isinstance(given, Sequence) else ()
    unknown = [name for name in names if name not in tuple(CORRUPTIONS)]
    if unknown or not names or len(set(names)) < len(names):
        known = ", ".join(CORRUPTIONS)
        raise BadInput(
            f"corruptions: must be one or more of {known}, each once, got {corruptions!r}. Correct --corruptions."
        )
    return names


def is_share(value: object) -> bool:
    """Return whether a value is a number in [0, 1]; True and False are none, although Python counts with them."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _organs(label: Label) -> list[int]:
    return [int(organ) for organ in np.unique(label) if organ]


def _distance_mm(mask: NDArray[np.bool_], spacing_mm: Spacing) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return how far each voxel's centre lies outside of the mask's nearest voxel (x, y, z), and which that is.

    Distances are to the surface of the voxel, not to its centre: 2 mm reach a neighbour if voxels are up to 4 mm wide.
    """
    nearest = ndimage.distance_transform_edt(~mask, sampling=spacing_mm, return_distances=False, return_indices=True)
    here: tuple[NDArray[np.int64], ...] = np.indices(mask.shape, sparse=True)
    squared = np.zeros(mask.shape)
    for axis, size_mm in enumerate(spacing_mm):
        squared += np.maximum(np.abs(here[axis] - nearest[axis]) * size_mm - size_mm / 2, 0) ** 2
    return np.sqrt(squared), nearest
