"""How well does a label map agree with its reference?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypedDict

import numpy as np
from monai.metrics.utils import get_code_to_measure_table
from numpy.typing import NDArray

from .errors import BadInput

TOLERANCE_LIMIT_MM = 20  # FLARE22 and 23 use up to 7; the places to look at grow with the cube


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

    masks = _crop_to_union(prediction, reference)
    area_of_code, code_kernel = (table.numpy() for table in get_code_to_measure_table(spacing.tolist(), device="cpu"))
    codes = [_neighbour_codes(mask, kernel=code_kernel.reshape(2, 2, 2)) for mask in masks]
    surfaces = [(code > 0) & (code < 255) for code in codes]  # neither outside nor inside with all 8 voxels
    area = area_within = 0.0
    for code, surface, other in zip(codes, surfaces, surfaces[::-1], strict=True):
        areas_mm2 = area_of_code[code[surface]].astype(np.float64)  # (elements,)
        within = _is_near(surface, other, spacing_mm=spacing, tolerance_mm=tolerance_mm)
        area += areas_mm2.sum()
        area_within += areas_mm2[within].sum()
    return float(area_within / area)


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
    scores = []
    for label, organ in labels.items():
        masks = prediction == label, reference == label
        nsd = surface_dice(*masks, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
        scores.append(OrganScore(label=label, organ=organ, dsc=dice(*masks), nsd=nsd))
    return scores


def _masks(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    shapes = np.shape(prediction), np.shape(reference)
    if shapes[0] != shapes[1] or len(shapes[0]) != 3:
        raise BadInput(
            f"prediction and reference must be volumes (x, y, z) of one shape, got {shapes[0]}, {shapes[1]}."
        )
    return np.asarray(prediction, dtype=bool), np.asarray(reference, dtype=bool)


def _crop_to_union(*masks: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Cut non-empty masks to their common bounding box, with one background voxel around it to close the surfaces."""
    union = np.logical_or.reduce(masks)
    box = []
    for axis in range(union.ndim):
        inside = np.flatnonzero(union.any(axis=tuple({*range(union.ndim)} - {axis})))
        box.append(slice(inside[0], inside[-1] + 1))
    return [np.pad(mask[tuple(box)], 1) for mask in masks]


def _neighbour_codes(mask: NDArray[np.bool_], *, kernel: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return for each corner where 8 voxels meet which of them are inside, one bit each: (x - 1, y - 1, z - 1)."""
    code = np.zeros([size - 1 for size in mask.shape], dtype=np.uint8)
    for corner in np.ndindex(kernel.shape):
        neighbour = mask[tuple(slice(start, start + size) for start, size in zip(corner, code.shape, strict=True))]
        code += neighbour * np.uint8(kernel[corner])
    return code


def _is_near(
    surface: NDArray[np.bool_], other: NDArray[np.bool_], *, spacing_mm: NDArray[np.float64], tolerance_mm: float
) -> NDArray[np.bool_]:
    """Return for each element of one surface whether the other has one within the tolerance: (elements,).

    Only the places that the tolerance reaches are looked at, the nearest first: for 1 mm that is 60 times faster
    than a distance transform, and distances of whole voxels are as exact as there.
    """
    reach = np.minimum(np.ceil(tolerance_mm / spacing_mm).astype(int), surface.shape)
    steps = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    distances_mm = np.sqrt(((steps * spacing_mm) ** 2).sum(axis=1))
    steps = steps[np.argsort(distances_mm, kind="stable")[: np.count_nonzero(distances_mm <= tolerance_mm)]]

    padded = np.pad(other, [(r, r) for r in reach])  # so that no step leaves the array
    places = np.ravel_multi_index(tuple((np.argwhere(surface) + reach).T), padded.shape)
    near = np.zeros(len(places), dtype=bool)
    left = np.arange(len(places))
    for step in steps @ (np.array(padded.strides) // padded.itemsize):
        hit = padded.ravel()[places[left] + step]
        near[left[hit]] = True
        left = left[~hit]
        if not left.size:
            break
    return near
