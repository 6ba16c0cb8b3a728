from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("highdicom", reason="DICOM needs pip install '.[dicom]'")

from conftest import LABELS
from dicom_studies import alter, write_series
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from test_series import AFFINES, AXIAL

from cyclic_committee.scripts.dicom.codes import organ_code
from cyclic_committee.scripts.dicom.segmentation import display_colour, on_grid_of, write_segmentation
from cyclic_committee.scripts.dicom.series import DicomSeries, find_series
from cyclic_committee.scripts.runtime.errors import BadInput

SHAPE = (20, 16, 9)
DCMQI = "dcmqi==1.5.7"
CODES = {"Liver": "10200004", "Kidney": "64033007", "Spleen": "78961009", "Pancreas": "15776009"}


def make_series(folder: Path, affine: np.ndarray = AXIAL, **tags: Any) -> DicomSeries:
    write_series(folder, np.zeros(SHAPE, np.int16), affine, **tags)
    found = find_series(folder)
    assert found.faults == []
    return found.series[0]


def some_labels(*ids: int) -> np.ndarray:
    """Boxes at random places, on other slices each, the first and the last slice empty."""
    label_map = np.zeros(SHAPE, np.uint8)
    rng = np.random.default_rng(1)
    for k, label in enumerate(ids):
        x, y, z = rng.integers(0, 12), rng.integers(0, 9), 1 + k
        label_map[x : x + 5, y : y + 6, z : z + 3] = label
        label_map[x, y, z] = 0
    assert {*np.unique(label_map)} == {0, *ids}
    return label_map


Found = tuple[dict[str, nib.Nifti1Image], list[dict[str, Any]]]  # images by the segments' names; what is said of them


