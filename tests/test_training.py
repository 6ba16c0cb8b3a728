"""Training through the bundle's workflow."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from cyclic_committee.scripts.runtime.errors import find_bad_input

Train = Callable[..., Path]
StoppedAfter = Callable[[int], AbstractContextManager[None]]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def test_training_leaves_weights_a_checkpoint_pictures_and_counts(train: Train, tmp_path: Path) -> None:
    output = train(tmp_path)
    model = weights(output / "model.pt")
    assert int(model["iterations_trained"]) == 6
    assert {key.split(".")[1] for key in model if key.startswith("members")} == {"0", "1", "2"}
    checkpoint = weights(output / "checkpoint.pt")
    assert set(checkpoint) == {
        *("network", "optimizer", "lr_scheduler", "random_states", "grad_scaler", "trainer"),
        "config",
    }
    assert (output / "model_best.pt").is_file()
    assert (output / "pictures" / "curves.png").is_file()
    history = json.loads((output / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2]
    assert "validation/dsc_liver" in history[1]
    assert not list(output.glob(".unfinished*"))  # nothing half-written


def test_the_selection_is_counted_case_by_case_and_slice_by_slice(train: Train, tmp_path: Path) -> None:
    output = train(tmp_path)
    with (output / "selection.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case", "slice", "seen", "dropped"]
    assert sum(int(row["seen"]) for row in rows) == 2 * 3 * 4 * 3  # epochs, iterations, samples, members
    assert sum(int(row["dropped"]) for row in rows) == 2 * 3 * 1 * 3  # one of four is dropped
    history = json.loads((output / "history.json").read_text())
    assert history[0]["kept/member_1"] == pytest.approx(0.75)
    assert history[0]["score_kept/member_0"] < history[0]["score_dropped/member_0"]
    assert 0 <= history[0]["agreement/members_0_2"] <= 1


def test_a_run_repeats_bit_by_bit(train: Train, tmp_path: Path) -> None:
    first, second = (train(tmp_path / name, backward_mode=None) for name in "ab")  # as it is by default
    other = train(tmp_path / "c", backward_mode=None, seed=1)
    one, two, three = (weights(output / "model.pt") for output in (first, second, other))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], three[key]) for key in one)


AUGMENTATION = [
    {"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5, "spatial_axis": 0},
    {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.5, "std": 0.1, "sample_std": True},
]


@pytest.mark.parametrize("rule", ["small_loss", "random_subset"])
def test_a_training_that_stopped_goes_on_to_the_same_weights_bit_by_bit(
    train: Train, stopped_after: StoppedAfter, tmp_path: Path, rule: str
) -> None:
    settings: dict[str, Any] = {"max_epochs": 4, "augmentation": AUGMENTATION}
    if rule == "small_loss":
        settings["backward_mode"] = None  # as it is by default
    overlay = f"variants/{rule}.yaml"
    whole = train(tmp_path / "whole", overlay, **settings)

    stopped = tmp_path / "stopped"
    with stopped_after(2):
        train(stopped, overlay, **settings)
    assert weights(stopped / "checkpoint.pt")["trainer"]["iteration"] == 6
    assert not (stopped / "model.pt").exists()

    torch.manual_seed(99)  # what the process drew meanwhile must not matter
    np.random.seed(99)
    train(stopped, overlay, **settings, resume=True)
    one, two = weights(whole / "model.pt"), weights(stopped / "model.pt")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert (whole / "selection.csv").read_text() == (stopped / "selection.csv").read_text()
    histories = [json.loads((folder / "history.json").read_text()) for folder in (whole, stopped)]
    for straight, resumed in zip(*histories, strict=True):
        assert {k: v for k, v in straight.items() if "second" not in k} == {
            k: v for k, v in resumed.items() if "second" not in k
        }


def test_a_training_that_stopped_after_its_last_epoch_only_ends(train: Train, tmp_path: Path) -> None:
    output = train(tmp_path)
    whole, history = weights(output / "model.pt"), (output / "history.json").read_text()
    model = output / "model.pt"
    others = {key: value + 1 for key, value in whole.items()}  # of an earlier training, by a clock that is ahead
    for stopped in (model.unlink, lambda: torch.save(others, model), lambda: model.write_bytes(b"half a file")):
        stopped()
        train(tmp_path, resume=True)
        again = weights(output / "model.pt")
        assert all(torch.equal(whole[key], again[key]) for key in whole)
        assert (output / "history.json").read_text() == history


def test_a_finished_training_says_so_when_it_is_resumed(train: Train, tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path, resume=True)
    assert "epoch 2 is done already. Raise max_epochs" in str(find_bad_input(caught.value))


def test_a_training_that_goes_on_longer_follows_the_new_schedule(train: Train, tmp_path: Path) -> None:
    """As our own message says that it can: with the old schedule the learning rate was 0, and nothing was learned."""
    train(tmp_path, max_epochs=2, learning_rate=0.01)
    before = weights(tmp_path / "model.pt")
    train(tmp_path, max_epochs=3, learning_rate=0.01, resume=True)
    after = weights(tmp_path / "model.pt")
    assert any(not torch.equal(before[key], after[key]) for key in before if key.endswith("weight"))
    longer = weights(tmp_path / "checkpoint.pt")
    assert longer["lr_scheduler"]["total_iters"] == 3
    assert longer["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.0, abs=1e-9)
    train(tmp_path, max_epochs=6, learning_rate=0.02, resume=True)
    group = weights(tmp_path / "checkpoint.pt")["optimizer"]["param_groups"][0]
    assert group["initial_lr"] == 0.02


@pytest.mark.parametrize(("changed", "key"), [({"seed": 7}, "seed"), ({"iterations_per_epoch": 5}, "iterations_per_")])
def test_what_a_training_cannot_go_on_with_is_named(
    train: Train, tmp_path: Path, changed: dict[str, Any], key: str
) -> None:
    train(tmp_path)
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path, resume=True, **{"max_epochs": 4, **changed})
    assert str(find_bad_input(caught.value)).startswith(f"{key}")


def test_resuming_without_a_checkpoint_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path, resume=True)
    assert "checkpoint.pt: no such checkpoint" in str(find_bad_input(caught.value))


def test_the_learning_rate_falls_as_a_polynomial(train: Train, tmp_path: Path) -> None:
    output = train(tmp_path, max_epochs=4, iterations_per_epoch=1, learning_rate=0.01)
    rate = weights(output / "checkpoint.pt")["optimizer"]["param_groups"][0]["lr"]
    assert rate == pytest.approx(0.0, abs=1e-9)  # after the last epoch
    schedule = torch.optim.lr_scheduler.PolynomialLR(
        torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.01), total_iters=1000, power=0.9
    )
    for _ in range(699):
        schedule.optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(0.01 * (1 - 699 / 1000) ** 0.9, rel=1e-6)


def test_every_training_is_tracked(train: Train, tmp_path: Path) -> None:
    output = train(tmp_path, "variants/small_loss.yaml", track=True)
    client = MlflowClient(f"sqlite:///{output}/mlflow/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "cyclic-committee"]
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.01"
    assert run.data.params["select._target_"] == "scripts.training.selection.SmallLoss"
    assert run.data.params["select.keep"] == "0.75"
    for metric in ("loss/member_2", "kept/member_0", "agreement/members_0_1", "validation/nsd_pancreas"):
        assert metric in run.data.metrics
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "environment.txt", "pictures", "selection.csv"} <= artifacts
    pictures = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "pictures")}
    assert "pictures/curves.png" in pictures
    assert len(pictures) == 2  # curves, and the one case that validates


def test_a_run_that_is_not_tracked_leaves_no_store(train: Train, tmp_path: Path) -> None:
    assert not (train(tmp_path) / "mlflow").exists()


@pytest.mark.parametrize("variant", ["every_sample", "random_subset", "warmup", "segresnet", "mixed"])
def test_each_variant_trains(train: Train, tmp_path: Path, variant: str) -> None:
    overrides: dict[str, Any] = {"backward_mode": None}
    overrides |= {"member#features": None} if variant in ("segresnet", "mixed") else {}
    if variant == "segresnet":
        overrides["member#init_filters"] = 8
    output = train(tmp_path, f"variants/{variant}.yaml", max_epochs=1, iterations_per_epoch=1, **overrides)
    assert int(weights(output / "model.pt")["iterations_trained"]) == 1


def damaged(phantoms: Path, folder: Path, damage: str) -> Path:
    """Return a copy of the phantoms with one case damaged."""
    for name in ("TrainingImg", "TrainingMask"):
        (folder / name).mkdir(parents=True)
        for path in (phantoms / name).iterdir():
            (folder / name / path.name).write_bytes(path.read_bytes())
    image, label = folder / "TrainingImg" / "train_002_0000.nii.gz", folder / "TrainingMask" / "train_002.nii.gz"
    volume = nib.load(image)
    if damage == "truncated":
        image.write_bytes(image.read_bytes()[:5000])
    elif damage == "nan":
        voxels = volume.get_fdata(dtype=np.float32)
        voxels[3, 4, 5] = np.nan
        nib.save(nib.Nifti1Image(voxels, volume.affine), image)
    elif damage == "affine":
        nib.save(nib.Nifti1Image(np.asanyarray(volume.dataobj), np.eye(4)), image)
    elif damage == "shape":
        nib.save(nib.Nifti1Image(np.asanyarray(volume.dataobj)[..., :-1], volume.affine), image)
    elif damage == "labels":
        nib.save(nib.Nifti1Image(np.full(volume.shape, 7, np.uint8), volume.affine), label)
    elif damage == "no partner":
        label.unlink()
    elif damage == "unreadable":
        image.write_bytes(b"no volume")
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "train_002_0000.nii.gz: damaged or truncated"),
        ("unreadable", "train_002_0000.nii.gz: not a readable NIfTI file"),
        ("nan", "train_002_0000.nii.gz: 1 voxels are NaN or infinite, the first at (3, 4, 5)"),
        ("affine", "train_002.nii.gz: its voxels lie up to"),
        ("shape", "train_002.nii.gz: has the shape"),
        ("labels", "train_002.nii.gz: holds the label ids 7, which are not in labels (0, 1, 2, 3, 4)"),
        ("no partner", "train_002_0000.nii.gz: has no label map in"),
    ],
)
@pytest.mark.parametrize("fold", ["none", 3])  # the damaged case trains, or validates
def test_a_damaged_case_is_named_before_training(
    train: Train, phantoms: Path, tmp_path: Path, fold: int | str, damage: str, message: str
) -> None:
    folder = damaged(phantoms, tmp_path / "data", damage)
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path / "output", dataset_dir=str(folder), fold=fold)
    assert message in str(find_bad_input(caught.value))
    assert not (tmp_path / "output" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"leraning_rate": 0.1},
            "leraning_rate: no such key, nothing in the configuration uses it. Did you mean learning_rate?",
        ),
        ({"select#keep": 0}, "keep must be in (0, 1], got 0"),
        ({"network_def#members": ["%member", "%member"]}, "network_def has 2 members, but LossDifference needs 3"),
        ({"network_def#ensemble_members": [5]}, "ensemble_members must be indices of the 3 members"),
        ({"fold": 9}, "fold must be 0 to 4, all or none, got 9"),
        ({"labels": {"0": "nothing"}, "fold": "none"}, "labels must have different ids from 1 to 255, got 0"),
        ({"orientation": "XYZ"}, "orientation must be three axis codes such as RAS, got XYZ"),
        ({"layout": "bids"}, "layout: bids is unknown"),
        ({"precision": "double"}, "precision must be one of auto"),
        ({"dataset_dir": "/nowhere"}, "/nowhere: no such folder"),
        ({"tracking_uri": "/some/folder", "track": True}, "tracking_uri"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(
    train: Train, tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception) as caught:
        train(tmp_path, **overrides)
    found = find_bad_input(caught.value)
    assert message in str(found)
    assert "\n" not in str(found)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_two_trainings_never_write_into_one_folder(train: Train, tmp_path: Path) -> None:
    output = tmp_path / "run"
    code = (
        "import sys, time; from cyclic_committee.scripts.training.distributed import claim; claim(sys.argv[1]); "
        "import os; child = os.fork(); print(child, flush=True) if child else None; time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(output)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    orphan = int(other.stdout.readline())  # as a loading process is, for some seconds
    try:
        with pytest.raises(RuntimeError) as caught:
            train(output)
        assert str(find_bad_input(caught.value)).startswith(f"{output}: another training writes there.")
        assert not (output / "slices").exists()
    finally:
        other.kill()
        other.wait()
    try:
        train(output, max_epochs=1)  # what was killed holds nothing
        train(output, max_epochs=2, resume=True)  # nor does this process keep itself out
        once = code.split("; import os")[0]
        subprocess.run([sys.executable, "-c", once, str(output)], check=True)  # nor, once it has done, another
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_weights_that_can_not_be_written_are_told_before_any_case_is_prepared(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path / "run", model_path=str(tmp_path / "file" / "model.pt"))
    assert "model.pt: can't be written" in str(find_bad_input(caught.value))
    assert "Give another model_path" in str(find_bad_input(caught.value))
    assert not (tmp_path / "run" / "slices").exists()
