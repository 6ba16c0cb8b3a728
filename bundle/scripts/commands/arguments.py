"""A command's words: what they may be, looked at before anything that takes long to import."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import fire
from fire.decorators import SetParseFn
from fire.parser import DefaultParseValue

from ..runtime.errors import BadInput

fire.decorators.FIRE_METADATA = "__fire_metadata__"  # --help would show an attribute of its own name as a command
PATH_KEYS = ("cache_dir", "ckpt_path", "data_root", "dataset_dir", "model_path", "output_dir")  # of configurations


def as_typed(command: Callable[..., None]) -> Callable[..., None]:
    """Have Fire hand over words as they were typed wherever a command takes text, and return the command.

    Fire would take 1.10 and 2024_01 for numbers, and a,b for two words: these may be folders.
    """
    parameters = inspect.signature(command).parameters
    for name, kind in get_type_hints(command).items():
        if name in parameters and str in (kind, *get_args(kind)):
            several = any(get_origin(one) is Sequence for one in get_args(kind))
            key = None if parameters[name].kind is inspect.Parameter.VAR_POSITIONAL else name  # as Fire asks for it
            SetParseFn(one_or_several if several else str, key)(command)
    SetParseFn(str, *PATH_KEYS)(command)
    return command


def one_or_several(text: str) -> str | Sequence[str]:
    """Return a text as it is, or the words that are in it, if it is a list in brackets."""
    value = DefaultParseValue(text) if text.startswith(("[", "(")) else text
    return [str(word) for word in value] if isinstance(value, list | tuple) else text


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
