from __future__ import annotations

import gzip
import re
import shutil
import tracemalloc
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("pydicom", reason="DICOM needs pip install '.[dicom]'")

from dicom_studies import alter, write_series
from pydicom import dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from cyclic_committee.scripts.dicom import pixels as dicom_pixels
from cyclic_committee.scripts.dicom.files import BoundedFile
from cyclic_committee.scripts.dicom.series import DicomSeries, FoundSeries, find_series
from cyclic_committee.scripts.runtime.errors import BadInput

SHAPE = (36, 33, 7)  # JPEG 2000 wants 32 pixels


def turned(*, around: int, degrees: float) -> np.ndarray:
    """An affine that turns around an axis."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    one, two = [axis for axis in range(3) if axis != around]
    affine = np.eye(4)
    affine[[one, one, two, two], [one, two, one, two]] = cosine, -sine, sine, cosine
    return affine


AXIAL = np.array([[-0.8, 0, 0, 120], [0, -0.8, 0, 90], [0, 0, 3, -40], [0, 0, 0, 1.0]])  # as scanners do: LPS
AFFINES = {
    "axial": AXIAL,
    "reversed": AXIAL @ np.diag([1.0, 1, -1, 1]),
    "feet first": turned(around=1, degrees=180) @ AXIAL,
    "prone": turned(around=2, degrees=180) @ AXIAL,
    "ras": np.diag([2.0, 2, 2, 1]),
    "oblique": turned(around=0, degrees=17) @ turned(around=2, degrees=9) @ AXIAL,
    "anisotropic": AXIAL @ np.diag([1.0, 1.5, 2, 1]),
    "coronal": np.array([[-1, 0, 0, 5], [0, 0, -2.5, 0], [0, -1, 0, 3], [0, 0, 0, 1.0]]),
}


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(3).integers(-1024, 1500, SHAPE).astype(np.int16)


def read_one(folder: Path) -> DicomSeries:
    found = find_series(folder)
    assert found.faults == []
    assert len(found.series) == 1
    return found.series[0]


def assert_same_volume(series: DicomSeries, voxels: np.ndarray, affine: np.ndarray) -> None:
    """The same voxels at the same places, whichever way the axes go."""
    one = nib.as_closest_canonical(nib.Nifti1Image(series.voxels(), series.affine))
    other = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    assert np.allclose(one.affine, other.affine, atol=1e-6)
    assert np.array_equal(np.asanyarray(one.dataobj), np.asanyarray(other.dataobj))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_voxels_and_places_are_those_of_the_scan(tmp_path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    write_series(tmp_path, voxels, affine)
    series = read_one(tmp_path)
    assert series.voxels().dtype == np.int16
    assert series.notes == ()
    assert_same_volume(series, voxels, affine)


@pytest.mark.parametrize(
    ("syntax", "needs"),
    [
        (ImplicitVRLittleEndian, "pydicom"),
        (DeflatedExplicitVRLittleEndian, "pydicom"),
        (RLELossless, "pydicom"),
        (JPEGLSLossless, "jpeg_ls"),
        (JPEG2000Lossless, "openjpeg"),
    ],
)
@pytest.mark.parametrize("signed", [0, 1])
def test_compressed_slices_are_decompressed(
    tmp_path: Path, voxels: np.ndarray, syntax: str, needs: str, signed: int
) -> None:
    pytest.importorskip(needs)
    tags = {"PixelRepresentation": signed, "RescaleIntercept": 0 if signed else -1024}
    for path in write_series(tmp_path, voxels, AXIAL, transfer_syntax=syntax, **tags):
        assert dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    assert_same_volume(read_one(tmp_path), voxels, AXIAL)


@pytest.mark.parametrize("tags", [{}, {"PixelRepresentation": 1, "RescaleIntercept": 0}], ids=["unsigned", "signed"])
def test_lossless_jpeg_is_decompressed(tmp_path: Path, voxels: np.ndarray, tags: dict[str, Any]) -> None:
    gdcm = pytest.importorskip("gdcm", reason="making lossless JPEG needs pip install python-gdcm")
    for path in write_series(tmp_path, voxels, AXIAL, **tags):
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        assert dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    assert_same_volume(read_one(tmp_path), voxels, AXIAL)


@pytest.mark.parametrize(
    ("syntax", "encoder", "how", "tolerance_hu"),
    [
        (JPEGLossless, "jpeg8", {"bitspersample": 16, "lossless": True}, 0),
        (JPEGExtended12Bit, "jpeg8", {"bitspersample": 12, "level": 95}, 12),
        (HTJ2KLossless, "htj2k", {}, 0),
    ],
    ids=["lossless jpeg", "12-bit lossy jpeg", "htj2k"],
)
def test_what_others_compressed_is_decompressed(
    tmp_path: Path, syntax: str, encoder: str, how: dict[str, Any], tolerance_hu: int
) -> None:
    """What pydicom doesn't encode; smooth voxels, as a lossy format wants them."""
    encode = getattr(pytest.importorskip("imagecodecs"), f"{encoder}_encode")
    voxels = np.add.outer(np.arange(36)[:, None] * 9 + np.arange(33) * 20, np.arange(7) * 100) - 1024
    for path in write_series(tmp_path, voxels, AXIAL, BitsStored=12, HighBit=11):
        slice_ = dcmread(path)
        slice_.PixelData = encapsulate([encode(slice_.pixel_array, **how)])
        slice_["PixelData"].VR = "OB"
        slice_.file_meta.TransferSyntaxUID = syntax
        slice_.save_as(path)
    series = read_one(tmp_path)
    read, made = (
        nib.as_closest_canonical(nib.Nifti1Image(one.astype(np.int16), affine)).get_fdata()
        for one, affine in ((series.voxels(), series.affine), (voxels, AXIAL))
    )
    assert np.abs(read - made).max() <= tolerance_hu


