"""What several tests share: the bundle's place, phantoms, and workflows that run in this process."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side; before torch is imported, which looks once

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from cyclic_committee.scripts.data.slice_store import Preparation
from cyclic_committee.scripts.handlers.checkpoint import TrainingCheckpoint
from cyclic_committee.scripts.networks.committee import Committee
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.phantoms.data_set import write_phantoms
from cyclic_committee.scripts.transforms.normalisation import ClipAndStandardise
from cyclic_committee.scripts.transforms.resampling import ResampleThenNormalise

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
BUNDLE = ROOT / "bundle"
CONFIGS = BUNDLE / "configs"
CT_EXAMPLE = ROOT.parent / "shared" / "data" / "ct_example"
# two stages of few channels on small patches: what a test can train in seconds
TINY = {
    "member#features": [4, 8, 16],
    "spacing_mm": [6.0, 6.0],
    "patch_size": [48, 48],
    "crop_size": [48, 48],
    "precision": "float32",
    "backward_mode": {"_target_": "scripts.autograd.forward.PlainAutograd"},  # tracing is half of a tiny training
    "device": "$torch.device('cpu')",
}
WHOLE_PLAN: dict[str, Any] = {  # as `prepare` writes plans
    **{"labels": {"1": "liver"}, "channels": 1, "orientation": "RAS", "spacing_mm": [1, 1.5], "patch_size": [48, 48]},
    **{"normalise": [{"_target_": "scripts.transforms.normalisation.StandardiseImage", "nonzero": True}]},
    **{"crop_size": [56, 56], "rotation_degrees": 180, "member#features": [4, 8], "member#strides": [[2, 2]]},
    "batch_size": 8,
}


SCHEDULE = {
    "augmentation": [],
    "num_workers": 0,
    "batch_size": 4,
    "max_epochs": 2,
    "iterations_per_epoch": 3,
    "momentum": 0.9,
    "val_interval": 2,
}

LABELS = {"1": "liver", "2": "kidney", "3": "spleen", "4": "pancreas"}


def preparation(**settings: Any) -> Preparation:
    """Return how cases are prepared in tests, unless a test says otherwise."""
    usual: dict[str, Any] = {
        "spacing_mm": [1.0, 1.0],
        "orientation": "RAS",
        "normalise": [ClipAndStandardise([-200, 300], 50, 100)],
        "resampling": ResampleThenNormalise(),
        "labels": LABELS,
    }
    return Preparation(**{**usual, **settings})


def contents(folder: Path) -> dict[str, bytes]:
    """Return what each file of a folder holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five phantoms in FLARE21's layout."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=5, seed=7)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny committee's weights, random ones that say of themselves that they were trained."""
    torch.manual_seed(3)
    network = Committee([UNet2d(in_channels=1, out_channels=5, features=[4, 8, 16]) for _ in range(3)])
    network.iterations_trained += 1
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def process_state() -> Iterator[None]:
    """Undo what a workflow sets in its process: search path, error hook, determinism."""
    path, hook = list(sys.path), sys.excepthook
    yield
    sys.path[:], sys.excepthook = path, hook
    torch.use_deterministic_algorithms(False)


Workflow = Callable[..., ConfigWorkflow]


@pytest.fixture
def workflow(process_state: None, monkeypatch: pytest.MonkeyPatch) -> Workflow:
    """Make a workflow from files in `configs`, with overrides; `run()` and `finalize()` are the test's."""
    monkeypatch.syspath_prepend(str(BUNDLE))

    def make(kind: str, *configs: str, **overrides: Any) -> ConfigWorkflow:
        files = [str(CONFIGS / config) for config in configs]
        made = ConfigWorkflow(files, workflow_type=kind, **overrides)
        made.initialize()
        return made

    return make


@pytest.fixture
def train(workflow: Workflow, phantoms: Path) -> Callable[..., Path]:
    """Train a tiny committee on the phantoms; returns the output folder, with `model.pt` in it."""

    def run(output: Path, *overlays: str, **overrides: Any) -> Path:
        values: dict[str, Any] = {
            **TINY,
            "dataset_dir": str(phantoms),
            "output_dir": str(output),
            "model_path": str(output / "model.pt"),
            **SCHEDULE,
            "track": False,
            **overrides,
        }
        values = {key: value for key, value in values.items() if value is not None}
        workflow("train", "train.yaml", *overlays, **values).run()
        return output

    return run


@pytest.fixture
def stopped_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Within it a training is stopped, as by an error, once an epoch's checkpoint is saved."""

    @contextmanager
    def stop(epoch: int) -> Iterator[None]:
        save = TrainingCheckpoint.save

        def save_and_stop(self: TrainingCheckpoint, engine: Any) -> None:
            save(self, engine)
            if engine.state.epoch == epoch:
                raise InterruptedError

        with monkeypatch.context() as patch:
            patch.setattr("scripts.handlers.checkpoint.TrainingCheckpoint.save", save_and_stop)
            with pytest.raises(RuntimeError):
                yield

    return stop
