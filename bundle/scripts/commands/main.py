"""The program `cyclic-committee`. What a command needs is imported when it runs: MONAI and PyTorch take seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable

import fire

from ..runtime.errors import find_bad_input
from ..runtime.old_names import refuse_old_options
from ..runtime.terminal import quiet
from .arguments import as_typed, require_known_options
from .data import check, phantom, prepare
from .inference import evaluate, export, predict
from .label_server import label_server
from .training import audit, bundle, cross_validate, demo, estimate, parameters, release, report

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "bundle": bundle,
    "release": release,
    "parameters": parameters,
    "estimate": estimate,
    "predict": predict,
    "evaluate": evaluate,
    "check": check,
    "prepare": prepare,
    "phantom": phantom,
    "export": export,
    "cross-validate": cross_validate,
    "audit": audit,
    "report": report,
    "label-server": label_server,
}


def main() -> None:
    """Run a command; bad input ends in one line and exit code 1."""
    quiet()
    try:
        refuse_old_options(sys.argv[1:])
        name, *words = sys.argv[1:] or [""]
        if name in COMMANDS:
            require_known_options(COMMANDS[name], words, name=name)
        fire.Fire({word: as_typed(command) for word, command in COMMANDS.items()}, name="cyclic-committee")
    except Exception as error:
        bad_input = find_bad_input(error)
        if bad_input is None:
            raise
        print(f"error: {bad_input}", file=sys.stderr)
        sys.exit(1)