def test_order_and_names_of_files_mean_nothing(tmp_path: Path, voxels: np.ndarray) -> None:
    for k, path in enumerate(write_series(tmp_path / "made", voxels, AXIAL)):
        alter(path, InstanceNumber=100 - k)
        place = tmp_path / "series" / f"part {k % 2}"
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / f"IM{(k * 5) % 7:06d}")  # shuffled, without suffix, in two folders
    series = read_one(tmp_path / "series")
    assert series.folder == tmp_path / "series"
    assert_same_volume(series, voxels, AXIAL)


@pytest.mark.parametrize(
    ("tags", "values", "kind"),
    [
        ({"RescaleSlope": 2, "RescaleIntercept": -1024}, [-1024, 0, 1000], np.int16),
        ({"RescaleSlope": 0.5, "RescaleIntercept": 0}, [0, 0.5, 700], np.float32),
        ({"RescaleSlope": 1, "RescaleIntercept": 1024, "PixelRepresentation": 0}, [1024, 40000, 66559], np.int32),
    ],
)
def test_values_are_rescaled_into_the_smallest_format_that_holds_them(
    tmp_path: Path, tags: dict[str, Any], values: list[float], kind: type
) -> None:
    voxels = np.resize(values, SHAPE)
    write_series(tmp_path, voxels, AXIAL, **tags)
    series = read_one(tmp_path)
    assert series.voxels().dtype == kind
    assert_same_volume(series, voxels.astype(kind), AXIAL)


