"""A command's words: what they may be, looked at before anything that takes long to import."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire

from ..runtime.errors import BadInput


def label_names(labels: dict[int, str] | None) -> dict[int, str] | None:
    """Return labels as they were given, if they are ids with names.

    Raises:
        BadInput: they are something else.
    """
    if labels is not None and not isinstance(labels, dict):
        raise BadInput(f'labels must be ids with names, such as "{{1: liver, 2: kidney}}", got {labels}.')
    return labels


def channel_list(channels: str | Sequence[str] | None) -> list[str]:
    """Return channel names as Fire hands them over: one word, words with commas between them, or several."""
    return channels.split(",") if isinstance(channels, str) else [str(name) for name in channels or ()]


def show_help_if_asked(command: Callable[..., None], values: Mapping[str, Any], *, name: str) -> None:
    """Print a command's help and end, where Fire takes --help for one of the configuration's keys."""
    if values.keys() & {"help", "h"}:
        fire.Fire(command, command=["--", "--help"], name=f"cyclic-committee {name}")


def require_there(*paths: object) -> None:
    """Raise `BadInput` for the first path where nothing is; None is no path."""
    for path in paths:
        if path is not None and not Path(str(path)).exists():
            raise BadInput(f"{path}: no such file or folder. Check the path.")


def require_known_options(command: Callable[..., None], words: Sequence[str], *, name: str) -> None:
    """Raise `BadInput` for an option that a command hasn't: Fire would run the command first, and then complain.

    Args:
        command: takes the options as its parameters.
        words: that were typed after its name.
        name: of the command.
    """
    parameters = inspect.signature(command).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return  # keys of a configuration, which are looked at there
    known = [one.name for one in parameters.values() if one.kind is not one.VAR_POSITIONAL]
    for word in words:
        if word == "--":
            return
        option = word.partition("=")[0].lstrip("-").replace("-", "_")
        if not word.startswith("--") or option in (*known, "help") or option.removeprefix("no") in known:
            continue
        close = difflib.get_close_matches(option, known, n=1)
        hint = f"Did you mean --{close[0]}?" if close else f"See cyclic-committee {name} --help."
        raise BadInput(f"--{option}: {name} has no such option. {hint}")
