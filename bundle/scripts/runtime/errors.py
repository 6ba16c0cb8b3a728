"""Errors of a user's input, in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType


class BadInput(ValueError):
    """Input that can't be used: one line that names the file or key, says what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def find_bad_input(error: BaseException | None) -> BaseException | None:
    """Return the `BadInput` behind an error, or None.

    MONAI wraps errors of components and transforms in several RuntimeErrors. The class is compared by name:
    `scripts.runtime.errors` and `cyclic_committee.scripts.runtime.errors` are the same file imported under two names.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if type(error).__name__ == BadInput.__name__:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def one_line_errors() -> None:
    """End the process with one line and exit code 1 on `BadInput`; all other errors keep their traceback."""
    previous: Callable[..., object] = sys.excepthook
    if getattr(previous, "one_line_errors", False):
        return

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        bad_input = find_bad_input(error)
        if bad_input is None:
            previous(kind, error, traceback)
        else:
            print(f"error: {bad_input}", file=sys.stderr)

    hook.one_line_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