def test_mr_needs_no_rescaling(tmp_path: Path, voxels: np.ndarray) -> None:
    paths = write_series(tmp_path, voxels + 1024, AXIAL, RescaleIntercept=0)
    for path in paths:
        alter(path, SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR", RescaleSlope=None, RescaleIntercept=None)
    assert_same_volume(read_one(tmp_path), voxels + 1024, AXIAL)


def test_several_series_of_a_folder_are_each_found(tmp_path: Path, voxels: np.ndarray) -> None:
    write_series(tmp_path, voxels, AXIAL, series_uid="1.2.3")
    for path in tmp_path.iterdir():
        path.rename(path.with_suffix(".IMA"))
    write_series(tmp_path, voxels[:, :, :4], AFFINES["oblique"], series_uid="1.2.4")
    found = find_series(tmp_path)
    assert found.faults == []
    assert {series.uid: len(series.files) for series in found.series} == {"1.2.3": 7, "1.2.4": 4}


def test_what_is_no_slice_is_passed_over_with_a_word(tmp_path: Path, voxels: np.ndarray) -> None:
    write_series(tmp_path, voxels, AXIAL)
    write_series(tmp_path / "a", voxels[:, :, :2], AXIAL, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "b", voxels[:, :, :2], AXIAL, Modality="SEG", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / ".hidden").write_text("nothing")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    found = find_series(tmp_path)
    assert (len(found.series), found.faults) == (1, [])
    assert found.skipped == [
        f"{tmp_path}: 1 x .txt files: passed over.",
        f"{tmp_path}: 2 x SEG: passed over.",
        f"{tmp_path}: 2 x localizer: passed over.",
    ]


@pytest.mark.parametrize("places", [1, 3])
def test_bolus_tracking_is_passed_over_with_a_word(tmp_path: Path, voxels: np.ndarray, places: int) -> None:
    write_series(tmp_path / "scan", voxels, AXIAL)
    for k in range(5):
        again = voxels[:, :, :places] + 3 * k
        write_series(tmp_path / "tracking" / str(k), again, AXIAL, series_uid="1.2.3", SeriesDescription="Monitoring")
    found = find_series(tmp_path)
    assert [series.folder.name for series in found.series] == ["scan"]
    assert found.faults == []
    assert found.skipped == [f"{tmp_path}: {5 * places} x slices of bolus tracking: passed over."]


def test_a_single_slice_beside_a_series_of_its_study_is_passed_over(tmp_path: Path, voxels: np.ndarray) -> None:
    write_series(tmp_path / "a", voxels[:, :, :1], AXIAL, study_uid="1.2.3", SeriesDescription="PreMonitoring")
    write_series(tmp_path / "b", voxels, AXIAL, study_uid="1.2.3")
    found = find_series(tmp_path)
    assert (len(found.series), found.faults) == (1, [])
    assert found.skipped == [f"{tmp_path}: 1 x single slices: passed over."]


def test_a_small_volume_that_is_there_twice_is_no_bolus_tracking(tmp_path: Path, voxels: np.ndarray) -> None:
    paths = write_series(tmp_path / "a", voxels[:, :, :3], AXIAL)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert len(read_one(tmp_path).files) == len(paths)


def without_preamble(path: Path, *, syntax: str | None = None) -> None:
    """Write a file again as programs did before there was a preamble: all tags, or those without tags on the file."""
    if syntax is None:
        path.write_bytes(path.read_bytes()[132:])
        return
    slice_, uid = dcmread(path), UID(syntax)
    if not uid.is_little_endian:
        slice_.PixelData = slice_.pixel_array.byteswap().tobytes()
    slice_.file_meta, slice_.preamble = FileMetaDataset(), None
    dcmwrite(path, slice_, implicit_vr=uid.is_implicit_VR, little_endian=uid.is_little_endian)


@pytest.mark.parametrize("number", [1, 7], ids=["one slice", "all slices"])
@pytest.mark.parametrize(
    "syntax",
    [None, ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian],
    ids=["with tags on the file", "implicit", "explicit", "big endian"],
)
def test_slices_without_a_preamble_are_read(
    tmp_path: Path, voxels: np.ndarray, syntax: str | None, number: int
) -> None:
    for path in write_series(tmp_path, voxels, AXIAL)[-number:]:
        without_preamble(path, syntax=syntax)
    assert_same_volume(read_one(tmp_path), voxels, AXIAL)


def test_compressed_pixels_of_an_unknown_kind_are_not_taken_for_numbers(tmp_path: Path, voxels: np.ndarray) -> None:
    for path in write_series(tmp_path, voxels, AXIAL, transfer_syntax=RLELossless):
        without_preamble(path, syntax=ExplicitVRLittleEndian)
    with pytest.raises(BadInput, match=r"slice_0000\.dcm: its pixel data .* compressed, and the file doesn't say how"):
        read_one(tmp_path).voxels()


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("slice_0006.dcm", lambda path: path.write_bytes(b"")),
        ("slice_0006.dcm", lambda path: path.write_text("not a slice")),
        ("slice_0006.dcm", lambda path: path.write_bytes(gzip.compress(path.read_bytes()))),
        ("slice_0006.dcm", lambda path: path.write_bytes(path.read_bytes()[:140])),
        ("slice_0006.dcm", link_to_nothing),
        ("IM.0006", link_to_nothing),
        ("IM0006", lambda path: path.write_text("not a slice")),
        ("IM0006.special", lambda path: path.write_text("not a slice")),
    ],
)
def test_a_series_is_not_read_without_its_unreadable_slice(
    tmp_path: Path, voxels: np.ndarray, name: str, spoil: Callable[[Path], Any]
) -> None:
    """The last one: the others make a volume, and nobody would miss it."""
    write_series(tmp_path / "another", voxels, AXIAL)
    for k, path in enumerate(write_series(tmp_path / "series", voxels, AXIAL)):
        path.rename(path.with_name(name.replace("6", str(k))))
    spoil(tmp_path / "series" / name)
    found = find_series(tmp_path)
    assert [series.folder.name for series in found.series] == ["another"]
    [fault] = found.faults
    assert fault.startswith(f"{tmp_path / 'series' / name}: not a readable DICOM file (")
    assert fault.endswith(" No series of its folder is labelled: a slice may be missing. Replace it or take it out.")


