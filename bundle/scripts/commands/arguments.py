"""Command-line arguments as Fire hands them over, checked and turned into lists and names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
