"""The files of a folder and of the folders in it, links followed, and those of formats that aren't read."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

VOLUMES = {
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".mgh": "FreeSurfer",
    ".mgz": "FreeSurfer",
    ".mnc": "MINC",
    ".gipl": "GIPL",
}
PACKED = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".7z", ".rar")
SEGMENTATION = ".seg.nrrd"  # 3D Slicer's, beside an image


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


def other_format(file: Path) -> str:
    """Return in one line what a file is and what to do with it, if its name says that it is of such a format."""
    name = file.name.lower()
    if name.startswith(".") or name.endswith(SEGMENTATION):
        return ""
    if name.endswith(PACKED):
        return f"{file}: is packed. Unpack it, and give the folder."
    kind = VOLUMES.get(file.suffix.lower())
    return (
        f"{file}: is {kind}, which isn't read. Convert it to .nii.gz first, with 3D Slicer or SimpleITK."
        if kind
        else ""
    )