def test_unreadable_slices_are_counted(tmp_path: Path, voxels: np.ndarray) -> None:
    for path in write_series(tmp_path, voxels, AXIAL)[2:]:
        path.write_text("")
    [fault] = find_series(tmp_path).faults
    assert f"{tmp_path / 'slice_0002.dcm'}: not a readable" in fault
    assert "So are 4 more of its folder." in fault


def test_files_that_begin_with_small_numbers_are_no_dicom_files(tmp_path: Path) -> None:
    for number in (2, 8):
        np.array([number, 5, 7], np.int32).tofile(tmp_path / f"{number}.raw")
        np.array([number, 5, 7], np.int64).tofile(tmp_path / f"{number}.long.raw")
        np.array([number, 7], np.float32).tofile(tmp_path / f"{number}.float.raw")
    assert find_series(tmp_path) == FoundSeries()


def test_linked_folders_and_files_are_followed(tmp_path: Path, voxels: np.ndarray) -> None:
    paths = write_series(tmp_path / "store", voxels, AXIAL)
    write_series(tmp_path / "in" / "one", voxels, AXIAL)
    (tmp_path / "in" / "two").symlink_to(tmp_path / "store")
    (tmp_path / "in" / "two" / "circle").symlink_to(tmp_path / "in")
    paths[3].rename(tmp_path / "elsewhere")
    paths[3].symlink_to(tmp_path / "elsewhere")
    found = find_series(tmp_path / "in")
    assert [(series.folder.name, len(series.files)) for series in found.series] == [("one", 7), ("two", 7)]
    assert found.faults == []
    circle, first = tmp_path / "in" / "two" / "circle", tmp_path / "in"
    assert found.skipped == [f"{circle}: leads to {first}, which is looked at already: passed over."]


def test_a_slice_that_is_there_twice_counts_once(tmp_path: Path, voxels: np.ndarray) -> None:
    paths = write_series(tmp_path, voxels, AXIAL)
    for path in paths[2:4]:
        shutil.copy(path, path.with_suffix(".copy"))
    series = read_one(tmp_path)
    assert series.notes == (f"{tmp_path}: 2 slices are there twice and the same: dropped.",)
    assert_same_volume(series, voxels, AXIAL)


def test_a_tilted_gantry_makes_a_sheared_affine(tmp_path: Path, voxels: np.ndarray) -> None:
    affine = AXIAL.copy()
    affine[1, 2] = 1.2  # mm to the front, each slice
    write_series(tmp_path, voxels, affine)
    series = read_one(tmp_path)
    assert round(series.tilt_degrees, 1) == 21.8
    assert_same_volume(series, voxels, affine)
    written = nib.load(series.write_nifti(tmp_path / "scan.nii"))
    assert np.allclose(written.affine, series.affine, atol=1e-4)


def test_rounded_positions_are_even(tmp_path: Path, voxels: np.ndarray) -> None:
    paths = write_series(tmp_path, voxels, AXIAL)
    for k, path in enumerate(paths):
        alter(path, ImagePositionPatient=[-120, -90, round(-40 + 0.625 * k, 1)])
    assert np.allclose(read_one(tmp_path).affine[:3, 2], [0, 0, 3.8 / 6])


def moved(place: float) -> Callable[[list[Path]], None]:
    return lambda paths: alter(paths[3], ImagePositionPatient=[-120, -90, place])


def resized(paths: list[Path]) -> None:
    uid = dcmread(paths[0]).SeriesInstanceUID
    write_series(paths[0].parent / "x", np.zeros((9, 9, 1), np.int16), AXIAL, series_uid=uid)


