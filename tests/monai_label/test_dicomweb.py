"""A DICOM archive, MONAI Label's server on it, and this package's own reading of the same files."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from conftest import CT_EXAMPLE, LABELS, TESTS
from label_servers import label_environment, label_python
from viewer_stack import Stack, in_order, on_grid_of, viewer_stack, why_not

from cyclic_committee.scripts.bundles.server_folder import MODEL
from cyclic_committee.scripts.inference.prediction import predict_command
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.runtime.atomic_files import UNFINISHED

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
PATIENTS = pytest.mark.parametrize("patient", ["upwards", "downwards", "oblique", "real_ct"])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with viewer_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


def image_of(stack: Stack, patient: str) -> Path:
    """Return a patient's scan as a NIfTI file; the real CT isn't everywhere."""
    if patient not in stack.images:
        pytest.skip(f"no real CT at {CT_EXAMPLE}")
    return stack.images[patient]


@PATIENTS
def test_a_study_that_was_stored_is_found_and_comes_back_as_it_was(stack: Stack, patient: str) -> None:
    voxels = np.asanyarray(nib.load(image_of(stack, patient)).dataobj)
    [series] = stack.archive.series(Modality="CT", PatientID=patient)
    slices = {int(one.InstanceNumber): one for one in stack.archive.instances(series)}
    assert len(slices) == voxels.shape[2]
    for number, one in slices.items():
        assert np.array_equal(one.pixel_array.T, voxels[:, :, number - 1])


@PATIENTS
def test_server_command_and_file_agree_voxel_for_voxel(
    process_state: None, stack: Stack, tmp_path: Path, patient: str
) -> None:
    """MONAI Label on the archive, `predict` on the archive's files, the predictor on the scan as NIfTI."""
    image = image_of(stack, patient)
    [series] = stack.archive.series(Modality="CT", PatientID=patient)
    answer = requests.post(
        f"{stack.server}/infer/{MODEL}",
        params={"image": series.SeriesInstanceUID, "output": "image"},
        files={"params": (None, "{}")},
        timeout=120,
    )
    answer.raise_for_status()
    (tmp_path / "served.nii.gz").write_bytes(answer.content)
    for one in stack.archive.instances(series):
        (tmp_path / "series").mkdir(exist_ok=True)
        one.save_as(tmp_path / "series" / f"{one.SOPInstanceUID}.dcm")
    predict_command(tmp_path / "series", out=tmp_path / "labels", bundle=stack.bundle, device="cpu")
    expected = Predictor.from_config(bundle=stack.bundle, device="cpu").predict(image)
    affine = np.asarray(expected.affine)  # type: ignore[attr-defined]
    assert len(np.unique(expected)) > 2
    for path in (tmp_path / "served.nii.gz", tmp_path / "labels" / "series.nii.gz"):
        found = nib.load(path)
        voxels = np.asanyarray(found.dataobj)
        assert np.array_equal(voxels, on_grid_of(expected[0].numpy(), affine, voxels.shape, found.affine)), path.name


def test_a_segmentation_by_the_predict_command_is_found_beside_its_series(
    process_state: None, stack: Stack, tmp_path: Path
) -> None:
    predict_command(stack.series["upwards"][0].parent, out=tmp_path, bundle=stack.bundle, device="cpu")
    stack.archive.store([tmp_path / "upwards.dcm"])
    [source] = stack.archive.series(Modality="CT", PatientID="upwards")
    [series] = stack.archive.series(Modality="SEG", PatientID="upwards")
    assert series.StudyInstanceUID == source.StudyInstanceUID
    [file] = stack.archive.instances(series)
    assert [one.SeriesInstanceUID for one in file.ReferencedSeriesSequence] == [source.SeriesInstanceUID]


