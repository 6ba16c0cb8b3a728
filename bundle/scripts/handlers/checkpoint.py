"""Checkpoints: saving a training, resuming it, loading weights."""

from __future__ import annotations

import json
import logging
import pickle
import random
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from ..runtime.atomic_files import put_in_place, unfinished_path
from ..runtime.errors import BadInput, find_bad_input

log = logging.getLogger(__name__)


class RandomStates:
    """The states of all random number generators, as tensors and numbers that load with `weights_only=True`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the states of Python's, numpy's and torch's generators."""
        version, internal, gauss = random.getstate()
        _, keys, position, has_gauss, cached = np.random.get_state()  # type: ignore[misc]
        return {
            "python": [version, list(internal), gauss],
            "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the generators as they were."""
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"].cpu())
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])


# keys that a training may go on with others of: followed from then on, and said in the log
FOLLOWED = {
    *("max_epochs", "learning_rate", "lr_scheduler", "momentum", "weight_decay", "gradient_clip"),
    *("precision", "batch_size", "loss", "distributed"),
}
# those that have no part in what it learns
CHANGEABLE = {
    *FOLLOWED,
    *("dataset_dir", "data_root", "layout", "output_dir", "cache_dir", "model_path", "bundle_root"),
    *("device", "num_workers", "backward_mode", "resume", "is_resumed", "is_not_rank_zero", "checkpoint"),
    *("track", "is_tracked", "tracking_uri", "experiment_name", "run_name", "parent_run_id"),
    *("val_interval", "train", "validate", "training", "run"),  # wiring: what may be given stands in keys of its own
}
SCHEDULE = ("learning_rate", "lr_scheduler")


