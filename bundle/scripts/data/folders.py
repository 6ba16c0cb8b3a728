"""The files of a folder and of the folders in it, links followed."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class FolderFiles:
    """What lies in a folder and the folders in it.

    Attributes:
        files: sorted, links among them, also those that lead nowhere.
        notes: links that lead to a folder that was looked at already, a line each.
        faults: folders that can't be read, a line each.
    """

    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def files_below(folder: Path) -> FolderFiles:
    """Return the files of a folder and of the folders in it, or a file itself.

    Linked folders are followed, and their files have the link's name in their path. Each folder is looked at once,
    under its own name rather than a link's, so that links in a circle end.
    """
    if folder.is_file():
        return FolderFiles([folder])
    found = FolderFiles()
    seen: dict[str, str] = {}
    tops = deque([str(folder)])

    def fault(error: OSError) -> None:
        found.faults.append(f"{error.filename}: can't be read ({error.strerror}). Give yourself access, or move it.")

    while tops:
        for place, folders, names in os.walk(tops.popleft(), onerror=fault):
            first = seen.setdefault(os.path.realpath(place), place)
            if first is not place:
                found.notes.append(f"{place}: leads to {first}, which is looked at already: passed over.")
                folders.clear()
                continue
            found.files += [Path(place, name) for name in names]
            tops += sorted(filter(os.path.islink, (os.path.join(place, name) for name in folders)))
    found.files.sort()
    return found
