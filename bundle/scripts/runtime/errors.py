"""Errors of a user's input, in one line."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from types import TracebackType

SIZE_UNITS = ("bytes", "kB", "MB", "GB", "TB")
KEPT = "What was finished is kept: start again with the same words, a training with --resume true."
ON_DISK = {  # errors of files that are the machine's, not the program's: what is wrong, and what to do
    errno.ENOSPC: ("the disk is full", "Make room."),
    errno.EDQUOT: ("your share of the disk is used up", "Make room."),
    errno.EROFS: ("lies on a disk that can only be read", "Choose another folder."),
    errno.EACCES: ("may not be read or written by you", "Change its permissions, or choose another folder."),
    errno.EIO: ("the disk doesn't answer as it should", "Look at the disk."),
    errno.ESTALE: ("the folder was taken away meanwhile", "Bring it back."),
    errno.EMFILE: ("too many files are open", "Raise `ulimit -n`."),
}


class BadInput(ValueError):
    """Input that can't be used: one line that names the file or key, says what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def find_bad_input(error: BaseException | None) -> BaseException | None:
    """Return the `BadInput` behind an error, or what the machine's failure is in these words; else None.

    MONAI wraps errors of components and transforms in several RuntimeErrors. The class is compared by name:
    `scripts.runtime.errors` and `cyclic_committee.scripts.runtime.errors` are the same file imported under two names.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if type(error).__name__ == BadInput.__name__:
            return error
        seen.add(id(error))
        known = of_the_machine(error)
        if known is not None:
            return known
        error = error.__cause__ or error.__context__
    return None


def of_the_machine(error: BaseException) -> BadInput | None:
    """Return what an error says of the machine that runs this, such as a full disk; None for all other errors."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in ON_DISK:
        what, remedy = ON_DISK[error.errno]
        return BadInput(f"{error.filename or 'a file'}: {what}. {remedy} {KEPT}")
    if isinstance(error, RuntimeError) and ("PytorchStreamWriter failed" in text or "unexpected pos" in text):
        return BadInput(f"a file of weights: can't be written, most often since the disk is full. Make room. {KEPT}")
    if "/torch_" in text and ("No space left" in text or "unable to" in text):
        return BadInput(f"/dev/shm: is full. Give it more (docker run --shm-size 8g), or set --num_workers 0. {KEPT}")
    if isinstance(error, RuntimeError) and "DataLoader worker (pid" in text:
        return BadInput(
            "num_workers: a loading process was ended from outside, most often for want of memory or of /dev/shm. Take "
            f"fewer, or 0. {KEPT}"
        )
    if type(error).__name__ == "OutOfMemoryError":
        return BadInput(
            f"device: the GPU's memory is too small for this ({text.split('. ')[0]}). Take a smaller --batch_size, "
            f"variants/low_memory.yaml, or see `cyclic-committee estimate`. {KEPT}"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in text):
        return BadInput(f"memory: there isn't enough ({text or 'no more to be had'}). Take fewer --num_workers. {KEPT}")
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


def size_text(size: float) -> str:
    """Return a size in the unit that suits it, such as `21.6 GB`; 0 is said of nothing but 0."""
    power = next((power for power in range(len(SIZE_UNITS) - 1) if size < 999.95 * 1000**power), len(SIZE_UNITS) - 1)
    return f"{size / 1000**power:.{1 if power else 0}f} {SIZE_UNITS[power]}"
