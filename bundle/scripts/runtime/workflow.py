"""The start of a workflow: errors, log, seed, and a check of the configuration's keys."""

from __future__ import annotations

import copy
import sys
from typing import Any

from monai.bundle import ConfigParser
from monai.utils import set_determinism

from .allocator import keep_freed_memory
from .config_files import bundled_keys, require_known_keys
from .errors import BadInput, one_line_errors
from .terminal import quiet


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


def as_bool(**named: Any) -> bool:
    """Return the truth of a key's value; from the command line it comes as a word.

    Raises:
        BadInput: it is neither true nor false.
    """
    [(key, value)] = named.items()
    if str(value).lower() not in ("true", "false"):
        raise BadInput(f"{key} must be true or false, got {value!r}.")
    return str(value).lower() == "true"


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