SPOILT: dict[str, tuple[Callable[[list[Path]], Any], str]] = {
    "a missing slice": (
        lambda paths: paths[3].unlink(),
        r"slice_0004\.dcm: lies 6 mm from the slice before it, slice_0002\.dcm, but most lie 3 mm apart",
    ),
    "a missing slice near the end": (lambda paths: paths[5].unlink(), r"slice_0006\.dcm: lies 6 mm from"),
    "a slice elsewhere": (moved(400), r"slice_0003\.dcm: lies 422 mm from"),
    "two slices at one place": (moved(-34), r"slice_000[23]\.dcm: lies where .*slice_000[23]\.dcm .* several phases"),
    "a slice sideways": (
        lambda paths: alter(paths[3], ImagePositionPatient=[-110, -90, -31]),
        r"slice_0003\.dcm: lies 10 mm sideways",
    ),
    "one slice": (lambda paths: [path.unlink() for path in paths[1:]], r"slice_0000\.dcm: its series has one slice"),
    "sizes": (resized, r"has \[\d+, \d+\] pixels, but .* of the same series has"),
    "spacings": (lambda paths: alter(paths[2], PixelSpacing=[0.8, 0.9]), r"slice_0002\.dcm: has \[0\.8, 0\.9\] mm a"),
    "directions": (
        lambda paths: alter(paths[2], ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
        r"slice_0002\.dcm: has .* as its directions",
    ),
    "no directions": (
        lambda paths: alter(paths[2], ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
        r"slice_0002\.dcm: ImageOrientationPatient \[.*make no grid",
    ),
    "colours": (lambda paths: alter(paths[2], SamplesPerPixel=3), r"slice_0002\.dcm: holds colours"),
    "multi-frame": (
        lambda paths: [path.unlink() for path in paths[1:]] and alter(paths[0], SOPClassUID=EnhancedCTImageStorage),
        r"slice_0000\.dcm: is a multi-frame \(Enhanced\) image, which isn't read",
    ),
    "a series named like a path": (
        lambda paths: [alter(path, SeriesInstanceUID="../1.2") for path in paths],
        r"has no valid SeriesInstanceUID",
    ),
    "odd numbers": (
        lambda paths: paths[2].write_bytes(paths[2].read_bytes().replace(b"0.8\\0.8", b"0.8\\x.8")),
        r"slice_0000\.dcm: its series has tags that make no sense \(.*x\.8",
    ),
    "damaged": (lambda paths: paths[-1].write_bytes(paths[-1].read_bytes()[:140]), r"slice_0006\.dcm: not a readable"),
} | {
    f"no {tag}": (lambda paths, tag=tag: alter(paths[2], **{tag: None}), rf"slice_0002\.dcm: has no {tag}\. Export")
    for tag in ("ImagePositionPatient", "PixelSpacing", "RescaleSlope", "FrameOfReferenceUID")
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # while it is written
@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT.keys())
def test_what_makes_no_volume_is_named(
    tmp_path: Path, voxels: np.ndarray, spoil: Callable[[list[Path]], Any], message: str
) -> None:
    write_series(tmp_path / "another", voxels, AXIAL)
    spoil(write_series(tmp_path / "series", voxels, AXIAL))
    found = find_series(tmp_path)
    assert str(tmp_path / "another") in {str(series.folder) for series in found.series}
    assert len(found.faults) == 1
    assert str(BadInput(found.faults[0])) == found.faults[0]
    with pytest.raises(BadInput, match=message):
        raise BadInput(found.faults[0])


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless], ids=["jpeg-ls", "jpeg 2000", "rle"])
def test_damaged_compressed_pixels_are_named(tmp_path: Path, voxels: np.ndarray, syntax: str) -> None:
    paths = write_series(tmp_path, voxels, AXIAL, transfer_syntax=syntax)
    whole = paths[3].read_bytes()
    start = whole.index(b"\xfe\xff\x00\xe0", whole.index(b"\xe0\x7f\x10\x00") + 20) + 8
    paths[3].write_bytes(whole[:start] + bytes(40) + whole[start + 40 :])
    with pytest.raises(BadInput, match=r"slice_0003\.dcm: its pixel data are truncated or damaged"):
        read_one(tmp_path).voxels()


@pytest.mark.parametrize("left", [-30, -2 * 36 * 33 + 1])
def test_truncated_pixel_data_are_named(tmp_path: Path, voxels: np.ndarray, left: int) -> None:
    paths = write_series(tmp_path, voxels, AXIAL)
    paths[4].write_bytes(paths[4].read_bytes()[:left])
    with pytest.raises(BadInput, match=r"slice_0004\.dcm: its pixel data are truncated or damaged"):
        read_one(tmp_path).voxels()


