"""Atomic files: written under another name and renamed, and what killed processes left of them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BadInput

UNFINISHED = ".unfinished-"
HOST = f"{zlib.crc32(platform.node().encode()):08x}"  # machines and containers may share a folder, and process numbers
DAY_S = 86400


def unfinished_path(path: Path) -> Path:
    """Return where this process writes a file or folder, beside its place, before `put_in_place` renames it.

    What killed processes left beside it is removed.
    """
    remove_unfinished(path.parent)
    return path.with_name(f"{own_prefix()}{path.name}")


def own_prefix() -> str:
    """Return how the names of all that this process hasn't finished begin."""
    return f"{UNFINISHED}{HOST}-{os.getpid()}-"


def temporary_folder(place: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    """Return a context: the name of a folder that goes with it; those that killed processes left are removed.

    Args:
        place: where it is made; by default the system's folder for temporary files.
    """
    place = Path(tempfile.gettempdir()) if place is None else place
    remove_unfinished(place)
    return tempfile.TemporaryDirectory(prefix=own_prefix(), dir=place, ignore_cleanup_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there, in one rename: nobody ever finds a part of it, as a killed process leaves."""
    if folder.exists():
        with temporary_folder(folder.parent) as place, contextlib.suppress(FileNotFoundError):
            os.replace(folder, Path(place, folder.name))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: under a temporary name, then renamed. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(path)
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        put_in_place(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def put_in_place(unfinished: Path, path: Path) -> None:
    """Rename a whole file or folder to its own name, after it is on the disk: power may fail at any time.

    Without that, a file system may keep the new name and lose what is in it. Sources: fsync(2), rename(2).
    """
    files = [one for one in unfinished.rglob("*") if one.is_file()] if unfinished.is_dir() else [unfinished]
    for file in files:
        flush(file)
    os.replace(unfinished, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Have the system write a file, or a folder's names, to the disk; what can't be flushed isn't."""
    with contextlib.suppress(OSError):  # as folders of network file systems
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def with_checksum(content: Mapping[str, Any]) -> str:
    """Return JSON of one line with its own checksum, which `read_with_checksum` compares."""
    return json.dumps({**content, "checksum": zlib.crc32(json.dumps(content).encode())}) + "\n"


def read_with_checksum(path: Path) -> dict[str, Any] | None:
    """Return what `with_checksum` made; None if the file is missing, damaged, or was written otherwise."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop("checksum")
        return content if checksum == zlib.crc32(json.dumps(content).encode()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def require_writable(**places: str) -> None:
    """Raise `BadInput` unless files can be written: told before the work that is to be written there.

    Args:
        places: the files, by the key of the configuration that says where they lie. Their folders are made.
    """
    for key, place in places.items():
        path = Path(place)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "is a folder")
            with tempfile.TemporaryFile(dir=path.parent, prefix=own_prefix()):  # it has a name for a moment, on NFS
                pass
        except OSError as error:
            raise BadInput(f"{path}: can't be written ({error.strerror}). Give another {key}.") from error


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
            with contextlib.suppress(OSError):  # somebody else's, or gone by now
                left.unlink()


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
