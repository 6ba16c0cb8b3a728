"""What is being written, and what did a killed process leave behind?"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

UNFINISHED = ".unfinished-"


def unfinished_path(path: Path) -> Path:
    """Return where this process writes a file or folder, beside its place, before one rename puts it there."""
    return path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: under a temporary name, then renamed. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(path)
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(unfinished, path)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that no longer run left in a folder; what others are writing is left alone."""
    for left in folder.glob(f"{UNFINISHED}*"):
        number = re.match(rf"{re.escape(UNFINISHED)}(\d+)-", left.name)
        if number is None or lives(int(number[1])):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def lives(process: int) -> bool:
    """Return whether a process of this number is running."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
