"""Atomic files: written under another name and renamed, and what killed processes left of them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
import zlib
from pathlib import Path

UNFINISHED = ".unfinished-"
HOST = f"{zlib.crc32(platform.node().encode()):08x}"  # machines and containers may share a folder, and process numbers
DAY_S = 86400


def unfinished_path(path: Path) -> Path:
    """Return where this process writes a file or folder, beside its place, before one rename puts it there."""
    return path.with_name(f"{UNFINISHED}{HOST}-{os.getpid()}-{path.name}")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: under a temporary name, then renamed. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(path)
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that no longer run left in a folder; what others are writing is left alone.

    Whether a process of another machine runs can't be seen: it is given a day.
    """
    for left in folder.glob(f"{UNFINISHED}*"):
        known = re.match(rf"{re.escape(UNFINISHED)}([0-9a-f]{{8}})-(\d+)-", left.name)
        if known is None or (lives(int(known[2])) if known[1] == HOST else age_s(left) < DAY_S):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def age_s(path: Path) -> float:
    """Return how long ago a file or folder was changed; none at all if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def lives(process: int) -> bool:
    """Return whether a process of this number is running."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
