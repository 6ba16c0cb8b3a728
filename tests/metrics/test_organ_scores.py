from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.exceptions import NotComputableError
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from cyclic_committee.scripts.metrics import organ_scores as module
from cyclic_committee.scripts.metrics.organ_scores import OrganScores
from cyclic_committee.scripts.runtime.errors import BadInput

LABELS = {1: "liver", 2: "kidney"}
SIZES_MM = (0.5, 0.5, 2.5)


def write(file: Path, voxels: np.ndarray, *, affine: np.ndarray | None = None) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.uint8), np.diag([*SIZES_MM, 1.0]) if affine is None else affine), file)
    return str(file)


def liver_and_kidney(z: int) -> np.ndarray:
    voxels = np.zeros((10, 9, 8), dtype=np.uint8)
    voxels[2:5, 2:5, z : z + 3], voxels[7, 7, z] = 1, 2
    return voxels


@pytest.fixture
def cases(tmp_path: Path) -> list[dict[str, str]]:
    """Return two cases whose images are what an identity network predicts: a slice too high, and right."""
    shifted, right = liver_and_kidney(2), np.pad(liver_and_kidney(1), ((0, 3), (0, 0), (0, 1)))
    return [
        {
            "image": write(tmp_path / "images/train_007_0000.nii.gz", np.roll(shifted, 1, axis=2)),
            "label": write(tmp_path / "labels/train_007.nii.gz", shifted),
        },
        {
            "image": write(tmp_path / "images/train_002_0000.nii.gz", right),
            "label": write(tmp_path / "labels/train_002.nii", right),
        },
    ]


def evaluator(cases: list[dict[str, str]], metric: OrganScores) -> SupervisedEvaluator:
    load = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases, load), batch_size=1),
        network=torch.nn.Identity(),
        key_val_metric={"mean_dsc": metric},
    )


def item(
    file: str = "case.nii.gz", *, shape: tuple[int, ...] = (1, 4, 4, 4), value: int = 1
) -> dict[str, torch.Tensor]:
    label = MetaTensor(torch.full(shape, value), meta={"filename_or_obj": file})
    return {"pred": torch.full(shape, 1.0), "label": label}


def test_an_evaluator_receives_the_scores_of_every_case_and_organ(cases: list[dict[str, str]]) -> None:
    engine = evaluator(cases, OrganScores(labels=LABELS))
    engine.run()
    rows = engine.state.metric_details["mean_dsc"]
    assert [(row["case"], row["label"], row["organ"]) for row in rows] == [
        ("train_002", 1, "liver"),
        ("train_002", 2, "kidney"),
        ("train_007", 1, "liver"),
        ("train_007", 2, "kidney"),
    ]
    assert [row["dsc"] for row in rows] == pytest.approx([1, 1, 2 / 3, 0])
    assert [row["nsd"] for row in rows[:2]] == [1, 1]
    assert rows[3]["nsd"] == pytest.approx(0.5, abs=1e-6)  # slices of 2.5 mm: only the common face is within 1 mm
    assert engine.state.metrics["mean_dsc"] == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)


