"""The real CT that lies beside the project on some machines."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import CT_EXAMPLE, TINY, Workflow, preparation

from cyclic_committee.scripts.data.slice_store import store_cases
from cyclic_committee.scripts.inference.prediction import predict_command
from cyclic_committee.scripts.metrics.score_table import evaluate_folders
from cyclic_committee.scripts.phantoms.phantom import LABELS

pytestmark = pytest.mark.skipif(not CT_EXAMPLE.is_dir(), reason="no real CT at ../shared/data/ct_example")
NAMES = {str(label): organ for label, organ in LABELS.items()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("image", "label"):
        (tmp_path / "data" / f"{name}s").mkdir(parents=True)
        shutil.copy(CT_EXAMPLE / f"{name}.nii.gz", tmp_path / "data" / f"{name}s" / "ct.nii.gz")
    return tmp_path / "data"


def test_its_stored_slices_are_its_voxels(data: Path, tmp_path: Path) -> None:
    case = {"image": str(data / "images" / "ct.nii.gz"), "label": str(data / "labels" / "ct.nii.gz")}
    settings = preparation(spacing_mm=[3.0, 3.0], labels=NAMES)  # clipped at -200 and 300 HU, less 50, over 100
    [stored] = store_cases([case], folder=tmp_path / "store", preparation=settings)
    image, label = nib.load(case["image"]), nib.load(case["label"])
    counts = np.load(stored.folder / "place_counts.npy")
    assert (counts > 0).sum(axis=1).tolist() == [43, 39, 30, 19]  # slices that show each organ
    for index in (70, 90, 105):
        slice_, ids = stored.read(index)
        assert np.array_equal(ids, np.asanyarray(label.dataobj)[..., index])
        hu = np.clip(np.asanyarray(image.dataobj)[..., index], -200, 300)
        assert np.abs(100 * slice_[0] + 50 - hu).max() < 0.01


def test_the_workflows_go_through_it(workflow: Workflow, data: Path, tmp_path: Path) -> None:
    places = {"dataset_dir": str(data), "model_path": str(tmp_path / "model.pt"), "output_dir": str(tmp_path / "run")}
    values: dict[str, Any] = {
        **TINY,
        "num_workers": 0,
        "batch_size": 4,
        "max_epochs": 1,
        "iterations_per_epoch": 4,
        "fold": "all",
    }
    workflow("train", "train.yaml", **values, **places, augmentation=[], val_interval=1, track=False).run()
    places = {"dataset_dir": str(data), "ckpt_path": str(tmp_path / "model.pt"), "output_dir": str(tmp_path / "labels")}
    workflow("inference", "inference.yaml", **{k: v for k, v in TINY.items() if k != "crop_size"}, **places).run()
    image, label = nib.load(data / "images" / "ct.nii.gz"), nib.load(tmp_path / "labels" / "ct.nii.gz")
    assert label.shape == image.shape
    assert np.array_equal(label.affine, image.affine)
    rows = evaluate_folders(str(tmp_path / "labels"), str(data / "labels"), labels=LABELS)
    assert [row["organ"] for row in rows] == ["liver", "kidney", "spleen", "pancreas"]


@pytest.mark.parametrize("axes", ["LPS", "LPI"], ids=["from the feet", "from the head"])
def test_as_a_dicom_series_it_gets_the_workflows_labels_voxel_for_voxel(
    workflow: Workflow, model: Path, data: Path, tmp_path: Path, axes: str
) -> None:
    pytest.importorskip("highdicom", reason="DICOM needs pip install '.[dicom]'")
    from dicom_studies import write_series

    image = nib.load(data / "images" / "ct.nii.gz")
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    turned = image.as_reoriented(turn)
    signed = {"PixelRepresentation": 1, "RescaleIntercept": 0}  # it has values below -1024 HU
    write_series(tmp_path / "study" / "series", np.asanyarray(turned.dataobj), turned.affine, **signed)
    values = {key: value for key, value in TINY.items() if key != "crop_size"}
    predict_command(tmp_path / "study", out=tmp_path / "labels", ckpt_path=model, **values)
    places = {"dataset_dir": str(data / "images"), "ckpt_path": str(model), "output_dir": str(tmp_path / "workflow")}
    workflow("inference", "inference.yaml", **values, **places).run()
    expected = nib.as_closest_canonical(nib.load(tmp_path / "workflow" / "ct.nii.gz"))
    found = nib.as_closest_canonical(nib.load(tmp_path / "labels" / "series.nii.gz"))
    assert len(np.unique(expected.dataobj)) > 2
    assert np.allclose(found.affine, expected.affine, atol=1e-4)
    assert np.array_equal(np.asanyarray(found.dataobj), np.asanyarray(expected.dataobj))
    assert (tmp_path / "labels" / "series.dcm").is_file()


def test_it_agrees_with_itself(data: Path) -> None:
    for row in evaluate_folders(str(data / "labels"), str(data / "labels"), labels=LABELS):
        assert (row["dsc"], row["nsd"]) == (1.0, 1.0)
