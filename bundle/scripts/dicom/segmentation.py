"""Writing a label map as a DICOM segmentation of its series."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.utils import optional_import
from nibabel.orientations import io_orientation, ornt_transform
from nibabel.spatialimages import SpatialImage

from ..data.headers import grid_shift_mm
from ..data.volumes import tolerable_shift_mm
from ..runtime.atomic_files import put_in_place, unfinished_path
from ..runtime.errors import BadInput
from .codes import OrganCode, organ_code
from .series import DicomSeries
from .source_tags import set_character_set, usable_source

highdicom, _ = optional_import("highdicom")
codes, _ = optional_import("pydicom.sr.codedict", name="codes")
generate_uid, _ = optional_import("pydicom.uid", name="generate_uid")

MAKER = "cyclic-committee"
SERIES_NUMBER = 1000  # added to the source's


def write_segmentation(
    label_map: np.ndarray,
    series: DicomSeries,
    labels: Mapping[Any, str],
    path: Path,
    *,
    algorithm: str = MAKER,
    version: str = "unknown",
) -> Path | None:
    """Write a label map as a DICOM segmentation that refers to its series; whole or not at all.

    Binary, one segment for each label that is in the map. The standard wants segments numbered from 1 without gaps, so
    a segment's number isn't its label's id: its name and code say what it is. Frames without any label are left out.

    Args:
        label_map: ids, `(x, y, z)` on the series' grid.
        series: the source, whose patient, study and frame of reference the segmentation has.
        labels: label id -> name; see `codes.organ_code`.
        path: of the file.
        algorithm: what made the label map, and `version`.
        version: of the algorithm.

    Returns:
        The file, or None if the map is empty: there are no segmentations without segments.

    Raises:
        ValueError: the label map isn't on the series' grid.
        BadInput: an id that isn't in `labels`; tags that the segmentation can't take over; can't be written.
    """
    shape = (int(series.headers[0].Columns), int(series.headers[0].Rows), len(series.headers))
    if label_map.shape != shape:
        raise ValueError(f"{path}: the label map has the shape {label_map.shape}, its series {shape}.")
    names = {int(label): name for label, name in labels.items()}
    ids = [int(label) for label in np.unique(label_map) if label != 0]
    if not ids:
        return None
    unknown = [label for label in ids if label not in names]
    if unknown:
        raise BadInput(f"{path}: label ids {unknown} have no name in labels. Give the labels of the label map.")
    numbers = np.zeros(ids[-1] + 1, np.uint8)
    numbers[ids] = np.arange(1, len(ids) + 1)
    segments = [
        describe_segment(organ_code(names[label]), label, number=number, algorithm=algorithm, version=version)
        for number, label in enumerate(ids, start=1)
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names without a family name, and the like
            made = highdicom.seg.Segmentation(
                pixel_array=numbers[label_map].transpose(2, 1, 0),  # (slices, rows, columns)
                segment_descriptions=segments,
                software_versions=version,
                **source_arguments(series),
            )
        made.SeriesDescription = f"{MAKER}: {', '.join(names[label] for label in ids)}"[:64]
        set_character_set(made)
    except Exception as error:  # highdicom and pydicom raise many kinds of errors on tags that they can't use
        raise BadInput(f"{path}: {series.files[0]} can't be referred to ({error}). Correct its tags.") from error
    return save(made, path)


def describe_segment(code: OrganCode, label: int, *, number: int, algorithm: str, version: str) -> Any:
    """Return highdicom's description of one segment."""
    described = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=code.name[:64],
        segmented_property_category=code.category,
        segmented_property_type=code.organ,
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=algorithm[:64], family=codes.cid7162.ArtificialIntelligence, version=version
        ),
        anatomic_regions=None if code.region is None else [code.region],
        display_color=highdicom.color.CIELabColor(*display_colour(label)),
    )
    if code.side is not None:
        place = described.AnatomicRegionSequence if code.region else described.SegmentedPropertyTypeCodeSequence
        modifier = "AnatomicRegionModifierSequence" if code.region else "SegmentedPropertyTypeModifierCodeSequence"
        setattr(place[0], modifier, [highdicom.sr.CodedConcept.from_code(code.side)])
    return described


def display_colour(label: int) -> tuple[float, float, float]:
    """Return the CIELab colour of a label: the same whichever others there are, and far from its neighbours'."""
    hue = label * np.pi * (3 - np.sqrt(5))  # the golden angle
    return 65.0, float(55 * np.cos(hue)), float(55 * np.sin(hue))


def source_arguments(series: DicomSeries) -> dict[str, Any]:
    """Return what highdicom's `Segmentation` wants to know of the source and of the maker, the same for all."""
    x_axis, y_axis, step = series.affine[:3, :3].T
    normal = np.cross(x_axis, y_axis)
    spacing_mm = float(abs(step @ normal) / np.linalg.norm(normal))  # not along a tilted gantry
    headers = [usable_source(header, spacing_mm) for header in series.headers]
    return {
        "source_images": headers,
        "specific_character_set": None,  # see `set_character_set`; the source's need not fit the labels' names
        "segmentation_type": "BINARY",
        "series_instance_uid": generate_uid(),
        "series_number": max(1, SERIES_NUMBER + int(headers[0].get("SeriesNumber") or 0)),
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": MAKER,
        "device_serial_number": "0",  # may not be missing
        "content_label": "SEGMENTATION",
        "pixel_measures": highdicom.PixelMeasuresSequence(
            pixel_spacing=headers[0].PixelSpacing,
            slice_thickness=headers[0].SliceThickness,
            spacing_between_slices=spacing_mm,
        ),
    }


def save(segmentation: Any, path: Path) -> Path:
    """Write a data set to a file, whole or not at all.

    Raises:
        BadInput: it can't be written.
    """
    unfinished = unfinished_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{path.parent}: can't be made ({error.strerror}). Choose another folder.") from error
    try:
        segmentation.save_as(unfinished)
        put_in_place(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise BadInput(f"{path}: can't be written ({error}). Make room, or choose another folder.") from error
    return path


def on_grid_of(series: DicomSeries, label_file: SpatialImage) -> np.ndarray:
    """Return a label map `(x, y, z)` on a series' grid, from a NIfTI file of the same voxels in any orientation.

    Raises:
        BadInput: its voxels aren't the series'.
    """
    shape = (int(series.headers[0].Columns), int(series.headers[0].Rows), len(series.headers))
    turn = ornt_transform(io_orientation(label_file.affine), io_orientation(series.affine))
    turned = label_file.as_reoriented(turn)
    grid = nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape), series.affine)
    if turned.shape != shape or grid_shift_mm(grid, turned) > tolerable_shift_mm(grid):
        raise BadInput(
            f"{label_file.get_filename()}: isn't on the grid of {series.folder}. Give the series' own labels."
        )
    return np.asanyarray(turned.dataobj)
