"""The start of a workflow: errors, log, seed, and a check of the configuration's keys."""

from __future__ import annotations

import copy
import difflib
import json
import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from .allocator import keep_freed_memory
from .bundle_paths import bundle_root
from .errors import BadInput, one_line_errors
from .old_names import refuse_old_keys

NOISE = ("monai", "ignite", "torch", "mlflow", "alembic")  # their warnings are for programmers, not for users


def begin(*, seed: int | None = None) -> None:
    """Begin a workflow: errors in one line, a quiet terminal, known keys only, random numbers from a seed.

    Raises:
        BadInput: a top-level key that nothing uses, most often a typo in an override.
    """
    one_line_errors()
    keep_freed_memory()
    quiet()
    parser = running_parser()
    if parser is not None:
        require_known_keys(parser.get(), known=bundled_keys())
    set_determinism(seed)


def quiet() -> None:
    """Keep from the terminal what libraries tell programmers."""
    for module in NOISE:
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
        logging.getLogger(module).setLevel(logging.CRITICAL)  # errors come as exceptions


def merged_config() -> dict[str, Any]:
    """Return the configuration that is running, with overlays and overrides merged and nothing resolved."""
    parser = running_parser()
    config = copy.deepcopy(parser.get()) if parser is not None else {}
    return {key: value for key, value in config.items() if key != ConfigParser.meta_key}


def running_parser() -> ConfigParser | None:
    """Return the parser that is building the caller's component.

    MONAI hands a component its arguments and nothing else, so the parser is looked up where it is sure to be: among
    the callers.
    """
    frame = sys._getframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ConfigParser):
            parser: ConfigParser | None = frame.f_locals["self"]
            return parser
        frame = frame.f_back  # type: ignore[assignment]
    return None


def require_known_keys(config: dict[str, Any], *, known: set[str]) -> None:
    """Raise `BadInput` for a top-level key that the bundle doesn't know and no other key refers to, or an old name."""
    text = json.dumps(config, default=str)
    refuse_old_keys(config, known=known)
    for key in config:
        if key in known or key.startswith("_") or re.search(rf"[@%]{re.escape(key)}\b", text):
            continue
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"Did you mean {close[0]}?" if close else "Look for the right key in configs."
        raise BadInput(f"{key}: no such key, nothing in the configuration uses it. {hint}")


def bundled_keys() -> set[str]:
    """Return the top-level keys of all configurations that come with the bundle."""
    keys = set()
    for path in Path(bundle_root(), "configs").rglob("*.yaml"):
        keys.update(yaml.safe_load(path.read_text()))
    return keys
