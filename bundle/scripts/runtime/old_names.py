"""Names of version 0.1 that configurations and programs may still have, and where each is found today."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .errors import BadInput

# what configurations and documents named when all modules lay in one folder
MODULES = {
    "augmentation": "transforms.augmentation",
    "cases": "data.cases",
    "checkpoint": "handlers.checkpoint",
    "committee": "networks.committee",
    "forward": "autograd.forward",
    "history": "handlers.history",
    "hyper_parameter_search": "auto3dseg.hyper_parameter_search",
    "inferer": "inference.inferer",
    "label_map_writer": "handlers.label_map_writer",
    "location": "runtime.bundle_paths",
    "loss": "training.loss",
    "loss_record": "handlers.loss_record",
    "network": "networks.unet",
    "normalisation": "transforms.normalisation",
    "organ_scores": "metrics.organ_scores",
    "orientation": "transforms.orientation",
    "pictures": "visualize.overlays",
    "precision": "networks.precision",
    "predictor": "inference.predictor",
    "progress": "handlers.progress",
    "ranks": "training.distributed",
    "read_ahead": "data.prefetch",
    "resampling": "transforms.resampling",
    "score_report": "metrics.score_table",
    "selection": "training.selection",
    "selection_statistics": "handlers.selection_statistics",
    "slices": "data.slice_dataset",
    "tracking": "handlers.mlflow_tracking",
    "trainer": "training.trainer",
    "validation": "handlers.validation",
    "volumes": "data.volumes",
    "workflow": "runtime.workflow",
}

# class or function of 0.1, by the old name of its module -> its name there today
NAMES = {
    "forward.OneForward": "SharedForward",
    "forward.TwoForwards": "RecomputeForward",
    "forward.WholeGraph": "PlainAutograd",
    "loss.AllRanksNnUNetLoss": "GlobalNnUNetLoss",
    "ranks.AllRanksChoose": "GlobalSelection",
    "ranks.EachRankChooses": "LocalSelection",
    "read_ahead.ReadAheadLoader": "PrefetchLoader",
    "ranks.is_follower": "is_not_rank_zero",
}
# key of a configuration in 0.1 -> today's
KEYS = {
    "follower": "is_not_rank_zero",
    "iterations": "iterations_per_epoch",
    "passes": "backward_mode",
    "ranks": "distributed",
    "voters": "ensemble_members",
}
# option of a command in 0.1 -> today's
OPTIONS = {("phantom", "ways"): "corruptions"}


def refuse_old_options(words: Sequence[str]) -> None:
    """Raise `BadInput` for an option of a command by its name in 0.1, with its name of today.

    Args:
        words: what is typed after `cyclic-committee`.
    """
    for word in words[1:]:
        name = word.removeprefix("--").split("=")[0]
        if word.startswith("--") and (words[0], name) in OPTIONS:
            raise BadInput(f"--{name}: is called --{OPTIONS[words[0], name]} today. Write that in your command.")


def refuse_old_keys(config: Mapping[str, Any], *, known: Collection[str]) -> None:
    """Raise `BadInput` for a key by its name in 0.1, given or asked for, with its name of today.

    Args:
        config: of top-level keys, or `a#b`.
        known: keys of the bundle that it is for, which may be an older one.
    """
    text = json.dumps(config, default=str)
    given = {key.split("#")[0] for key in config}
    for old, today in KEYS.items():
        if old not in known and (old in given or re.search(rf"[@%]{old}\b", text)):
            raise BadInput(f"{old}: is called {today} today. Write that in your configuration or command.")


def keep_old_names(package: str) -> None:
    """Let a package's modules be imported by their old names, too: `scripts.selection.SmallLoss` is found.

    Args:
        package: `scripts`, or `cyclic_committee.scripts`.
    """
    earlier = [one for one in sys.meta_path if getattr(one, "old_names_of", "") == package]  # it is imported once more
    sys.meta_path[:] = [*(one for one in sys.meta_path if one not in earlier), OldNames(package)]


class OldNames(MetaPathFinder, Loader):
    """Finds a module by its old name, after all others have looked: one that takes everything from today's."""

    def __init__(self, package: str) -> None:
        self.old_names_of = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how a module is imported, if its name is an old one."""
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == self.old_names_of and name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Make the empty module answer with what today's has."""
        old = module.__name__.rpartition(".")[2]
        today = import_module(f"{self.old_names_of}.{MODULES[old]}")
        module.__getattr__ = lambda name: getattr(today, NAMES.get(f"{old}.{name}", name))  # type: ignore[method-assign]