def test_a_series_that_two_processes_want_is_fetched_once_and_given_to_both(stack: Stack, tmp_path: Path) -> None:
    """The server, and the process of its that scores in the background."""
    [series] = stack.archive.series(Modality="CT", PatientID="oblique")
    uid = str(series.SeriesInstanceUID)
    script = TESTS / "label_fetch.py"
    command = [str(label_python()), str(script), stack.archive.url, uid, str(tmp_path)]
    with ExitStack() as running:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": label_environment()}
        both = [running.enter_context(subprocess.Popen(command, **pipes)) for _ in range(2)]
        for one in both:
            assert one.stdout.readline() == "ready\n"
        for one in both:
            one.stdin.write("now\n")
            one.stdin.flush()
        [answer] = {one.stdout.read() for one in both}
    file, known = answer.split()
    assert known == uid
    fetched, there = nib.load(file), nib.load(stack.images["oblique"])
    voxels = on_grid_of(np.asanyarray(there.dataobj), there.affine, fetched.shape, fetched.affine)
    assert np.array_equal(np.asanyarray(fetched.dataobj), voxels)
    assert not list(tmp_path.rglob(f"{UNFINISHED}*"))


@pytest.mark.parametrize(
    "path",
    [
        "wado/..%2f..%2fsystem",
        "..%2fsystem",
        "wado/%2e%2e/%2e%2e/system",
        "wado/studies/..%2f..%2f..%2finstances",
        "wado/servers",
        "qido/studies%3f/..%2f..%2fsystem",
        "",
        "tools",
        "other/studies",
    ],
)
def test_nothing_but_dicomweb_is_handed_on_to_the_viewer(stack: Stack, path: str) -> None:
    assert requests.get(f"{stack.server}/proxy/dicom/{path}", timeout=120).status_code == 404


def test_only_studies_can_be_posted_to(stack: Stack) -> None:
    for path in ("qido/series", "wado/studies/1.2/series/3.4", "wado/..%2f..%2ftools%2fshutdown"):
        assert requests.post(f"{stack.server}/proxy/dicom/{path}", timeout=120).status_code == 404


def test_the_viewer_is_told_of_the_patients_that_it_asks_for(stack: Stack) -> None:
    answer = requests.get(f"{stack.server}/proxy/dicom/qido/studies", params={"00100020": "oblique"}, timeout=120)
    answer.raise_for_status()
    [study] = [pydicom.Dataset.from_json(one) for one in answer.json()]
    assert study.PatientID == "oblique"


CODES = {"Liver": "10200004", "Kidney": "64033007", "Spleen": "78961009", "Pancreas": "15776009"}
IDS = {name.capitalize(): int(number) for number, name in LABELS.items()}


def test_a_segmentation_by_the_server_has_the_right_name_and_code_on_each_voxel(stack: Stack, tmp_path: Path) -> None:
    [series] = stack.archive.series(Modality="CT", PatientID="oblique")
    found = {}
    for output in ("image", "dicom_seg"):
        answer = requests.post(
            f"{stack.server}/infer/{MODEL}",
            params={"image": series.SeriesInstanceUID, "output": output},
            files={"params": (None, "{}")},
            timeout=120,
        )
        answer.raise_for_status()
        found[output] = tmp_path / output
        found[output].write_bytes(answer.content)
    found["image"] = found["image"].rename(tmp_path / "image.nii.gz")
    label_map = nib.load(found["image"])
    slices = in_order(stack.series["oblique"], label_map.affine)
    organs = organs_of(pydicom.dcmread(found["dicom_seg"]), [one.SOPInstanceUID for one in slices])
    assert np.array_equal(organs, np.asanyarray(label_map.dataobj))


def organs_of(file: pydicom.Dataset, sources: list[str]) -> np.ndarray:
    """Return a segmentation's voxels `(x, y, z)` as the ids of what its segments say that they are."""
    voxels = np.zeros(0, np.uint8)
    segmentation = highdicom.seg.Segmentation.from_dataset(file)
    for segment in file.SegmentSequence:
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == CODES[segment.SegmentLabel]
        mask = segmentation.get_pixels_by_source_instance(
            sources,
            segment_numbers=[segment.SegmentNumber],
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )[..., 0].transpose(2, 1, 0)
        voxels = voxels if voxels.size else np.zeros(mask.shape, np.uint8)
        voxels[mask > 0] = IDS[segment.SegmentLabel]
    return voxels


