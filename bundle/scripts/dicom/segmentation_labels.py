"""Reading a DICOM segmentation as a label map on the grid of its series."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import

from ..runtime.errors import BadInput
from .codes import organ_code, shown_name
from .series import DicomSeries

highdicom, _ = optional_import("highdicom")


def read_segmentation(path: Path, series: DicomSeries, labels: Mapping[str, str]) -> np.ndarray:
    """Return the label map `(x, y, z)`, uint8 ids, on the series' grid.

    A segment's label is that whose code it has, else whose name, never that of its place among the segments. Segments
    that are none of the labels are passed over.

    Args:
        path: of the segmentation.
        series: that it refers to.
        labels: label id -> name.

    Raises:
        BadInput: unreadable, of another series, with segments that overlap, or without any of the labels.
    """
    ids = {}
    try:
        segmentation = highdicom.seg.segread(path)
        sources = [str(one.SeriesInstanceUID) for one in segmentation.get("ReferencedSeriesSequence") or []]
        if sources and series.uid not in sources:
            raise ValueError(f"it is of the series {sources[0]}")
        for segment in segmentation.SegmentSequence:
            label = label_of(segment, labels)
            if label is not None:
                ids[int(segment.SegmentNumber)] = label
        if ids:
            planes = segmentation.get_pixels_by_source_instance(
                [header.SOPInstanceUID for header in series.headers],
                segment_numbers=list(ids),
                combine_segments=True,
                ignore_spatial_locations=True,
                assert_missing_frames_are_empty=True,
            )  # (slices, rows, columns)
    except Exception as error:  # pydicom and highdicom raise many kinds of errors
        raise BadInput(f"{path}: no segmentation of {series.folder} ({error}). Take it out.") from error
    if not ids:
        names = ", ".join(labels.values())
        raise BadInput(f"{path}: none of its segments is one of {names}. Take it out, or name them so.")
    table = np.zeros(max(ids) + 1, np.uint8)
    for number, label in ids.items():
        table[number] = label
    return np.asarray(table[planes.transpose(2, 1, 0)])


def label_of(segment: Any, labels: Mapping[str, str]) -> int | None:
    """Return the id of the label that a segment is, or None."""
    by_code, by_name = {}, {}
    for label, name in labels.items():
        code = organ_code(name)
        side = code.side.value if code.side is not None else None
        region = code.region.value if code.region is not None else None
        by_code[(code.organ.scheme_designator, code.organ.value, side, region)] = int(label)
        by_name[folded(code.name)] = by_name[folded(name)] = int(label)
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    regions = segment.get("AnatomicRegionSequence") or []
    sides = modifiers(kind, "SegmentedPropertyTypeModifierCodeSequence")
    sides += [side for region in regions for side in modifiers(region, "AnatomicRegionModifierSequence")]
    region = regions[0].CodeValue if regions else None
    key = (kind.CodingSchemeDesignator, kind.CodeValue, sides[0] if sides else None, region)
    by_its_code = by_code.get(key)
    return by_name.get(folded(str(segment.get("SegmentLabel", "")))) if by_its_code is None else by_its_code


def modifiers(code: Any, keyword: str) -> list[str]:
    """Return the values of a code's modifiers, such as left."""
    return [str(one.CodeValue) for one in code.get(keyword) or []]


def folded(name: str) -> str:
    """Return a name as it is compared: Left kidney is left_kidney."""
    return shown_name(name).casefold()
