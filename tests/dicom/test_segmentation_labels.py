from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import LABELS

pydicom = pytest.importorskip("pydicom", reason="pydicom isn't installed: pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="highdicom isn't installed: pip install '.[dicom]'")

from dicom_studies import write_series  # noqa: E402

from cyclic_committee.scripts.dicom.segmentation import write_segmentation  # noqa: E402
from cyclic_committee.scripts.dicom.segmentation_labels import read_segmentation  # noqa: E402
from cyclic_committee.scripts.dicom.series import DicomSeries, find_series  # noqa: E402
from cyclic_committee.scripts.runtime.errors import BadInput  # noqa: E402


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> DicomSeries:
    folder = tmp_path_factory.mktemp("series")
    write_series(folder, np.zeros((12, 10, 5)), np.diag([-2.0, -2.0, 3.0, 1.0]))
    [found] = find_series(folder).series
    return found


def label_map(*ids: int) -> np.ndarray:
    voxels = np.zeros((12, 10, 5), np.uint8)
    for place, number in enumerate(ids):
        voxels[2 * place : 2 * place + 2, 3 : 6 + place, 1:4] = number
    return voxels


@pytest.mark.parametrize("ids", [(1, 2, 3, 4), (1, 4), (4,), (3, 2)])
def test_what_was_written_is_read_whichever_organs_there_are(
    tmp_path: Path, series: DicomSeries, ids: tuple[int, ...]
) -> None:
    path = write_segmentation(label_map(*ids), series, LABELS, tmp_path / "seg.dcm")
    assert path is not None
    assert np.array_equal(read_segmentation(path, series, LABELS), label_map(*ids))


def test_labels_are_known_by_code_and_name_not_by_number(tmp_path: Path, series: DicomSeries) -> None:
    """A viewer may number otherwise: here the file's liver is the third label of those who read it."""
    path = write_segmentation(label_map(1, 4), series, LABELS, tmp_path / "seg.dcm")
    assert path is not None
    others = {"1": "pancreas", "2": "stomach", "3": "liver"}
    assert np.array_equal(read_segmentation(path, series, others), np.array([0, 3, 0, 0, 1])[label_map(1, 4)])


def test_sides_are_kept_apart(tmp_path: Path, series: DicomSeries) -> None:
    labels = {"2": "left_kidney", "5": "right_kidney", "7": "kidney"}
    path = write_segmentation(label_map(5, 2, 7), series, labels, tmp_path / "seg.dcm")
    assert path is not None
    assert np.array_equal(read_segmentation(path, series, labels), label_map(5, 2, 7))


def test_a_name_counts_where_the_code_is_unknown(tmp_path: Path, series: DicomSeries) -> None:
    path = write_segmentation(label_map(1, 4), series, LABELS, tmp_path / "seg.dcm")
    assert path is not None
    changed = pydicom.dcmread(path)
    for segment in changed.SegmentSequence:
        segment.SegmentedPropertyTypeCodeSequence[0].CodeValue = "85756007"  # tissue, as OHIF has it
        segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Tissue"
    changed.save_as(path)
    assert np.array_equal(read_segmentation(path, series, LABELS), label_map(1, 4))


def test_other_organs_are_passed_over_and_nothing_else_is_an_error(tmp_path: Path, series: DicomSeries) -> None:
    path = write_segmentation(label_map(1, 4), series, LABELS, tmp_path / "seg.dcm")
    assert path is not None
    found = read_segmentation(path, series, {"2": "pancreas"})
    assert np.array_equal(found == 2, label_map(1, 4) == 4)
    with pytest.raises(BadInput, match=r"seg\.dcm: none of its segments is one of spleen"):
        read_segmentation(path, series, {"1": "spleen"})


def test_a_segmentation_of_another_series_is_refused(tmp_path: Path, series: DicomSeries) -> None:
    write_series(tmp_path / "other", np.zeros((12, 10, 5)), np.eye(4))
    [other] = find_series(tmp_path / "other").series
    path = write_segmentation(label_map(1), other, LABELS, tmp_path / "seg.dcm")
    assert path is not None
    with pytest.raises(BadInput, match=r"seg\.dcm: no segmentation of"):
        read_segmentation(path, series, LABELS)