class TrainingCheckpoint:
    """The one file that a training goes on from: members, optimiser, scheduler, epoch, random states.

    A training may go on with other `max_epochs`, or another learning rate: the schedule is then the new one, at the
    epoch where the training is. Other keys are followed or refused, see `CHANGEABLE`.

    Args:
        path: of the file; written at every epoch's end under another name, then renamed.
        network, optimizer, lr_scheduler: what is trained, saved under these names.
        config: the merged configuration.
    """

    def __init__(
        self,
        path: str,
        *,
        network: nn.Module,
        optimizer: Any,
        lr_scheduler: Any,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.config: dict[str, Any] = json.loads(json.dumps(dict(config or {}), default=str))
        self.parts = {
            "network": network,
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
            "random_states": RandomStates(),
        }
        self.groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    def save(self, engine: Any) -> None:
        """Save all parts and the engine's place."""
        parts = {**self.parts, "grad_scaler": engine.update.grad_scaler}
        checkpoint = {name: part.state_dict() for name, part in parts.items()}
        save_whole({**checkpoint, "trainer": engine.state_dict(), "config": json.dumps(self.config)}, self.path)

    def load(self, engine: Any) -> None:
        """Set all parts and the engine as they were.

        Raises:
            BadInput: no checkpoint, an unreadable one, or one of another network; a key that was changed since.
        """
        max_epochs = engine.state.max_epochs
        checkpoint = load_file(
            self.path, map_location="cpu"
        )  # random states stay there; the parts copy to their device
        parts = {**self.parts, "grad_scaler": engine.update.grad_scaler}
        missing = {*parts, "trainer"} - checkpoint.keys()
        if missing:
            raise BadInput(
                f"{self.path}: is no training's checkpoint (it lacks {min(missing)}). Start without --resume."
            )
        config = json.loads(checkpoint.get("config", "{}"))  # version 0.1 kept none
        self.require_same_config(config)
        apart = {"random_states"} | (
            {"grad_scaler"} if not checkpoint["grad_scaler"] else set()
        )  # of another precision
        was = checkpoint["trainer"]["max_epochs"]
        follows = was != max_epochs or (config and any(config.get(key) != self.config.get(key) for key in SCHEDULE))
        apart |= {"lr_scheduler"} if follows else set()
        load_parts({name: part for name, part in parts.items() if name not in apart}, checkpoint, self.path)
        engine.load_state_dict(checkpoint["trainer"])
        for group, given in zip(self.parts["optimizer"].param_groups, self.groups, strict=True):
            group |= {key: value for key, value in given.items() if follows or key not in ("lr", "initial_lr")}
        if follows:
            self.replay_schedule(engine.state.epoch)
            rate = self.parts["optimizer"].param_groups[0]["lr"]
            log.warning(f"The schedule is that of {max_epochs} epochs, was {was}: the learning rate is {rate:.4g} now.")
        engine.state.max_epochs = max_epochs
        self.parts["random_states"].load_state_dict(checkpoint["random_states"])

    def require_same_config(self, config: Mapping[str, Any]) -> None:
        """Raise `BadInput` for the first key that has another value than in a checkpoint; it may hold none."""
        for key in sorted((config.keys() | self.config.keys()) - CHANGEABLE if config and self.config else ()):
            if config.get(key) != self.config.get(key):
                was = json.dumps(config.get(key))[:100]
                raise BadInput(
                    f"{key}: was {was} when {self.path} was begun, and the training can't go on with another. "
                    "Give that one, or start anew without --resume in another output_dir."
                )
        for key in sorted(FOLLOWED - {"max_epochs", *SCHEDULE} if config and self.config else ()):
            if config.get(key) != self.config.get(key):
                log.warning(f"{key}: is another than the training was begun with, and is followed from now on.")

    def replay_schedule(self, epochs: int) -> None:
        """Bring the new scheduler, and with it the learning rates, to where they are after some epochs."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, that the optimiser has taken no step before
            for _ in range(epochs):
                self.parts["lr_scheduler"].step()


class ResumeTraining:
    """Load the checkpoint when training starts, before other handlers look at what was done.

    A training that was stopped between its last checkpoint and its end has no epoch left: it only ends.

    Args:
        checkpoint: what it goes on from.
        model_path: the weights that it ends with.
    """

    order = -1  # see `CommitteeTrainer`

    def __init__(self, checkpoint: TrainingCheckpoint, *, model_path: str) -> None:
        self.checkpoint, self.model_path = checkpoint, Path(model_path)

    def attach(self, engine: Any) -> None:
        """Load at the start."""
        engine.add_event_handler(Events.STARTED, self.load)

    def load(self, engine: Any) -> None:
        """Load.

        Raises:
            BadInput: see `TrainingCheckpoint.load`; or a training that has ended.
        """
        self.checkpoint.load(engine)
        path, epoch = self.checkpoint.path, engine.state.epoch
        if epoch >= (engine.state.max_epochs or 0) and self.is_written():
            raise BadInput(f"{path}: epoch {epoch} is done already. Raise max_epochs above it.")

    def is_written(self) -> bool:
        """Return whether the last weights are the checkpoint's; files' times say nothing where a clock is off."""
        trained = self.checkpoint.parts["network"].state_dict()
        try:
            written = load_file(self.model_path, map_location="cpu")
        except BadInput:  # none, or damaged: they are written anew
            return False
        return written.keys() == trained.keys() and all(torch.equal(written[k], v.cpu()) for k, v in trained.items())


class SaveTraining:
    """Save the checkpoint at every epoch's end, the best weights when validation finds them, the last ones at the end.

    After all other handlers, so that what they did in an epoch is saved with it. Inference takes the last weights, as
    the paper does.

    Args:
        checkpoint: what a training goes on from.
        network: whose weights are saved, as a plain state dict.
        model_path: the last weights, written when the training has ended.
        best_model_path: the weights with the highest value of the validator's key metric.
        validator: the evaluator that ran in this epoch, or None.
    """

    order = 1  # see `CommitteeTrainer`

    def __init__(
        self,
        checkpoint: TrainingCheckpoint,
        *,
        network: nn.Module,
        model_path: str,
        best_model_path: str,
        validator: Engine | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.network = network
        self.model_path = Path(model_path)
        self.best_model_path = Path(best_model_path)
        self.validator = validator

    def attach(self, engine: Any) -> None:
        """Save at the end of every epoch and of the training."""
        engine.state_dict_user_keys.append("best_validation")
        engine.state.best_validation = float("-inf")
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def epoch_completed(self, engine: Any) -> None:
        """Save the checkpoint, and the weights if they are the best so far."""
        value = self.validated_in(engine.state.epoch)
        if value is not None and value > engine.state.best_validation:
            engine.state.best_validation = value
            save_whole(self.network.state_dict(), self.best_model_path)
        self.checkpoint.save(engine)

    def validated_in(self, epoch: int) -> float | None:
        """Return the key metric if the validator ran in this epoch."""
        state: Any = self.validator.state if self.validator is not None else None
        if state is None or state.epoch != epoch or state.key_metric_name not in state.metrics:
            return None
        return float(state.metrics[state.key_metric_name])

    def completed(self, engine: Any) -> None:
        """Save the last weights."""
        save_whole(self.network.state_dict(), self.model_path)


class LoadWeights:
    """Load a network's weights before an evaluator starts; a file that doesn't fit stops it.

    Args:
        path: a state dict, or the checkpoint of a training.
        network: whose weights they are.
    """

    def __init__(self, path: str, network: nn.Module) -> None:
        self.path = Path(path)
        self.network = network

    def attach(self, engine: Any) -> None:
        """Load at the start."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Load the weights.

        Raises:
            BadInput: no such file, unreadable, or of another network.
        """
        checkpoint = load_file(self.path, map_location=engine.state.device)
        load_parts({"network": self.network}, {"network": checkpoint.get("network", checkpoint)}, self.path)


def load_parts(parts: Mapping[str, Any], checkpoint: Mapping[str, Any], path: Path) -> None:
    """Load each part from a checkpoint; an error names the file."""
    for name, part in parts.items():
        try:
            part.load_state_dict(checkpoint[name])
        except Exception as error:  # torch raises RuntimeError, ValueError, KeyError, ...
            reason = find_bad_input(error) or f"its {name} doesn't fit this configuration ({error})."
            raise BadInput(f"{path}: {reason}") from error


def load_file(path: Path, *, map_location: Any) -> dict[str, Any]:
    """Return what a file of `save_whole` holds: tensors, numbers, strings, lists, dicts, nothing that runs.

    Raises:
        BadInput: no such file, or an unreadable one.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such checkpoint. Train first, or give another file.")
    try:
        if zipfile.is_zipfile(path):  # as torch.save writes; torch.load doesn't look at the checksums
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise BadInput(f"{path}: is damaged (the checksum of {damaged} is wrong). Give another file.")
        loaded = torch.load(path, map_location=map_location, weights_only=True)
    except BadInput:
        raise
    except pickle.UnpicklingError as error:  # whose advice is to load what may run code
        raise BadInput(f"{path}: is damaged, or holds other things than weights. Give another file.") from error
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"{path}: not a readable checkpoint ({reason}). Give another file.") from error
    if not isinstance(loaded, dict):
        raise BadInput(f"{path}: holds no state dict. Give another file.")
    require_finite_weights(loaded.get("network", loaded), path)
    return loaded


def require_finite_weights(weights: Mapping[str, Any], path: Path) -> None:
    """Raise `BadInput` if a weight is NaN or infinite."""
    for name, value in weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise BadInput(f"{path}: {name} holds NaN or infinite numbers. Give another file.")


def save_whole(content: Mapping[str, Any], path: Path) -> None:
    """Save under a temporary name, then rename: the file is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(path)
    try:
        torch.save(dict(content), unfinished)
        put_in_place(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
