"""The files of a case, found in a folder by their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..runtime.errors import BadInput
from .folders import other_format
from .volumes import SUFFIXES, case_name

CHANNEL_SUFFIX = "_0000"  # FLARE21 and nnU-Net: train_000_0000.nii.gz is the first channel of train_000.nii.gz
WHOLE = -1  # the channel of an image whose name carries no number
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a data set: which file, what, and what to do about it.

    `usable` problems are put right by the program and only said.
    """

    file: str
    what: str
    remedy: str
    usable: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.what}. {self.remedy}"


@dataclass(frozen=True)
class Case:
    """One case by its files: an image (one file, or one a channel), its label map, and the fold it validates in."""

    name: str
    image: tuple[Path, ...]
    label: Path
    fold: int | None = None

    @property
    def item(self) -> dict[str, Any]:
        """The case as MONAI's transforms take it."""
        return {"image": as_files(self.image), "label": str(self.label)}


def as_files(files: Sequence[Path]) -> str | list[str]:
    """Return an image's one path, or its paths."""
    return str(files[0]) if len(files) == 1 else [str(file) for file in files]


def list_volumes(folder: Path) -> list[Path]:
    """Return the NIfTI files of a folder, sorted by name; hidden files, as macOS's `._x`, are left out.

    Raises:
        BadInput: no such folder, one that can't be read, or no NIfTI file in it.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such file or folder. Check the path.")
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise BadInput(f"{folder}: can't be read ({error.strerror}). Check its permissions.") from error
    files = [f for f in entries if f.name.endswith(SUFFIXES) and not f.name.startswith(".")]
    if not files:
        others = [*filter(None, map(other_format, entries))]
        if others:
            raise BadInput(f"{others[0]} {folder} holds {len(others)} of such files, and no .nii or .nii.gz.")
        raise BadInput(f"{folder}: holds no .nii or .nii.gz files. Check the path.")
    return sorted(files, key=lambda file: (case_name(file), file.name))


def split_channel(file: Path) -> tuple[str, int]:
    """Return the name of an image's case and its channel: of a_0001.nii.gz a and 1, of a.nii.gz a and `WHOLE`."""
    name = case_name(file)
    numbered = re.fullmatch(r"(.+)_([0-9]{4})", name)
    return (numbered[1], int(numbered[2])) if numbered else (name, WHOLE)


def image_keys(files: Sequence[Path], *, names: Collection[str] = ()) -> list[tuple[tuple[str, int], Path]]:
    """Return each image's case and channel, as `split_channel` has them, with the image.

    Args:
        files: all images of a folder.
        names: those of the label maps. Where images bear them, numbers at their end count cases, not channels.
    """
    alike = any(case_name(file) in names for file in files)
    keys = []
    for file in files:
        whole, (name, channel) = case_name(file), split_channel(file)
        is_whole = whole in names or (alike and name not in names)
        keys.append(((whole, WHOLE) if is_whole else (name, channel), file))
    return keys


def pair_files(
    images: Path, maps: Path, *, channels: int, numbered: bool = False, listed: Mapping[str, str] | None = None
) -> tuple[list[Case], list[Problem]]:
    """Return the cases of a folder of images and one of label maps, and why other files are none.

    Args:
        images: folder.
        maps: folder of label maps.
        channels: that each image has; 0: as most have.
        numbered: whether image files must carry their channel's number.
        listed: name -> place in a list of those cases that count; empty: all count.

    Raises:
        BadInput: one of the folders is missing or empty.
    """
    if not maps.is_dir():
        raise BadInput(f"{maps}: no such folder. The label maps of {images} belong there.")
    label_of, problems = _by_key((case_name(file), file) for file in list_volumes(maps))
    file_of, more = _by_key(image_keys(list_volumes(images), names=() if numbered else label_of))
    files_of: dict[str, dict[int, Path]] = {}
    for (name, channel), file in file_of.items():
        files_of.setdefault(name, {})[channel] = file
    channels = channels or most_common(len(files) for files in files_of.values())
    listed = listed or {}
    problems, cases = problems + more, []
    for name in sorted({*label_of, *files_of, *listed}):
        files, label = files_of.get(name, {}), label_of.get(name)
        first = str(next(iter(files.values()), label or maps / f"{name}{SUFFIXES[0]}"))
        if listed and name not in listed:
            what, remedy = "isn't in the training list of the data set", "It is left out; list it to train on it."
            problems.append(Problem(first, what, remedy, usable=True))
        elif label is None and not files:
            problems.append(Problem(first, f"no such file, though {listed[name]} names it", "Add it, or take it out."))
        elif label is None:
            problems.append(Problem(first, f"has no label map in {maps}", "Add it, or take the image out."))
        elif not files:
            problems.append(Problem(first, f"has no image in {images}", "Add it, or take the label map out."))
        else:
            faults = channel_faults(files, channels=channels, numbered=numbered)
            problems += faults
            if not faults:
                cases.append(Case(name, tuple(files[channel] for channel in sorted(files)), label))
    return cases, problems


def channel_faults(files: Mapping[int, Path], *, channels: int, numbered: bool) -> list[Problem]:
    """Return which channels are missing or one too many.

    Args:
        files: channel -> file of one image, as `split_channel` has it.
        channels: that each image of the data set has.
        numbered: whether each file must carry its channel's number; else one without may hold all of them.
    """
    several = f"{channels} channel{'s' if channels > 1 else ''}"
    some = next(iter(files.values()))
    if WHOLE in files:
        whole = files[WHOLE]
        if numbered:
            return [Problem(str(whole), "carries no channel number", f"Call it {_numbered(whole, 0).name}.")]
        others = [file for channel, file in files.items() if channel != WHOLE]
        return [Problem(str(f), f"is of the same case as {whole.name}", "Take one of them out.") for f in others]
    missing = [_numbered(some, channel) for channel in range(channels) if channel not in files]
    extra = [file for channel, file in files.items() if channel >= channels]
    return [
        *(Problem(str(f), f"is missing: the data set has {several}", "Add it, or take the case out.") for f in missing),
        *(Problem(str(f), f"is a channel too many: the data set has {several}", "Take it out.") for f in extra),
    ]


def most_common(counts: Iterable[int]) -> int:
    """Return the number that comes most often, of equally many the largest; of none 1."""
    frequency = Counter(counts)
    return max(frequency, key=lambda count: (frequency[count], count), default=1)


def _by_key(files: Iterable[tuple[Key, Path]]) -> tuple[dict[Key, Path], list[Problem]]:
    file_of: dict[Key, Path] = {}
    problems = []
    for key, file in files:
        first = file_of.setdefault(key, file)
        if first is not file:
            problems.append(Problem(str(file), f"is of the same case as {first.name}", "Take one of them out."))
    return file_of, problems


def _numbered(file: Path, channel: int) -> Path:
    name, suffix = split_channel(file)[0], file.name[len(case_name(file)) :]
    return file.with_name(f"{name}_{channel:04d}{suffix}")
