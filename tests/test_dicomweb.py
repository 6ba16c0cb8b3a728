"""A DICOM archive, MONAI Label's server on it, and this package's own reading of the same files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from conftest import CT_EXAMPLE
from viewer_stack import Stack, on_grid_of, viewer_stack, why_not

from cyclic_committee.scripts.prediction import predict_command
from cyclic_committee.scripts.predictor import Predictor
from cyclic_committee.scripts.work_folder import MODEL

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
    assert requests.get(f"{stack.server}/proxy/dicom/{path}", timeout=20).status_code == 404


def test_only_studies_can_be_posted_to(stack: Stack) -> None:
    for path in ("qido/series", "wado/studies/1.2/series/3.4", "wado/..%2f..%2ftools%2fshutdown"):
        assert requests.post(f"{stack.server}/proxy/dicom/{path}", timeout=20).status_code == 404


def test_the_viewer_is_told_of_the_patients_that_it_asks_for(stack: Stack) -> None:
    answer = requests.get(f"{stack.server}/proxy/dicom/qido/studies", params={"00100020": "oblique"}, timeout=20)
    answer.raise_for_status()
    [study] = [pydicom.Dataset.from_json(one) for one in answer.json()]
    assert study.PatientID == "oblique"
