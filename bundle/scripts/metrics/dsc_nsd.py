"""DSC (Dice similarity coefficient) and NSD (normalised surface distance), as FLARE21 has them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
from monai.metrics.utils import get_code_to_measure_table
from numpy.typing import NDArray

from ..runtime.errors import BadInput

TOLERANCE_LIMIT_MM = 20  # FLARE22 and 23 use up to 7; the lines to look at grow with the square
CODE_BITS = (4, 2, 1)  # a corner's code has a bit for each voxel around it; so far apart are neighbours in x, y and z
INSIDE = 255  # the code of a corner with all 8 voxels in the mask


class OrganScore(NamedTuple):
    """One organ of one case: `dsc` is the Dice coefficient, `nsd` the surface Dice, both in [0, 1]."""

    label: int
    organ: str
    dsc: float
    nsd: float


class ScoreRow(TypedDict):
    """An `OrganScore` and the case it belongs to: a line of the score table."""

    case: str
    label: int
    organ: str
    dsc: float
    nsd: float


def as_rows(case: str, scores: Iterable[OrganScore]) -> list[ScoreRow]:
    """Put the case's name in front of its scores."""
    return [ScoreRow(case=case, label=s.label, organ=s.organ, dsc=s.dsc, nsd=s.nsd) for s in scores]