def test_the_means_are_metrics_of_their_own(cases: list[dict[str, str]]) -> None:
    engine = evaluator(cases, OrganScores(labels=LABELS))
    engine.run()
    rows, metrics = engine.state.metric_details["mean_dsc"], engine.state.metrics
    assert {*metrics} == {
        *("mean_dsc", "dsc_mean", "nsd_mean"),
        *("dsc_liver", "dsc_kidney", "nsd_liver", "nsd_kidney"),
    }
    assert metrics["dsc_mean"] == metrics["mean_dsc"]
    assert metrics["nsd_mean"] == pytest.approx(np.mean([row["nsd"] for row in rows]))
    assert metrics["dsc_liver"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["nsd_kidney"] == pytest.approx((1 + 0.5) / 2, abs=1e-6)
    assert engine.state.best_metric == metrics["mean_dsc"]


def test_a_second_run_starts_anew(cases: list[dict[str, str]]) -> None:
    engine = evaluator(cases, OrganScores(labels=LABELS))
    engine.run()
    first = engine.state.metrics.copy(), engine.state.metric_details["mean_dsc"]
    engine.run()
    assert (engine.state.metrics, engine.state.metric_details["mean_dsc"]) == first
    engine.data_loader.dataset.data.pop()
    engine.state.epoch_length = 1
    engine.run()
    assert {row["case"] for row in engine.state.metric_details["mean_dsc"]} == {"train_007"}


def test_a_batch_of_several_cases_is_scored_case_by_case(cases: list[dict[str, str]]) -> None:
    load = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    batch = next(iter(DataLoader(Dataset([cases[0], cases[0] | {"label": cases[0]["image"]}], load), batch_size=2)))
    metric = OrganScores(labels=LABELS)
    metric.update([{"pred": item["image"], "label": item["label"]} for item in decollate_batch(batch)])
    assert [row["case"] for row in metric.rows()] == ["train_007", "train_007", "train_007_0000", "train_007_0000"]
    assert [row["dsc"] for row in metric.rows()] == pytest.approx([2 / 3, 0, 1, 1])


def test_the_labels_may_come_from_a_configuration() -> None:
    config = {"metric": {"_target_": OrganScores.__module__ + ".OrganScores", "labels": {"1": "liver", "2": "kidney"}}}
    assert ConfigParser(json.loads(json.dumps(config))).get_parsed_content("metric").labels == LABELS


def test_slices_of_one_mm_are_within_one_mm_even_if_the_affine_is_oblique(tmp_path: Path) -> None:
    turn, tilt = 0.3, 0.2
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x
    voxels = liver_and_kidney(2)
    file = write(tmp_path / "oblique.nii.gz", voxels, affine=affine)
    label = Compose([LoadImaged("label"), EnsureChannelFirstd("label")])({"label": file})["label"]
    for axis in (1, 2, 3):
        metric = OrganScores(labels=LABELS)
        metric.update([{"pred": torch.roll(label, 1, dims=axis), "label": label}])
        assert [row["nsd"] for row in metric.rows()] == [1, 1]


def test_without_cases_nothing_can_be_computed() -> None:
    with pytest.raises(NotComputableError):
        OrganScores(labels=LABELS).compute()


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    metric = OrganScores(labels={1: "liver"})
    metric.update([item("a/label.nii.gz"), item("b/label.nii.gz"), item("b/other.nii.gz")])
    assert [row["case"] for row in metric.rows()] == ["a/label", "b/label", "other"]


def test_every_process_receives_the_scores_of_all_and_counts_a_case_once(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere: Mapping[str, Any] = {"b.nii": [[1, "liver", 0.5, 0.25]], "a.nii": [[1, "liver", 1.0, 1.0]]}
    gathered = [json.dumps(elsewhere), json.dumps({})]
    monkeypatch.setattr(module, "string_list_all_gather", lambda strings: [*strings, *gathered])
    metric = OrganScores(labels={1: "liver"})
    metric.update([item("a.nii")])
    assert [(row["case"], row["nsd"]) for row in metric.rows()] == [("a", 1.0), ("b", 0.25)]
    assert metric.compute() == 0.75


@pytest.mark.parametrize(
    ("pred", "label"),
    [((1, 4, 4, 4), (1, 4, 4, 3)), ((3, 4, 4, 4), (1, 4, 4, 4)), ((2, 4, 4, 4), (2, 4, 4, 4)), ((4, 4, 4), (4, 4, 4))],
)
def test_a_prediction_on_another_grid_is_refused_by_the_cases_name(
    pred: tuple[int, ...], label: tuple[int, ...]
) -> None:
    bad = {"pred": torch.ones(pred), "label": item("data/train_003.nii.gz", shape=label)["label"]}
    with pytest.raises(BadInput, match=r"data/train_003\.nii\.gz: case train_003 has a pred of the shape"):
        OrganScores(labels=LABELS).update([bad])


def test_a_reference_without_a_file_is_refused() -> None:
    for label in (torch.ones(1, 4, 4, 4), MetaTensor(torch.ones(1, 4, 4, 4))):
        with pytest.raises(BadInput, match="load the reference with LoadImaged"):
            OrganScores(labels=LABELS).update([{"pred": torch.ones(1, 4, 4, 4), "label": label}])


def test_wrong_settings_are_refused_when_the_metric_is_built() -> None:
    with pytest.raises(BadInput, match="labels must"):
        OrganScores(labels={0: "background", 1: "liver"})
    with pytest.raises(BadInput, match="tolerance_mm must"):
        OrganScores(labels=LABELS, tolerance_mm=-1)
