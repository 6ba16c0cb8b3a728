"""Auto3DSeg's training parameters, translated to keys of this bundle's configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bundles.fold_bundle import merged
from ..runtime.config_files import find_config, put, require_mapping
from ..runtime.errors import BadInput
from ..training import selection

STANDARD = {
    "num_epochs": "max_epochs",
    "num_epochs_per_validation": "val_interval",
    "num_images_per_batch": "batch_size",
    "mlflow_experiment_name": "experiment_name",
}
RULE = ("rule", "keep", "warmup_epochs")
ALL_EPOCHS = "@train#trainer#max_epochs"
FIXED = {"bundle_root", "output_dir", "model_path", "resume"}  # where scores and weights are looked for
NOT_OURS = ("fill_with_datastats", "CUDA_VISIBLE_DEVICES")  # MONAI's generators leave these among the parameters


def keys_of(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return training parameters as keys of the configuration, overlays first.

    Args:
        parameters: num_epochs, num_epochs_per_validation, num_images_per_batch, num_warmup_epochs (the learning rate
            rises for so long), mlflow_tracking_uri, mlflow_experiment_name; rule, keep, warmup_epochs (of the
            committee's rule, a class of `selection`); overlays, a list of configurations such as variants/small.yaml;
            else keys of the configuration. None for one of the standard parameters: as it is.
        config: train.yaml as it is without them.

    Raises:
        BadInput: no such rule or overlay, values that can't be.
    """
    for key in FIXED & parameters.keys():
        raise BadInput(f"{key}: belongs to the fold, whose results lie in its own folder. Leave it out.")
    left = {key: value for key, value in parameters.items() if key not in NOT_OURS}
    given: dict[str, Any] = {}
    for name in left.pop("overlays", None) or ():
        for key, value in require_mapping(find_config(str(name))).items():
            put(given, key, value)
    warmup_epochs = int(left.pop("num_warmup_epochs", None) or 0)
    tracking_uri = left.pop("mlflow_tracking_uri", None)
    rule = {name: left.pop(name) for name in RULE if name in left}
    for key, value in left.items():
        if not (key in STANDARD and value is None):
            put(given, STANDARD.get(key, key), value)
    if tracking_uri is not None:
        put(given, "tracking_uri", store_of(str(tracking_uri)))
    if rule:
        put(given, "select", rule_of(rule, merged(config, given)["select"]))
    if warmup_epochs:
        put(given, "lr_scheduler", with_warmup(warmup_epochs, merged(config, given)))
    return given


def store_of(tracking_uri: str) -> str:
    """Return where MLflow tracks to: an address as it is, of a folder a database in it, as MLflow wants no plain files.

    A relative folder begins where AutoRunner was started.
    """
    path = re.sub(r"^file:(//)?", "", tracking_uri)
    return tracking_uri if re.match(r"[a-z+]+:", path) else f"sqlite:///{Path(path).resolve() / 'mlflow.db'}"


def rule_of(given: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the committee's rule: another one, or the present one with other values.

    Raises:
        BadInput: no such rule, or values that it doesn't take.
    """
    values = {key: value for key, value in given.items() if key != "rule"}
    if "rule" not in given:
        return {**present, **values}
    rules = rule_names()
    if given["rule"] not in rules:
        raise BadInput(f"rule: there is no {given['rule']}. Choose one of {', '.join(rules)}.")
    getattr(selection, given["rule"])(**values)  # says what is wrong with them
    return {"_target_": f"scripts.training.selection.{given['rule']}", **values}


def rule_names() -> Sequence[str]:
    """Return the names of the rules in `selection`."""
    return sorted(rule.__name__ for rule in selection.Rule.__subclasses__())


def with_warmup(epochs: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the learning rate's schedule with some epochs before it in which it rises, linearly, to its value.

    Raises:
        BadInput: as many epochs as the training has, or more, or fewer than 0.
    """
    if not 0 < epochs < int(config["max_epochs"]):
        raise BadInput(
            f"num_warmup_epochs must be fewer than the {config['max_epochs']} epochs of the training, got {epochs}."
        )
    after = dict(config["lr_scheduler"])
    if after.get("total_iters") == ALL_EPOCHS:
        after["total_iters"] = f"${ALL_EPOCHS} - {epochs}"
    rising = {
        "_target_": "torch.optim.lr_scheduler.LinearLR",
        "optimizer": "@optimizer",
        "start_factor": 1 / (epochs + 1),
        "total_iters": epochs,
    }
    return {
        "_target_": "torch.optim.lr_scheduler.SequentialLR",
        "optimizer": "@optimizer",
        "schedulers": [rising, after],
        "milestones": [epochs],
    }
