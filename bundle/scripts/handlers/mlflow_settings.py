"""The settings and the software of a training, as parameters and tags of its MLflow run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from typing import Any

import torch

KEY_LENGTH, VALUE_LENGTH = 250, 6000  # MLflow's limits for a parameter
EXPRESSION_LENGTH, LIST_LENGTH = 250, 20  # longer ones aren't settings that runs are compared by


def without_password(text: str) -> str:
    """Hide the user and the password of an address: what is logged here is seen by others."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def valid_key(name: str) -> str:
    """Return a name as MLflow accepts it for a parameter or a metric."""
    return re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)[:KEY_LENGTH]


def plain(value: Any) -> Any:
    """Return a copy of dicts, lists, numbers, strings and None alone; whatever else is in it becomes its string."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if getattr(value, "ndim", None) == 0:
        return value.item()  # numpy's and torch's scalars
    if value is None or type(value) in (bool, int, float):
        return value
    return without_password(str(value))


def hyper_parameters(config: Mapping[str, Any], *, prefix: str = "", depth: int = 3) -> dict[str, str]:
    """Return the settings of a plain config as strings, `select: {keep: 0.75}` as "select.keep".

    Settings are scalars and short lists of scalars, down to `depth` levels. Long expressions and "_meta_" are left out.
    """
    parameters: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        is_long = isinstance(value, str) and value.startswith("$") and len(value) > EXPRESSION_LENGTH
        if key.startswith("_meta_") or is_long:
            continue
        if isinstance(value, dict):
            if depth > 1:
                parameters |= hyper_parameters(value, prefix=f"{name}.", depth=depth - 1)
        elif not isinstance(value, list) or _is_short(value):
            parameters[valid_key(name.replace("/", "_"))] = str(value)[:VALUE_LENGTH]
    return parameters


def _is_short(values: list[Any]) -> bool:
    return len(values) <= LIST_LENGTH and not any(isinstance(value, (dict, list)) for value in values)


def environment() -> str:
    """Return Python, platform, processors and all installed distributions, one a line; never the host's name."""
    lines = [f"python=={platform.python_version()}", f"platform: {platform.platform()}", f"CPUs: {os.cpu_count()}"]
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    lines.append(f"CUDA: {torch.version.cuda}, {', '.join(gpus)}" if gpus else "CUDA: no device")
    installed = {f"{item.metadata['Name']}=={item.version}" for item in importlib.metadata.distributions()}
    return "\n".join([*lines, *sorted(installed, key=str.lower)]) + "\n"
