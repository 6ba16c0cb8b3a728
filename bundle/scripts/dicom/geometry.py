"""The geometry of a DICOM series: whether its slices make a volume, and its affine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.headers import FARTHEST_MM
from ..data.volumes import TOLERABLE_SHIFT
from ..runtime.errors import BadInput
from .files import Header
from .pixels import stored_pixels

Slice = tuple[Path, Header]  # its file, and what it says but its pixels
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
NEEDED = ("SeriesInstanceUID", "SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", *GEOMETRY)
SAME_PLACE_MM = 0.01
ROUNDING_MM = 0.1  # positions may be rounded that much
SAME_DIRECTION = 1e-3  # of cosines


def position(header: Header) -> np.ndarray:
    """Return where the centre of a slice's first pixel lies, LPS mm."""
    return np.array([float(value) for value in header.ImagePositionPatient])


def plane_axes(header: Header) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions along which columns and rows are counted, unit vectors in LPS at right angles."""
    cosines = np.array([float(value) for value in header.ImageOrientationPatient])
    x_axis = cosines[:3] / np.linalg.norm(cosines[:3])
    y_axis = cosines[3:] - x_axis * (cosines[3:] @ x_axis)  # they are rounded, and ITK wants right angles
    return x_axis, y_axis / np.linalg.norm(y_axis)


def rescaling(header: Header) -> tuple[float, float]:
    """Return slope and intercept from stored values to HU, or to what an MR scanner means."""
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    return 1.0 if slope in (None, "") else float(slope), 0.0 if intercept in (None, "") else float(intercept)


def require_tags(file: Path, header: Header) -> None:
    """Raise `BadInput` unless a slice says all that is needed of it."""
    of_ct = ("RescaleSlope", "RescaleIntercept") if header.SOPClassUID == CT_IMAGE else ()
    missing = [tag for tag in (*NEEDED, *of_ct) if header.get(tag) in (None, "")]
    if not missing and re.fullmatch(r"[0-9][0-9.]*", str(header.SeriesInstanceUID)) is None:
        missing = ["valid SeriesInstanceUID"]  # files are named after it
    if missing:
        raise BadInput(f"{file}: has no {', '.join(missing)}. Export the series again, with all its tags.")
    cosines = np.array([float(value) for value in header.ImageOrientationPatient]).reshape(2, 3)
    if np.abs(cosines @ cosines.T - np.eye(2)).max() > SAME_DIRECTION or min(map(float, header.PixelSpacing)) <= 0:
        raise BadInput(
            f"{file}: ImageOrientationPatient {list(header.ImageOrientationPatient)} and PixelSpacing "
            f"{list(header.PixelSpacing)} make no grid. Correct its header."
        )
    if not np.isfinite([*rescaling(header), *position(header)]).all() or rescaling(header)[0] == 0:
        raise BadInput(f"{file}: has a position or rescaling that isn't finite, or a slope of 0. Correct its header.")
    farthest_mm = np.abs(position(header)).max()
    if farthest_mm > FARTHEST_MM:
        raise BadInput(f"{file}: lies {farthest_mm:.4g} mm from the scanner's centre. Correct its header.")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise BadInput(f"{file}: holds colours. Give the scanner's own series.")


def require_alike(slices: Sequence[Slice]) -> None:
    """Raise `BadInput` unless all slices have the size, spacing and direction of the first."""

    def grid(header: Header) -> tuple[list[float], ...]:
        return (
            [header.Columns, header.Rows],
            [float(value) for value in header.PixelSpacing],
            [float(value) for value in header.ImageOrientationPatient],
        )

    first, first_grid = slices[0][0], grid(slices[0][1])
    for file, header in slices[1:]:
        for what, one, other in zip(
            ("pixels", "mm a pixel", "as its directions"), grid(header), first_grid, strict=True
        ):
            if not np.allclose(one, other, rtol=SAME_DIRECTION, atol=SAME_DIRECTION):
                raise BadInput(
                    f"{file}: has {one} {what}, but {first} of the same series has {other}. "
                    "Give each its own series, or take out what doesn't belong to it."
                )


def without_duplicates(ordered: Sequence[Slice], normal: np.ndarray) -> list[Slice]:
    """Return slices, sorted by place, without those that are there twice.

    Raises:
        BadInput: two different ones at the same place.
    """
    kept: list[Slice] = []
    different: list[tuple[Path, Path]] = []
    for file, header in ordered:
        if not kept or (position(header) - position(kept[-1][1])) @ normal > SAME_PLACE_MM:
            kept.append((file, header))
        elif rescaling(header) != rescaling(kept[-1][1]) or not np.array_equal(
            stored_pixels(file, header), stored_pixels(*kept[-1])
        ):
            different.append((file, kept[-1][0]))
    if different:
        file, other = different[0]
        raise BadInput(
            f"{file}: lies where {other} of the same series lies, but is another image; {len(different)} of "
            f"{len(ordered)} slices do: several phases or echoes. "
            "Give each its own folder and SeriesInstanceUID, as by AcquisitionNumber."
        )
    return kept


def even_step(slices: Sequence[Slice], normal: np.ndarray) -> np.ndarray:
    """Return the way from one slice to the next, LPS mm.

    Raises:
        BadInput: they aren't evenly spaced, within a tenth of the distance or what rounding to 0.1 mm makes.
    """
    places = np.stack([position(header) for _, header in slices])  # (slices, 3)
    step = (places[-1] - places[0]) / (len(slices) - 1)
    off = places - (places[0] + np.arange(len(slices))[:, None] * step)
    along_mm, usual_mm = np.diff(places @ normal), float(np.median(np.diff(places @ normal)))
    tolerance_mm = min(max(ROUNDING_MM, TOLERABLE_SHIFT * usual_mm), usual_mm / 4)
    if np.abs(off @ normal).max() > tolerance_mm:
        widest = int(along_mm.argmax())
        raise BadInput(
            f"{slices[widest + 1][0]}: lies {along_mm[widest]:.4g} mm from the slice before it, "
            f"{slices[widest][0].name}, but most lie {usual_mm:.4g} mm apart: slices are missing, or the spacing "
            "changes. Fetch the whole series again, or resample it to even spacing."
        )
    sideways_mm = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    if sideways_mm.max() > tolerance_mm:
        raise BadInput(
            f"{slices[int(sideways_mm.argmax())][0]}: lies {sideways_mm.max():.4g} mm sideways of the line that the "
            "other slices make. Resample the series to a straight grid."
        )
    return np.asarray(step)
