"""The CT and MR series of a folder of DICOM files, and their voxels."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.utils import optional_import

from ..data.folders import files_below
from ..data.volumes import SUFFIXES as NIFTI
from ..data.volumes import TOLERABLE_SHIFT
from ..runtime.errors import BadInput
from .files import Header, read_headers, suffix_of
from .geometry import (
    CT_IMAGE,
    Slice,
    even_step,
    plane_axes,
    position,
    require_alike,
    require_tags,
    rescaling,
    without_duplicates,
)
from .pixels import require_decoder, stored_pixels

pydicom, _ = optional_import("pydicom")

IMAGES = (CT_IMAGE, "1.2.840.10008.5.1.4.1.1.4")  # CT and MR image storage: a file a slice
MULTI_FRAME = ("1.2.840.10008.5.1.4.1.1.2.", "1.2.840.10008.5.1.4.1.1.4.")  # what begins so holds many slices a file
BOLUS_PLACES = 3  # fewer than a volume that is worth a label
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes to NIfTI's
LARGEST: Mapping[Any, float] = {np.int16: 2**15 - 1, np.int32: 2**31 - 1, np.float32: float(np.finfo(np.float32).max)}
ROUNDED_MM = 0.15  # sideways from the first slice to the last: less is rounding to 0.1 mm, more is a gantry tilt


@dataclass(frozen=True)
class DicomSeries:
    """A series whose slices make a volume; its voxels are still on disk.

    Attributes:
        uid: SeriesInstanceUID.
        files: one a slice, along the normal of the slices: row direction x column direction.
        headers: of the files, without pixels.
        affine: from voxel indices (column, row, slice) to RAS mm; sheared where the gantry was tilted, else of right
            angles.
        tilt_degrees: of the gantry, 0 for none.
        notes: what a user should know of it, in a line each.
    """

    uid: str
    files: tuple[Path, ...]
    headers: tuple[Header, ...]
    affine: np.ndarray
    tilt_degrees: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that holds all of its files."""
        return Path(os.path.commonpath([file.parent for file in self.files]))

    def voxels(self) -> np.ndarray:
        """Return the voxels `(x, y, z)`, rescaled as the slices say: HU for CT.

        int16 if all are whole and fit, as in most CTs, else int32 or float32.

        Raises:
            BadInput: truncated or damaged pixel data; values that are too large.
        """
        scales = [rescaling(header) for header in self.headers]
        whole = all(float(value).is_integer() and abs(value) < 2**31 for scale in scales for value in scale)
        kinds = [*LARGEST] if whole else [np.float32]
        voxels = np.empty(0, kinds[0])
        for k, (slope, intercept) in enumerate(scales):
            stored = stored_pixels(self.files[k], self.headers[k]).astype(np.int64 if whole else np.float64)
            values = stored * (int(slope) if whole else slope) + (int(intercept) if whole else intercept)
            if k == 0:  # by now it is known that the file holds as much as its header claims
                voxels = np.empty((*stored.shape[::-1], len(self.files)), kinds[0], order="F")
            largest = max(-float(values.min()) - 1, float(values.max()))
            while kinds and largest > LARGEST[kinds[0]]:
                kinds.pop(0)
            if not kinds:
                raise BadInput(f"{self.files[k]}: rescaled, its values reach {largest:.4g}. Correct its RescaleSlope.")
            voxels = voxels.astype(kinds[0], copy=False)
            voxels[:, :, k] = values.T
        return voxels

    def write_nifti(self, path: Path) -> Path:
        """Write the voxels to a NIfTI file.

        Raises:
            BadInput: see `voxels`.
        """
        image = nib.Nifti1Image(self.voxels(), self.affine)
        header: Any = image.header
        header.set_xyzt_units("mm")
        header.set_sform(self.affine, code="scanner")
        nib.save(image, path)
        return path


@dataclass
class FoundSeries:
    """What a folder holds: series, what can't be used, a line each, and what was passed over, a line each."""

    series: list[DicomSeries] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def find_series(folder: Path) -> FoundSeries:
    """Return the CT and MR series that lie in a folder and the folders in it, however they are spread.

    See `group_series`. Linked folders are followed.
    """
    below = files_below(folder)
    found = group_series(folder, below.files)
    return FoundSeries(found.series, below.faults + found.faults, below.notes + found.skipped)