def organ_names(labels: Mapping[int, str] | Mapping[str, str]) -> dict[int, str]:
    """Return label id -> organ name; the keys of a JSON or YAML file may be strings. Raises `BadInput`."""
    try:
        names = {int(label): str(organ) for label, organ in labels.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise BadInput(f"labels must map label ids to organ names, such as {{1: liver}}, got {labels!r}.") from error
    if not names or min(names) < 1:
        raise BadInput(f"labels must hold one organ or more with ids from 1 on (0 is the background), got {labels!r}.")
    if len({*names.values()}) < len(labels):
        raise BadInput(f"labels must give every organ one id and a name of its own, got {labels!r}.")
    return names


def check_tolerance(tolerance_mm: float) -> None:
    """Raise `BadInput` for a tolerance that makes no sense."""
    if not 0 <= tolerance_mm <= TOLERANCE_LIMIT_MM:
        raise BadInput(f"tolerance_mm must be in [0, {TOLERANCE_LIMIT_MM}], got {tolerance_mm}.")


def dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Return twice the intersection over the sum of two boolean masks (x, y, z), in [0, 1].

    Two empty masks: 1. One empty mask: 0. Raises `BadInput` if the shapes differ.
    """
    prediction, reference = _masks(prediction, reference)
    voxels = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return float(2 * np.count_nonzero(prediction & reference) / voxels) if voxels else 1.0


def surface_dice(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    *,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float = 1.0,
) -> float:
    """Return the share of both surfaces that lies no further than `tolerance_mm` from the other one, in [0, 1].

    The normalised surface Dice (NSD) of FLARE21: surfaces are made of DeepMind's surface elements between the voxels
    (Nikolov et al., arXiv:1809.04430), weighted by their area; the outside of the volume is background.

    Args:
        prediction: boolean mask (x, y, z).
        reference: boolean mask (x, y, z).
        spacing_mm: size of a voxel along x, y and z.
        tolerance_mm: a distance of exactly the tolerance still counts as within.

    Two empty masks: 1. One empty mask: 0. Raises `BadInput` if the shapes differ, or for an impossible size.
    """
    prediction, reference = _masks(prediction, reference)
    check_tolerance(tolerance_mm)
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not np.all((spacing > 0) & np.isfinite(spacing)):
        raise BadInput(f"spacing_mm must be three numbers above 0, got {spacing_mm}.")
    if not prediction.any() or not reference.any():
        return float(prediction.any() == reference.any())

    masks = crop_to_foreground(prediction, reference)
    search = _plan_search(masks[0], spacing_mm=spacing, tolerance_mm=tolerance_mm)
    codes = [_corner_codes(mask, search) for mask in masks]
    surfaces = [np.flatnonzero(code - np.uint8(1) < INSIDE - 1) for code in codes]  # all but 0 and INSIDE
    elements, beyond = np.zeros((2, INSIDE + 1))  # how many there are of each code
    for code, surface, other in zip(codes, surfaces, surfaces[::-1], strict=True):
        elements += np.bincount(code[surface], minlength=INSIDE + 1)
        beyond += np.bincount(code[_beyond_tolerance(surface, other, search)], minlength=INSIDE + 1)
    area_of_code_mm2 = get_code_to_measure_table(spacing.tolist(), device="cpu")[0].numpy().astype(np.float64)
    return float((elements - beyond) @ area_of_code_mm2 / (elements @ area_of_code_mm2))


def organ_scores(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    *,
    labels: Mapping[int, str],
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float = 1.0,
) -> list[OrganScore]:
    """Score every organ of a label map (x, y, z) by the rules of FLARE21's evaluation, in the order of `labels`.

    An organ in neither map scores 1 and 1; an organ in only one of them 0 and 0. Labels that aren't in `labels` count
    as background. `spacing_mm` is the reference's, along x, y and z.
    """
    maps = crop_to_foreground(*_volumes(prediction, reference))
    scores = []
    for label, organ in labels.items():
        masks = crop_to_foreground(*(ids == label for ids in maps))
        nsd = surface_dice(*masks, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
        scores.append(OrganScore(label=label, organ=organ, dsc=dice(*masks), nsd=nsd))
    return scores


def crop_to_foreground(prediction: NDArray[Any], reference: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cut two volumes (x, y, z) to the smallest box with all that isn't 0 in either; views, empty if there is none."""
    yz = np.any(prediction, axis=0) | np.any(reference, axis=0)
    x = np.any(prediction, axis=(1, 2)) | np.any(reference, axis=(1, 2))
    occupied = [np.flatnonzero(line) for line in (x, yz.any(axis=1), yz.any(axis=0))]
    box = tuple(slice(places[0], places[-1] + 1) if places.size else slice(0) for places in occupied)
    return prediction[box], reference[box]


def _masks(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    prediction, reference = _volumes(prediction, reference)
    return prediction.astype(bool, copy=False), reference.astype(bool, copy=False)


def _volumes(prediction: NDArray[Any], reference: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    shapes = prediction.shape, reference.shape
    if shapes[0] != shapes[1] or len(shapes[0]) != 3:
        raise BadInput(
            f"prediction and reference must be volumes (x, y, z) of one shape, got {shapes[0]}, {shapes[1]}."
        )
    return prediction, reference


class _Search(NamedTuple):
    """Where the corners of a box's voxels lie in a flat array, and where to look for others within the tolerance.

    The box is divided into lines along one axis. Another corner is within the tolerance if it lies on a line that one
    of the `jumps` leads to, no more than the `limits` of that jump further along. Behind the corners of each axis so
    much is blank that a jump that leaves the box on one side ends in the blank of the other.
    """

    shape: tuple[int, ...]  # corners and blank along x, y and z
    order: Literal["C", "F"]  # of the flat array: the masks' own
    strides: tuple[int, ...]  # of the flat array
    axis: int  # along which the lines are
    reach: int  # steps along a line that may be within the tolerance
    jumps: list[int]  # between places in the flat array, the shortest distance first
    limits: list[int]  # in steps


def _plan_search(mask: NDArray[np.bool_], *, spacing_mm: NDArray[np.float64], tolerance_mm: float) -> _Search:
    reach = np.minimum(np.ceil(tolerance_mm / spacing_mm).astype(int), mask.shape)
    order: Literal["C", "F"] = "F" if mask.strides[0] < mask.strides[2] else "C"
    # long lines are few lines; but it is slow to walk along neighbours in memory, all lines at once
    axis = max((1, 2) if order == "F" else (0, 1), key=lambda candidate: reach[candidate])
    across = np.where(np.arange(3) == axis, 0, reach)
    shape = tuple(int(size) for size in np.array(mask.shape) + 1 + np.maximum(across, 1))
    strides = np.empty(shape, dtype=np.uint8, order=order).strides

    # In float64, and summed from x to z, as a distance transform does: that decides what is exactly at the tolerance
    squares = [(np.arange(-r, r + 1) * size) ** 2 for r, size in zip(across, spacing_mm, strict=True)]
    limits = np.full([len(square) for square in squares], -1)  # 1 along the lines' axis
    for step in range(reach[axis] + 1):
        squares[axis] = (np.array([step]) * spacing_mm[axis]) ** 2
        x, y, z = np.ix_(*squares)
        limits += np.sqrt(x + y + z) <= tolerance_mm
    lines = np.argwhere(limits >= 0) - across
    limits = limits[limits >= 0]
    nearest_first = np.argsort(-limits, kind="stable")
    jumps = (lines @ np.array(strides))[nearest_first]
    return _Search(shape, order, strides, axis, int(reach[axis]), jumps.tolist(), limits[nearest_first].tolist())


def _corner_codes(mask: NDArray[np.bool_], search: _Search) -> NDArray[np.uint8]:
    """Return for each corner which of the 8 voxels around it are in the mask: the codes of DeepMind's lookup table.

    Flat, and up to the last corner only. As lines end in blank, one shift of the whole array is a step for all voxels.
    """
    codes: NDArray[np.uint8] = np.zeros(math.prod(search.shape), dtype=np.uint8)
    voxels = tuple(slice(1, size + 1) for size in mask.shape)
    codes.reshape(search.shape, order=search.order)[voxels] = mask
    for stride, bits in zip(search.strides, CODE_BITS, strict=True):
        here = np.left_shift(codes[:-stride], bits, dtype=np.uint8)
        here |= codes[stride:]
        codes = here
    return codes


def _beyond_tolerance(surface: NDArray[np.intp], other: NDArray[np.intp], search: _Search) -> NDArray[np.intp]:
    """Return those places of a surface that are further than the tolerance from all places of the other one.

    Steps to the nearest place on the same line are counted once for the whole box, in two walks. Then only the lines
    around a place are left to look at, the nearest first, until it has found one. At 1 mm that is twice as fast as to
    look at every place within the tolerance, at 20 mm ten times as fast as a distance transform, and as exact.
    """
    nowhere = search.reach + 1
    steps = np.full(math.prod(search.shape), nowhere, dtype=np.min_scalar_type(nowhere + 1))
    steps[other] = 0
    layers = np.moveaxis(steps.reshape(search.shape, order=search.order), search.axis, 0)
    for walk in (layers, layers[::-1]):
        for before, here in itertools.pairwise(walk):
            np.minimum(here, before + 1, out=here)
    for jump, limit in zip(search.jumps, search.limits, strict=True):
        surface = surface[steps[surface + jump] > limit]
        if not surface.size:
            break
    return surface
