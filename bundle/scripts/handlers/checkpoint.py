"""Checkpoints: saving a training, resuming it, loading weights."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from ..runtime.atomic_files import remove_unfinished, unfinished_path
from ..runtime.errors import BadInput, find_bad_input


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


class TrainingCheckpoint:
    """The one file that a training goes on from: members, optimiser, scheduler, epoch, random states.

    Args:
        path: of the file; written at every epoch's end under another name, then renamed.
        network, optimizer, lr_scheduler: what is trained, saved under these names.
    """

    def __init__(self, path: str, *, network: nn.Module, optimizer: Any, lr_scheduler: Any) -> None:
        self.path = Path(path)
        self.parts = {
            "network": network,
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
            "random_states": RandomStates(),
        }

    def save(self, engine: Any) -> None:
        """Save all parts and the engine's place."""
        parts = {**self.parts, "grad_scaler": engine.update.grad_scaler}
        checkpoint = {name: part.state_dict() for name, part in parts.items()}
        remove_unfinished(self.path.parent)
        save_whole({**checkpoint, "trainer": engine.state_dict()}, self.path)

    def load(self, engine: Any) -> None:
        """Set all parts and the engine as they were.

        Raises:
            BadInput: no checkpoint, an unreadable one, or one of another network.
        """
        max_epochs, device = engine.state.max_epochs, engine.state.device
        checkpoint = load_file(self.path, map_location=device)
        parts = {**self.parts, "grad_scaler": engine.update.grad_scaler}
        missing = {*parts, "trainer"} - checkpoint.keys()
        if missing:
            raise BadInput(
                f"{self.path}: is no training's checkpoint (it lacks {min(missing)}). Start without --resume."
            )
        load_parts({name: part for name, part in parts.items() if name != "random_states"}, checkpoint, self.path)
        engine.load_state_dict(checkpoint["trainer"])
        engine.state.max_epochs = max_epochs
        self.parts["random_states"].load_state_dict(checkpoint["random_states"])


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
        if epoch >= (engine.state.max_epochs or 0) and not older(self.model_path, path):
            raise BadInput(f"{path}: epoch {epoch} is done already. Raise max_epochs above it.")


def older(path: Path, than: Path) -> bool:
    """Return whether a file was written before another one, or not at all."""
    return not path.is_file() or path.stat().st_mtime_ns < than.stat().st_mtime_ns


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
        loaded = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"{path}: not a readable checkpoint ({reason}). Give another file.") from error
    if not isinstance(loaded, dict):
        raise BadInput(f"{path}: holds no state dict. Give another file.")
    return loaded


def save_whole(content: Mapping[str, Any], path: Path) -> None:
    """Save under a temporary name, then rename: the file is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(path)
    try:
        torch.save(dict(content), unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