def group_series(folder: Path, files: Sequence[Path]) -> FoundSeries:
    """Return the CT and MR series that some of the files of a folder are.

    Each is checked, but for its pixel data. What isn't CT or MR, localizers, the slices of bolus tracking, and single
    slices of a study that has a series are passed over. Where a tilt of the gantry shifts the slices evenly sideways,
    the affine is sheared. Slices that are there twice are dropped.

    Faults name the file: multi-frame images, no decoder for the transfer syntax, missing tags, slices of other sizes
    or directions, different slices at one place (several phases), missing slices, one slice. A file that can't be read
    may be a slice of any series in its folder: none of these is returned.
    """
    found = FoundSeries()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that aren't as the standard wants them
        read = read_headers(file for file in files if not file.name.endswith(NIFTI))
        others = Counter(f"{suffix_of(file) or 'other'} files" for file in read.others)
        slices: dict[str, list[Slice]] = {}
        for file, header in read.headers:
            try:
                other = other_kind(file, header)
            except BadInput as error:
                found.faults.append(str(error))
                continue
            if other:
                others[other] += 1
            else:
                slices.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((file, header))
        lacking = {file.parent for file in read.unreadable}
        for uid, of_series in sorted(slices.items(), key=lambda item: len(item[1]) == 1):  # those last
            if is_bolus_tracking(of_series):
                others["slices of bolus tracking"] += len(of_series)
                continue
            studies = {series.headers[0].StudyInstanceUID for series in found.series}
            if len(of_series) == 1 and of_series[0][1].get("StudyInstanceUID") in studies:
                others["single slices"] += 1
                continue
            try:
                if lacking.isdisjoint(file.parent for file, _ in of_series):
                    found.series.append(make_series(uid, of_series))
            except BadInput as error:
                found.faults.append(str(error))
            except Exception as error:  # pydicom raises many kinds of errors when it comes to a tag that is damaged
                what = f"{of_series[0][0]}: its series has tags that make no sense ({error}). Export it again."
                found.faults.append(str(BadInput(what)))
    found.faults += unreadable_lines(read.unreadable, {file.parent for file, _ in read.headers})
    found.skipped += [f"{folder}: {number} x {kind}: passed over." for kind, number in sorted(others.items())]
    return found


def unreadable_lines(unreadable: Mapping[Path, str], held: Collection[Path]) -> list[str]:
    """Return a line for each folder with files that can't be read.

    Args:
        unreadable: file -> what is wrong with it.
        held: the folders that hold slices.
    """
    lines = []
    for folder in sorted({file.parent for file in unreadable}):
        first, *more = (line for file, line in unreadable.items() if file.parent == folder)
        lines.append(
            first
            + (f" So are {len(more)} more of its folder." if more else "")
            + (" No series of its folder is labelled: a slice may be missing." if folder in held else "")
            + (" Replace them or take them out." if more else " Replace it or take it out.")
        )
    return lines


def other_kind(file: Path, header: Header) -> str:
    """Return what a DICOM file is if it is no slice of a series, or nothing.

    Raises:
        BadInput: it holds many slices.
    """
    kind = str(header.SOPClassUID)
    if kind.startswith(MULTI_FRAME) and "Spectroscopy" not in kind:
        raise BadInput(
            f"{file}: is a multi-frame (Enhanced) image, which isn't read. "
            "Convert it to NIfTI or to single slices first, with dcm2niix or emf2sf."
        )
    if kind not in IMAGES:
        return str(header.get("Modality", "")) or pydicom.uid.UID(kind).name or "unknown"
    return "localizer" if "LOCALIZER" in (header.get("ImageType") or []) else ""


def is_bolus_tracking(slices: Sequence[Slice]) -> bool:
    """Return whether slices are those that a scanner takes of a few places again and again until contrast arrives."""
    instances = {str(header.get("SOPInstanceUID", "")): header for _, header in slices}
    try:
        places = {tuple(position(header).round(1)) for header in instances.values()}
    except Exception:  # pydicom raises many kinds of errors: tags that are missing or odd are named later
        return False
    return len(places) <= BOLUS_PLACES and len(places) < len(instances)


def make_series(uid: str, slices: Sequence[Slice]) -> DicomSeries:
    """Return the series that slices make, sorted and checked; see `find_series`.

    Raises:
        BadInput: they make no volume.
    """
    for file, header in slices:
        require_tags(file, header)
        require_decoder(file, header)
    require_alike(slices)
    x_axis, y_axis = plane_axes(slices[0][1])
    normal = np.cross(x_axis, y_axis)
    ordered = sorted(slices, key=lambda one: float(position(one[1]) @ normal))
    kept = without_duplicates(ordered, normal)
    if len(kept) < 2:
        raise BadInput(f"{kept[0][0]}: its series has one slice, which makes no volume. Give the whole series.")
    step = even_step(kept, normal)
    row_mm, column_mm = (float(value) for value in kept[0][1].PixelSpacing)  # between rows first
    straight = normal * (step @ normal)
    sideways_mm = float(np.linalg.norm(step - straight))
    tolerance_mm = max(ROUNDED_MM, TOLERABLE_SHIFT * min(row_mm, column_mm))
    tilted = sideways_mm * (len(kept) - 1) > tolerance_mm
    affine = np.eye(4)
    columns = [x_axis * column_mm, y_axis * row_mm, step if tilted else straight, position(kept[0][1])]
    affine[:3] = np.stack(columns, axis=1)
    files, headers = zip(*kept, strict=True)
    notes = []
    if len(kept) < len(slices):
        notes.append(f"{files[0].parent}: {len(slices) - len(kept)} slices are there twice and the same: dropped.")
    degrees = float(np.degrees(np.arctan2(sideways_mm, step @ normal))) if tilted else 0.0
    return DicomSeries(uid, files, headers, LPS_TO_RAS @ affine, degrees, tuple(notes))