@pytest.fixture(scope="session")
def dcmqi(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program of dcmqi, another library, that reads segmentations: in an environment of its own."""
    if found := shutil.which("segimage2itkimage"):
        return found
    folder = tmp_path_factory.mktemp("dcmqi")
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(folder / "bin" / "pip"), "install", "-q", DCMQI],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{DCMQI} can't be installed: {done.stderr.strip().splitlines()[-1]}")
    return str(folder / "bin" / "segimage2itkimage")


@pytest.fixture
def read_with_dcmqi(dcmqi: str, tmp_path: Path) -> Callable[[Path], Found]:
    def read(path: Path) -> Found:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        command = [dcmqi, "--inputDICOM", str(path), "--outputDirectory", str(folder), "--outputType", "nii"]
        subprocess.run(command, check=True, capture_output=True)
        described = json.loads(next(folder.glob("*meta.json")).read_text())
        segments = [segment for group in described["segmentAttributes"] for segment in group]
        images = {}
        for segment in segments:
            (file,) = folder.glob(f"*{segment['labelID']}.nii.gz")
            images[segment["SegmentLabel"]] = nib.load(file)
        return images, segments

    return read


def on_series(image: nib.Nifti1Image, series: DicomSeries) -> np.ndarray:
    """Whether a voxel of the series is in an image, which may be smaller and turned."""
    inside = np.zeros(SHAPE, bool)
    places = np.argwhere(np.asanyarray(image.dataobj) != 0)
    indices = nib.affines.apply_affine(np.linalg.inv(series.affine) @ image.affine, places)
    assert np.abs(indices - indices.round()).max() < 0.01
    inside[tuple(indices.round().astype(int).T)] = True
    return inside


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_another_library_finds_the_same_voxels_names_and_codes(
    read_with_dcmqi: Callable[[Path], Found], tmp_path: Path, affine: np.ndarray
) -> None:
    series, label_map = make_series(tmp_path / "series", affine), some_labels(1, 2, 3, 4)
    path = write_segmentation(label_map, series, LABELS, tmp_path / "seg.dcm")
    assert path == tmp_path / "seg.dcm"
    images, segments = read_with_dcmqi(path)
    assert {s["SegmentLabel"]: s["SegmentedPropertyTypeCodeSequence"]["CodeValue"] for s in segments} == CODES
    for label, name in LABELS.items():
        assert np.array_equal(on_series(images[name.capitalize()], series), label_map == int(label))


@pytest.mark.parametrize("ids", [(1, 4), (2,), (4, 3)], ids=str)
def test_names_follow_the_label_not_the_position(
    read_with_dcmqi: Callable[[Path], Found], tmp_path: Path, ids: tuple[int, ...]
) -> None:
    series, label_map = make_series(tmp_path / "series"), some_labels(*ids)
    path = write_segmentation(label_map, series, LABELS, tmp_path / "seg.dcm")
    assert path is not None
    written = dcmread(path)
    assert [segment.SegmentNumber for segment in written.SegmentSequence] == [*range(1, len(ids) + 1)]
    images, segments = read_with_dcmqi(path)
    names = [LABELS[str(label)].capitalize() for label in sorted(ids)]
    assert [segment["SegmentLabel"] for segment in segments] == names
    for segment in segments:
        assert segment["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == CODES[segment["SegmentLabel"]]
    for label in ids:
        assert np.array_equal(on_series(images[LABELS[str(label)].capitalize()], series), label_map == label)


def test_a_tilted_gantrys_frames_lie_where_the_slices_lie(tmp_path: Path) -> None:
    affine = AXIAL.copy()
    affine[1, 2] = 1.2
    series, label_map = make_series(tmp_path / "series", affine), some_labels(1)
    written = dcmread(write_segmentation(label_map, series, LABELS, tmp_path / "seg.dcm"))  # type: ignore[arg-type]
    places = {tuple(header.ImagePositionPatient): k for k, header in enumerate(series.headers)}
    frames = written.pixel_array
    for frame, about in zip(frames, written.PerFrameFunctionalGroupsSequence, strict=True):
        k = places[tuple(about.PlanePositionSequence[0].ImagePositionPatient)]
        assert np.array_equal(frame.T, label_map[:, :, k])
    assert len(frames) == 3


def test_it_refers_to_patient_study_frame_and_slices_of_its_series(tmp_path: Path) -> None:
    series = make_series(tmp_path / "series", patient_id="somebody", AccessionNumber="A7", SeriesNumber=4)
    label_map = some_labels(2, 3)
    path = write_segmentation(label_map, series, LABELS, tmp_path / "seg.dcm", algorithm="Own", version="1.2")
    written, source = dcmread(path), series.headers[0]  # type: ignore[arg-type]
    for tag in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "AccessionNumber", "StudyDate"):
        assert written[tag].value == source[tag].value
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    assert written.SeriesNumber == 1004
    (referred,) = written.ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == source.SeriesInstanceUID
    instances = {one.ReferencedSOPInstanceUID for one in referred.ReferencedInstanceSequence}
    assert instances == {header.SOPInstanceUID for header in series.headers}
    by_instance = {header.SOPInstanceUID: k for k, header in enumerate(series.headers)}
    number_of = {2: 1, 3: 2}
    for frame, about in zip(written.pixel_array, written.PerFrameFunctionalGroupsSequence, strict=True):
        (image,) = about.DerivationImageSequence[0].SourceImageSequence
        number = about.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        (label,) = [label for label, one in number_of.items() if one == number]
        assert np.array_equal(frame.T, label_map[:, :, by_instance[image.ReferencedSOPInstanceUID]] == label)
    assert_described(written.SegmentSequence[0])
    assert list(tmp_path.glob(".*")) == []


def assert_described(segment: Dataset) -> None:
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentAlgorithmName == "Own"
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "1.2"
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert len(segment.RecommendedDisplayCIELabValue) == 3


def test_an_empty_label_map_has_no_segmentation(tmp_path: Path) -> None:
    series = make_series(tmp_path / "series")
    assert write_segmentation(np.zeros(SHAPE, np.uint8), series, LABELS, tmp_path / "seg.dcm") is None
    assert not (tmp_path / "seg.dcm").exists()


def test_missing_and_odd_tags_of_the_patient_are_no_hindrance(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", np.zeros(SHAPE, np.int16), AXIAL)
    gone = ("PatientBirthDate", "AccessionNumber", "StudyID", "StudyTime", "SliceThickness", "SeriesNumber")
    for path in paths:
        alter(path, PatientSex="X", **dict.fromkeys(gone))
    (series,) = find_series(tmp_path / "series").series
    path = write_segmentation(some_labels(1), series, LABELS, tmp_path / "seg.dcm")
    assert dcmread(path).PatientSex == ""  # type: ignore[arg-type]
    assert series.headers[0].PatientSex == "X"


NAMES = {  # what is declared -> Python's name for it, and a name that needs it
    "ISO_IR 100": ("latin_1", "Müller^Jörg"),
    "ISO_IR 144": ("iso8859_5", "Люкceмбypг"),
    "ISO_IR 192": ("utf8", "王^小东"),
    "GB18030": ("gb18030", "王^小东"),
    "\\ISO 2022 IR 87": ("iso2022_jp", "Yamada^Tarou=山田^太郎"),
    "ISO 2022 IR 6\\ISO 2022 IR 87": ("iso2022_jp", "Yamada^Tarou=山田^太郎"),
    "\\ISO 2022 IR 149": ("euc_kr", "Hong^Gildong=洪^吉洞=홍^길동"),
    "\\ISO 2022 IR 58": ("gb2312", "Zhang^XiaoDong=张^小东"),
    # misspelt
    "ISO_IR 6": ("ascii", "Doe^Jane"),
    "UTF-8": ("utf8", "Müller^王"),
    "utf8": ("utf8", "Müller^王"),
    "ISO_IR_192": ("utf8", "Müller^王"),
    "ISO IR 192": ("utf8", "Müller^王"),
    "ISO-IR-192": ("utf8", "Müller^王"),
    "ISO 192": ("utf8", "Müller^王"),
    "iso_ir 144": ("iso8859_5", "Люкceмбypг"),
    "ISO_IR144": ("iso8859_5", "Люкceмбypг"),
    "ISO-8859-2": ("iso8859_2", "Dvořák^Čeněk"),
    "\\ISO2022IR87": ("iso2022_jp", "Yamada^Tarou=山田^太郎"),
    "NONSENSE": ("latin_1", "Müller^Jörg"),
}


@pytest.mark.filterwarnings("ignore")  # about character sets, while they are written
@pytest.mark.parametrize("declared", NAMES)
def test_names_in_any_character_set_are_kept(tmp_path: Path, declared: str) -> None:
    encoding, name = NAMES[declared]
    raw = name.encode(encoding)
    escape = {"euc_kr": b"\x1b$)C", "gb2312": b"\x1b$)A"}.get(encoding, b"")  # at the beginning and after ^ and =
    if escape:
        raw = re.sub(rb"(?<![\x80-\xff])(?=[\x80-\xff])", lambda found: escape, raw)
    raw, text = (value + b" " * (len(value) % 2) for value in (raw, declared.encode()))
    places = ("PatientName", "OtherPatientNames", "PatientComments", "StudyID")
    for path in write_series(tmp_path / "series", np.zeros(SHAPE, np.int16), AXIAL):
        alter(path, SpecificCharacterSet="#" * len(text), **dict.fromkeys(places, "@" * len(raw)))
        path.write_bytes(path.read_bytes().replace(b"#" * len(text), text).replace(b"@" * len(raw), raw))
    (series,) = find_series(tmp_path / "series").series
    path = write_segmentation(some_labels(1), series, LABELS, tmp_path / "seg.dcm")
    written = dcmread(path)  # type: ignore[arg-type]
    assert {tag: str(written[tag].value) for tag in places} == dict.fromkeys(places, name)
    assert written.get("SpecificCharacterSet") == (None if name.isascii() else "ISO_IR 192")


def test_labels_may_have_any_names(tmp_path: Path) -> None:
    series = make_series(tmp_path / "series", SpecificCharacterSet="ISO_IR 100")
    path = write_segmentation(some_labels(1, 2), series, {1: "肝臓", 2: "Größe"}, tmp_path / "seg.dcm")
    written = dcmread(path)  # type: ignore[arg-type]
    assert [segment.SegmentLabel for segment in written.SegmentSequence] == ["肝臓", "Größe"]
    kinds = [segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for segment in written.SegmentSequence]
    assert kinds == ["肝臓", "Größe"]
    assert "肝臓" in written.SeriesDescription


@pytest.mark.filterwarnings("ignore")  # about odd values, while they are written
@pytest.mark.parametrize(
    ("tag", "value", "expected"),
    [
        ("PatientBirthDate", "1981/03/02", "19810302"),
        ("PatientBirthDate", "1981.03.02", "19810302"),
        ("PatientBirthDate", "1981-03-02", "19810302"),
        ("PatientBirthDate", "19810302120000", "19810302"),
        ("PatientBirthDate", "1981-03-02T12:00", "19810302"),
        ("PatientBirthDate", "19810302", "19810302"),
        ("PatientBirthDate", "REMOVED", ""),
        ("PatientBirthDate", "02.03.1981", ""),
        ("PatientBirthDate", "19811302", ""),
        ("PatientBirthDate", "00000000", ""),
        ("PatientBirthDate", "1981", ""),
        ("StudyDate", "2020-01-02", "20200102"),
        ("StudyDate", "ANONYMIZED", ""),
        ("StudyTime", "10:15:00", "101500"),
        ("StudyTime", "10:15:00.25", "101500.25"),
        ("StudyTime", "1015", "1015"),
        ("StudyTime", "10:15", "1015"),
        ("StudyTime", "101500.123456789", "101500.123456"),
        ("StudyTime", "25:99", ""),
        ("StudyTime", "REMOVED", ""),
        ("PatientSex", "REMOVED", ""),
        ("PatientWeight", "REMOVED", None),
        ("PatientAge", "REMOVED", "REMOVED"),
    ],
)
def test_odd_values_of_the_patient_are_repaired_or_left_out(
    tmp_path: Path, tag: str, value: str, expected: str | None
) -> None:
    for path in write_series(tmp_path / "series", np.zeros(SHAPE, np.int16), AXIAL):
        slice_ = dcmread(path)
        raw = value.encode() + b" " * (len(value) % 2)
        slice_[tag] = RawDataElement(Tag(tag), dictionary_VR(tag), len(raw), raw, 0, False, True)
        slice_.save_as(path)
    (series,) = find_series(tmp_path / "series").series
    path = write_segmentation(some_labels(1), series, LABELS, tmp_path / "seg.dcm")
    assert dcmread(path).get(tag) == expected  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")  # about the odd value, while it is written
def test_a_series_number_that_is_none_is_no_hindrance(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "series", np.zeros(SHAPE, np.int16), AXIAL):
        path.write_bytes(path.read_bytes().replace(b"\x20\x00\x11\x00IS\x02\x001 ", b"\x20\x00\x11\x00IS\x02\x00x "))
    (series,) = find_series(tmp_path / "series").series
    path = write_segmentation(some_labels(1), series, LABELS, tmp_path / "seg.dcm")
    assert dcmread(path).SeriesNumber == 1000  # type: ignore[arg-type]


def test_label_maps_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    series = make_series(tmp_path / "series")
    with pytest.raises(ValueError, match="its series"):
        write_segmentation(np.zeros((2, 2, 2), np.uint8), series, LABELS, tmp_path / "seg.dcm")
    with pytest.raises(BadInput, match=r"label ids \[9\] have no name"):
        write_segmentation(some_labels(9), series, LABELS, tmp_path / "seg.dcm")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file: can't be made"):
        write_segmentation(some_labels(1), series, LABELS, tmp_path / "file" / "seg.dcm")


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR"])
def test_a_label_map_of_other_axes_is_turned_to_the_series_grid(tmp_path: Path, axes: str) -> None:
    series, label_map = make_series(tmp_path / "series", AFFINES["oblique"]), some_labels(1, 2)
    image = nib.Nifti1Image(label_map, series.affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(series.affine), nib.orientations.axcodes2ornt(axes))
    assert np.array_equal(on_grid_of(series, image.as_reoriented(turn)), label_map)
    moved = nib.Nifti1Image(label_map, series.affine + np.diag([0.2, 0, 0, 0]))
    with pytest.raises(BadInput, match="isn't on the grid"):
        on_grid_of(series, moved)


@pytest.mark.parametrize(
    ("label", "name", "code", "side"),
    [
        ("liver", "Liver", "10200004", None),
        ("kidney", "Kidney", "64033007", None),
        ("Kidneys", "Kidneys", "64033007", None),
        ("spleen", "Spleen", "78961009", None),
        ("pancreas", "Pancreas", "15776009", None),
        ("left_kidney", "Left kidney", "64033007", "7771000"),
        ("kidney_right", "Kidney right", "64033007", "24028007"),
        ("RightKidney", "RightKidney", "64033007", "24028007"),
        ("gall bladder", "Gall bladder", "28231008", None),
        ("gallbladder", "Gallbladder", "28231008", None),
        ("aorta", "Aorta", "15825003", None),
        ("IVC", "IVC", "64131007", None),
        ("left adrenal gland", "Left adrenal gland", "23451007", "7771000"),
        ("stomach", "Stomach", "69695003", None),
        ("duodenum", "Duodenum", "38848004", None),
        ("oesophagus", "Oesophagus", "32849002", None),
        ("urinary_bladder", "Urinary bladder", "89837001", None),
        ("right_femoral_artery", "Right femoral artery", "69833005", None),
    ],
)
def test_organs_have_snomeds_codes(label: str, name: str, code: str, side: str | None) -> None:
    found = organ_code(label)
    assert (found.name, found.organ.value, found.organ.scheme_designator) == (name, code, "SCT")
    assert (None if found.side is None else found.side.value) == side
    assert found.known
    assert found.category.meaning == "Anatomical Structure"


def test_a_lesion_has_its_organ_as_region(tmp_path: Path) -> None:
    found = organ_code("liver_tumour")
    assert (found.organ.value, found.region.value) == ("108369006", "10200004")
    assert found.category.value == "49755003"
    path = write_segmentation(
        some_labels(5), make_series(tmp_path / "s"), {5: "left_kidney_cyst"}, tmp_path / "seg.dcm"
    )
    (segment,) = dcmread(path).SegmentSequence  # type: ignore[arg-type]
    (region,) = segment.AnatomicRegionSequence
    assert (region.CodeMeaning, region.AnatomicRegionModifierSequence[0].CodeMeaning) == ("Kidney", "Left")


@pytest.mark.parametrize(
    "label", ["fancy thing", "label_7", "pancreas_head_and_something_with_a_very_long_name_indeed"]
)
def test_an_unknown_label_keeps_its_name_under_a_private_code(
    read_with_dcmqi: Callable[[Path], Found], tmp_path: Path, label: str
) -> None:
    assert not organ_code(label).known
    path = write_segmentation(some_labels(3), make_series(tmp_path / "s"), {"3": label}, tmp_path / "seg.dcm")
    _, (segment,) = read_with_dcmqi(path)  # type: ignore[arg-type]
    kind = segment["SegmentedPropertyTypeCodeSequence"]
    assert segment["SegmentLabel"].lower() == label.replace("_", " ").lower()
    assert kind["CodingSchemeDesignator"] == "99CYCLIC"
    assert kind["CodeMeaning"].lower() == label.replace("_", " ").lower()


def test_a_side_is_written_beside_the_organ(read_with_dcmqi: Callable[[Path], Found], tmp_path: Path) -> None:
    labels = {"1": "left_kidney", "2": "right_kidney"}
    path = write_segmentation(some_labels(1, 2), make_series(tmp_path / "s"), labels, tmp_path / "seg.dcm")
    _, segments = read_with_dcmqi(path)  # type: ignore[arg-type]
    sides = [segment["SegmentedPropertyTypeModifierCodeSequence"]["CodeMeaning"] for segment in segments]
    assert sides == ["Left", "Right"]


def test_colours_of_labels_differ() -> None:
    colours = np.array([display_colour(label) for label in range(1, 21)])
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1e3 * np.eye(20)
    assert distances.min() > 8