def test_liver_and_pancreas_alone_are_stored_as_what_they_are_and_come_back_to_train_on(
    stack: Stack, tmp_path: Path
) -> None:
    """MONAI Label's own would call the second one kidney, by its place."""
    [series] = stack.archive.series(Modality="CT", PatientID="downwards")
    image = nib.load(stack.images["downwards"])
    for part in (slice(5, 20), slice(7, 24)):  # corrected once more: the newest counts
        voxels = np.zeros(image.shape, np.uint8)
        voxels[part, 10:30, 3:9], voxels[40:50, 20:33, 5:12] = 1, 4
        nib.save(nib.Nifti1Image(voxels, image.affine), tmp_path / "label.nii.gz")
        with (tmp_path / "label.nii.gz").open("rb") as opened:
            requests.put(
                f"{stack.server}/datastore/label",
                params={"image": series.SeriesInstanceUID, "tag": "final"},
                files={"label": ("label.nii.gz", opened)},
                timeout=120,
            ).raise_for_status()
        time.sleep(1.1)  # the time in DICOM's tags is in s
    segmentations = stack.archive.series(Modality="SEG", PatientID="downwards")
    assert len(segmentations) == 2
    slices = in_order(stack.series["downwards"], image.affine)
    for one in segmentations:
        [file] = stack.archive.instances(one)
        assert [segment.SegmentLabel for segment in file.SegmentSequence] == ["Liver", "Pancreas"]
    listed = requests.get(f"{stack.server}/datastore/", params={"output": "train"}, timeout=120).json()
    [path] = [case["label"] for case in listed if series.SeriesInstanceUID in case["image"]]
    label = nib.load(path.replace("WORK", str(stack.work)))  # answers name folders by what they are
    shown = on_grid_of(voxels, image.affine, label.shape, label.affine)
    assert np.array_equal(np.asanyarray(label.dataobj), shown)
    assert organs_of(file, [one.SOPInstanceUID for one in slices]).any()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", f"/infer/{MODEL}?image=1.2.3", 404),
        ("POST", f"/infer/{MODEL}?image=..", 400),
        ("POST", f"/infer/{MODEL}?image=../../../etc", 400),
        ("POST", f"/infer/{MODEL}?image=/etc", 400),
        ("GET", "/datastore/image?image=1.2.3", 404),
        ("GET", "/datastore/image?image=%2fetc%2fpasswd", 400),
        ("GET", "/datastore/image/info?image=../x", 400),
        ("GET", "/datastore/label?label=../x&tag=final", 400),
        ("GET", "/datastore/label?label=1.2.3&tag=..%2fx", 400),
        ("DELETE", "/datastore/image?id=1.2.3", 400),
        ("DELETE", "/datastore/label?id=1.2.3&tag=final", 400),
    ],
)
def test_only_series_of_the_archive_are_reached(stack: Stack, method: str, path: str, status: int) -> None:
    files = {"params": (None, "{}")} if method == "POST" else None
    assert requests.request(method, stack.server + path, files=files, timeout=60).status_code == status


def test_nothing_is_added_beside_the_archive(stack: Stack) -> None:
    for path in ("/datastore/image?image=1.2.3", "/datastore/?image=../x"):
        answer = requests.put(f"{stack.server}{path}", files={"file": ("x.nii.gz", b"x")}, timeout=120)
        assert answer.status_code == 400


def test_the_next_study_is_one_of_the_archives(stack: Stack) -> None:
    answer = requests.post(f"{stack.server}/activelearning/disagreement", json={}, timeout=120)
    answer.raise_for_status()
    assert answer.json()["id"] in {str(one.SeriesInstanceUID) for one in stack.archive.series(Modality="CT")}
