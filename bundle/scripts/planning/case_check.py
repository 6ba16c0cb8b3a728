"""Checks of a single case: files, geometry, values, labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.imageglobals import logger
from nibabel.spatialimages import SpatialImage

from ..data.case_files import Case, Problem
from ..data.headers import ROUNDING_MM, grid_shift_mm, header_remarks
from ..data.hounsfield import why_not_hu
from ..data.volumes import load_voxels, open_volume, require_finite_voxels, require_same_grid, whole_numbers
from ..runtime.errors import BadInput

MOST_LABELS = 1000  # a file with more different numbers is an image
MOST_PLANES = 32  # that tell one image from another
MOST_NAMED = 5  # ids in a message


@dataclass(frozen=True)
class CaseFacts:
    """What was found in a case's files; None where they couldn't be read."""

    problems: tuple[Problem, ...]
    channels: int | None = None
    is_4d: bool = False
    spacing_mm: tuple[float, ...] | None = None  # along the file's axes
    at_origin: bool = False  # its first voxel, or the middle, lies at 0, as where a header was lost
    size: tuple[int, ...] | None = None
    voxels_digest: str | None = None  # of the image
    not_hu: tuple[str | None, ...] = ()  # of each channel: why its values can't be HU, empty if they may be
    label_voxels: dict[int, int] | None = None  # label id -> voxels

    @property
    def usable(self) -> bool:
        """Whether training takes the case."""
        return all(problem.usable for problem in self.problems)


def check_case(case: Case, *, labels: Mapping[int, str]) -> CaseFacts:
    """Read a case's files once each and return all that is wrong with them, and what else is known of them.

    Never raises for what is in the files.

    Args:
        case: of the data set.
        labels: label id -> name; empty if unknown: then any id from 0 to 255 is right.
    """
    problems: list[Problem] = []
    with silent_nibabel():
        opened = [_open(file, problems, may_have_channels=len(case.image) == 1) for file in case.image]
        label = _open(case.label, problems)
        grid = next((volume for volume in opened if volume is not None), None)
        if grid is not None:
            for other in (*opened, label):
                if other is not None and other is not grid:
                    _check_grid(grid, other, problems)
        label_voxels, foreground = (None, None) if label is None else _read_label(label, labels, problems)
        digest, not_hu = _read_image(opened, foreground, problems)
    if grid is None:
        return CaseFacts(tuple(problems), label_voxels=label_voxels)
    is_4d = len(grid.shape) == 4
    origins = (grid.affine[:3, 3], grid.affine[:3] @ [*((n - 1) / 2 for n in grid.shape[:3]), 1])
    return CaseFacts(
        problems=tuple(problems),
        channels=grid.shape[3] if is_4d else len(case.image),
        is_4d=is_4d,
        spacing_mm=tuple(voxel_sizes(grid.affine).tolist()),
        at_origin=any(np.abs(origin).max() < ROUNDING_MM for origin in origins),
        size=tuple(grid.shape[:3]),
        voxels_digest=digest,
        not_hu=not_hu,
        label_voxels=label_voxels,
    )


@contextmanager
def silent_nibabel() -> Iterator[None]:
    """Keep nibabel from printing what it mends in headers: what matters of that is among the problems."""
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def as_problem(error: BadInput, file: str | Path, *, usable: bool = False) -> Problem:
    """Return the parts of an error's line, "FILE: what is wrong. What to do."; the last sentence is the remedy.

    Args:
        error: of one file.
        file: that file: a name may hold colons and dots, too.
        usable: see `Problem`.
    """
    message, name = str(error), " ".join(str(file).split())
    fault = message.removeprefix(f"{name}: ")
    what, _, remedy = fault.rpartition(". ")
    return Problem(str(file), what, remedy, usable) if what else Problem(str(file), fault.rstrip("."), "", usable)


def _open(path: Path, problems: list[Problem], *, may_have_channels: bool = False) -> SpatialImage | None:
    try:
        volume = open_volume(path, may_have_channels=may_have_channels)
    except BadInput as error:
        problems.append(as_problem(error, path))
        return None
    problems += [Problem(str(path), what, remedy, usable=True) for what, remedy in header_remarks(volume)]
    return volume


def _check_grid(grid: SpatialImage, other: SpatialImage, problems: list[Problem]) -> None:
    file = str(other.get_filename())
    try:
        require_same_grid(grid, other)
    except BadInput as error:
        problems.append(as_problem(error, file))
        return
    shift_mm = grid_shift_mm(grid, other)
    if shift_mm > ROUNDING_MM:
        what = f"its voxels lie {shift_mm:.2g} mm beside those of its image {grid.get_filename()}"
        problems.append(Problem(file, what, "Nothing: it is taken to lie on the image's grid.", usable=True))


def _read_label(
    volume: SpatialImage, labels: Mapping[int, str], problems: list[Problem]
) -> tuple[dict[int, int] | None, np.ndarray | None]:
    """Return the voxels of each label id, and where there is any label: `(x, y, z)` bool."""
    file = str(volume.get_filename())
    voxels = _load(volume, problems)
    if voxels is None:
        return None, None
    voxels_of: dict[float, int] = {}
    for plane in np.moveaxis(voxels, -1, 0):
        shown = plane[plane != 0]
        voxels_of[0] = voxels_of.get(0, 0) + plane.size - shown.size
        values, counts = np.unique(whole_numbers(shown[np.isfinite(shown)]), return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            voxels_of[value] = voxels_of.get(value, 0) + count
        if len(voxels_of) > MOST_LABELS:
            what, remedy = f"holds more than {MOST_LABELS} different numbers", "Put the label map in place of an image."
            problems.append(Problem(file, what, remedy))
            return None, None
    problems += [Problem(file, *fault) for fault in _label_faults(voxels_of, labels)]
    return {int(value): voxels_of[value] for value in sorted(voxels_of) if value > 0 and value % 1 == 0}, voxels > 0


def _label_faults(voxels_of: Mapping[float, int], labels: Mapping[int, str]) -> list[tuple[str, str, bool]]:
    """Return what is wrong with a label map, what to do, and whether it is usable, from value -> voxels."""
    known = {0, *labels} if labels else set(range(256))
    broken = [value for value in voxels_of if value % 1 != 0]
    unknown = [value for value in voxels_of if value % 1 == 0 and value not in known]
    faults = []
    if broken:
        what = f"holds numbers that aren't whole: {_named(broken, voxels_of)}"
        faults.append((what, "Write it anew; resample label maps by nearest neighbour.", False))
    if unknown:
        which = "that no label has" if labels else "outside of 0 to 255"
        remedy = "Correct the file, or add them to the labels." if labels else "Give the labels ids from 1 to 255."
        faults.append((f"holds ids {which}: {_named(unknown, voxels_of)}", remedy, False))
    if set(voxels_of) == {0}:
        faults.append(("shows no label", "Take the case out if nobody annotated it.", True))
    return faults


def _named(values: list[float], voxels_of: Mapping[float, int]) -> str:
    more = f" and {len(values) - MOST_NAMED} more" if len(values) > MOST_NAMED else ""
    voxels = sum(voxels_of[value] for value in values)
    some = ", ".join(f"{value:g}" for value in sorted(values)[:MOST_NAMED])
    return f"{some}{more} ({voxels} voxel{'s' if voxels > 1 else ''})"


def _read_image(
    opened: list[SpatialImage | None], foreground: np.ndarray | None, problems: list[Problem]
) -> tuple[str | None, tuple[str | None, ...]]:
    """Return the digest of the voxels of all channels, None unless all were read, and why each can't be HU."""
    digest, whole = hashlib.blake2b(digest_size=16), True
    not_hu: list[str | None] = []
    for volume in opened:
        voxels = None if volume is None else _load(volume, problems)
        if voxels is None:
            whole = False
            not_hu.append(None)
            continue
        for channel in np.moveaxis(voxels, -1, 0) if voxels.ndim == 4 else [voxels]:
            fits = foreground is not None and foreground.shape == channel.shape
            not_hu.append(why_not_hu(channel, foreground if fits else None))
            digest.update(str(channel.shape).encode())
            planes = np.moveaxis(channel, -1, 0)
            for plane in planes[:: 1 + len(planes) // MOST_PLANES]:
                digest.update(plane.T.astype(np.float32).tobytes())
    return (digest.hexdigest() if whole else None), tuple(not_hu)


def _load(volume: SpatialImage, problems: list[Problem]) -> np.ndarray | None:
    """Return the voxels, also if some aren't finite: what else is wrong is to be told at once."""
    file = str(volume.get_filename())
    try:
        voxels = load_voxels(volume)
    except BadInput as error:
        problems.append(as_problem(error, file))
        return None
    try:
        require_finite_voxels(voxels, file)
    except BadInput as error:
        problems.append(as_problem(error, file))
    return voxels