@pytest.mark.parametrize(
    ("syntax", "needs"),
    [
        (JPEGLSLossless, "pyjpegls"),
        (JPEG2000Lossless, "pylibjpeg pylibjpeg-openjpeg"),
        (JPEGLosslessSV1, "imagecodecs"),
    ],
)
def test_a_missing_decoder_is_named(
    tmp_path: Path, voxels: np.ndarray, monkeypatch: pytest.MonkeyPatch, syntax: str, needs: str
) -> None:
    class Missing:
        available_plugins = ("gdcm",)

    write_series(tmp_path, voxels, AXIAL, transfer_syntax=RLELossless)
    for path in tmp_path.iterdir():
        slice_ = dcmread(path)
        slice_.file_meta.TransferSyntaxUID = syntax
        slice_.save_as(path)
    monkeypatch.setattr(dicom_pixels.pixels, "get_decoder", lambda syntax: Missing)
    monkeypatch.setattr(dicom_pixels, "has_imagecodecs", False)
    [fault] = find_series(tmp_path).faults
    assert f"for which no decoder is installed. Install with: pip install {needs}" in fault


def test_films_are_refused(tmp_path: Path, voxels: np.ndarray) -> None:
    for path in write_series(tmp_path, voxels, AXIAL):
        film = dcmread(path)
        film.file_meta.TransferSyntaxUID = MPEG2MPML
        film.PixelData = encapsulate([film.PixelData])
        film["PixelData"].VR = "OB"
        film.save_as(path)
    assert "which can't be read. Export the series uncompressed." in find_series(tmp_path).faults[0]


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"RescaleSlope": 0}, "a slope of 0"),
        ({"ImagePositionPatient": [0, 0, 1e9]}, r"lies 1e\+09 mm from the scanner's centre"),
    ],
)
def test_a_tag_that_cannot_be_is_a_fault(tmp_path: Path, tags: dict[str, Any], message: str) -> None:
    files = write_series(tmp_path, np.zeros(SHAPE), AXIAL)
    alter(files[-1], **tags)
    found = find_series(tmp_path)
    assert not found.series
    assert re.search(rf"slice_0006\.dcm: .*{message}", found.faults[0])


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": 16}, "the header says 1152 bytes, and there are 2376"),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "the header says"),
        ({"BitsStored": 8}, "their highest bit is 15, but 8 bits are stored"),
    ],
)
def test_a_header_that_contradicts_the_pixels_is_refused(tmp_path: Path, tags: dict[str, Any], message: str) -> None:
    """Pydicom takes the first half of the pixels, or of the bits."""
    for file in write_series(tmp_path, np.zeros(SHAPE), AXIAL):
        alter(file, **tags)
    [series] = find_series(tmp_path).series
    with pytest.raises(BadInput, match=rf"slice_0000\.dcm: its pixel data are truncated or damaged \({message}"):
        series.voxels()


def test_values_that_int32_does_not_hold_become_single_numbers_or_are_refused(tmp_path: Path) -> None:
    files = write_series(tmp_path, np.full(SHAPE, 1000), AXIAL)
    alter(files[3], RescaleSlope=2_000_000_000)
    [series] = find_series(tmp_path).series
    assert series.voxels()[0, 0, 3] == pytest.approx(2024 * 2e9, rel=1e-6)
    alter(files[3], RescaleSlope=1e30)
    [series] = find_series(tmp_path).series
    assert series.voxels()[0, 0, 3] == pytest.approx(2024e30, rel=1e-6)
    alter(files[3], RescaleSlope=1e38)
    [series] = find_series(tmp_path).series
    with pytest.raises(BadInput, match=r"slice_0003\.dcm: rescaled, its values reach 2\.024e\+41\. Correct its Resc"):
        series.voxels()


def test_memory_is_not_taken_on_the_word_of_a_damaged_length_or_size(tmp_path: Path) -> None:
    files = write_series(tmp_path / "a", np.zeros(SHAPE), AXIAL)
    data = files[0].read_bytes()
    place = data.index(b"\xe0\x7f\x10\x00OW\x00\x00") + 8
    files[0].write_bytes(data[:place] + b"\xf0\xff\xff\x7f" + data[place + 4 :])
    with BoundedFile(FileIO(files[0])) as file:
        assert file.read(2**31) == files[0].read_bytes()
    for file in write_series(tmp_path / "b", np.zeros(SHAPE), AXIAL):
        alter(file, Rows=65535, Columns=65535)
    [series] = find_series(tmp_path / "b").series
    tracemalloc.start()
    with pytest.raises(BadInput, match="its pixel data are truncated or damaged"):
        series.voxels()
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
