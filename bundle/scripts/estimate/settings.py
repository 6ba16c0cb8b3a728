"""The parts of a configuration that a training's cost depends on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from ..networks.precision import autocast
from ..runtime.config_files import config_files
from ..runtime.configuration import open_config
from ..runtime.errors import BadInput, find_bad_input


@dataclass(frozen=True)
class Settings:
    """The parts of a configuration that a training's cost depends on, on the CPU."""

    members: list[nn.Module]
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any, Tensor], Tensor]
    backward_mode: Any
    inferer: Any
    precision: str
    autocast: torch.autocast  # what it means on this CPU
    preprocessing: Any  # of one sample
    shape: list[int]  # of one sample: 1, channels, x, y
    crop_size: list[int]
    classes: int
    batch: int
    most_kept: int  # samples that a member learns from in the first epoch
    kept: int  # in the last
    gradient_clip: float
    iterations_per_epoch: int  # in an epoch
    epochs: int
    workers: int

    def noise(self, samples: int, *, size: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return image `(samples, channels, x, y)` and label `(samples, 1, x, y)`, by default of the patch's size."""
        size = size or self.shape[2:]
        label = torch.randint(0, self.classes, (samples, 1, *size), dtype=torch.uint8)
        return torch.randn(samples, self.shape[1], *size), label


def read_settings(overlays: Sequence[str], values: Mapping[str, Any], *, bundle: str | Path | None = None) -> Settings:
    """Return what a configuration says; the networks are built, and the modules that training imports are imported.

    Args:
        overlays: configurations that go over train.yaml, by path or by name in the bundle's configs.
        values: keys of the configuration with other values.
        bundle: the folder of a bundle; by default the installed one.

    Raises:
        BadInput: a file that is missing, an unknown key, or a configuration that no training can be made of.
    """
    parser = open_config("train.yaml", overlays, bundle=bundle, values={**values, "device": "$torch.device('cpu')"})
    try:
        return settings_from(parser)
    except Exception as error:  # YAML, missing keys, and all that a component's construction may raise
        bad_input = find_bad_input(error)
        if bad_input is not None:
            raise BadInput(str(bad_input)) from error
        reason = str(error.__cause__ or error)
        files = ", ".join(config_files("train.yaml", overlays, bundle=bundle))
        raise BadInput(f"{files}: no training can be made of it ({reason}). Correct the key.") from error


def settings_from(parser: ConfigParser) -> Settings:
    """Return what a parsed configuration says."""
    get = parser.get_parsed_content
    import_handlers(parser)
    network, select, batch, epochs = get("network"), get("select"), int(get("batch_size")), int(get("max_epochs"))

    def kept(epoch: int) -> int:
        rule = select.at_epoch(epoch)
        return int(rule.choose(torch.zeros(len(network.members), batch)).sum(dim=1).max())

    return Settings(
        members=list(network.train().members),
        optimizer=get("optimizer"),
        loss=get("loss"),
        backward_mode=get("backward_mode"),
        inferer=get("train#inferer"),
        precision=get("precision"),
        autocast=autocast("cpu", get("precision")),
        preprocessing=get("train#preprocessing"),
        shape=[1, int(get("channels")), *map(int, get("patch_size"))],
        crop_size=[*map(int, get("crop_size"))],
        classes=int(get("classes")),
        batch=batch,
        most_kept=kept(0),
        kept=kept(epochs - 1),
        gradient_clip=float(get("gradient_clip")),
        iterations_per_epoch=int(get("iterations_per_epoch")),
        epochs=epochs,
        workers=int(get("num_workers")),
    )


def import_handlers(parser: ConfigParser) -> None:
    """Import the modules of training's handlers, which take memory: MLflow's tens of MB."""
    for number, handler in enumerate(parser["train#handlers"]):
        module, _, _ = handler["_target_"].rpartition(".")
        disabled = "_disabled_" in handler and parser.get_parsed_content(f"train#handlers#{number}#_disabled_")
        if module and not disabled:
            importlib.import_module(module)
