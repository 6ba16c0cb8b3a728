"""Which files are a case, as a data list or their names say?"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import BadInput
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


@dataclass(frozen=True)
class Entry:
    """One entry of a data list, as far as it says anything; `fault` is what makes no sense in it."""

    place: str  # in the file, such as training[3]
    image: tuple[Path, ...] = ()
    label: Path | None = None
    fold: int | None = None
    fault: str = ""


def read_description(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds, with or without a byte order mark.

    Raises:
        BadInput: missing, unreadable, damaged (with the line), or no object.
    """
    described = read_json(path)
    if not isinstance(described, dict):
        raise BadInput(f"{path}: holds no JSON object. Write {{...}} with the data set's description.")
    return described


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; see `read_description`."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: damaged JSON in line {error.lineno} ({error.msg}). Correct it there.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not written in UTF-8 ({error.reason}). Save it as UTF-8.") from error
    except OSError as error:
        raise BadInput(f"{path}: can't be read ({error.strerror}). Check the path.") from error


def label_names(described: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Return label id -> name without background, from `labels` as `{"1": "liver"}` or as `{"liver": 1}`.

    The first is that of the Medical Segmentation Decathlon and nnU-Net v1, the second that of nnU-Net v2.

    Raises:
        BadInput: regions, an ignore label, or neither of both ways.
    """
    labels = described.get("labels", {})
    if not isinstance(labels, dict):
        raise BadInput(f'{path}: labels is no object. Write it as {{"1": "liver"}} or {{"liver": 1}}.')
    names: dict[int, str] = {}
    for key, value in labels.items():
        if isinstance(value, list):
            raise BadInput(f"{path}: the label {key} is a region, which isn't supported. Give each label one number.")
        id_of_key = _whole_number(key)
        number, name = (value, key) if _is_whole(value) else (id_of_key, value)
        if number is None or number < 0 or number in names or not isinstance(name, str):
            raise BadInput(
                f"{path}: the label {json.dumps(key)}: {json.dumps(value)} is no number from 0 with a name of its own. "
                'Write labels as {"1": "liver"} or {"liver": 1}.'
            )
        if name.lower() == "ignore":
            raise BadInput(f"{path}: the label ignore isn't supported. Take it out of the labels and the label maps.")
        names[number] = name
    return {number: names[number] for number in sorted(names) if number > 0}


def channel_names(described: Mapping[str, Any], path: Path, *, files: int = 1) -> tuple[str, ...]:
    """Return the names from `channel_names` (nnU-Net v2) or `modality`, or none where neither is there.

    Args:
        described: the JSON file's content.
        path: of the JSON file.
        files: that an image has; a `modality` that is a mere name, such as "MRI", is that of each of them.

    Raises:
        BadInput: not numbered from 0.
    """
    key = "channel_names" if "channel_names" in described else "modality"
    given = described.get(key, {})
    if isinstance(given, str):
        return (given,) * files
    if isinstance(given, list):
        given = {str(number): name for number, name in enumerate(given)}
    numbers = [_whole_number(number) for number in given] if isinstance(given, dict) else [None]
    if set(numbers) != set(range(len(numbers))) or not all(isinstance(name, str) for name in given.values()):
        raise BadInput(f'{path}: {key} doesn\'t number the channels from 0. Write it as {{"0": "CT"}}.')
    return tuple(name for _, name in sorted(zip(numbers, given.values(), strict=True)))


def list_entries(described: Mapping[str, Any], key: str, *, path: Path, root: Path) -> list[Entry]:
    """Return the entries of a list such as `training`, without hidden files; a list that isn't there is empty.

    An entry is `{"image": path or [paths], "label": path, "fold": 0}`, or of a test list a mere path.

    Args:
        described: the JSON file's content.
        key: of the list.
        path: of the JSON file.
        root: where relative paths begin.

    Raises:
        BadInput: no list.
    """
    given = described.get(key) or []
    if not isinstance(given, list):
        raise BadInput(f'{path}: {key} is no list. Write it as [{{"image": "a.nii.gz", "label": "b.nii.gz"}}].')
    entries = [_entry(value, place=f"{key}[{number}]", root=root) for number, value in enumerate(given)]
    return [entry for entry in entries if not any(file.name.startswith(".") for file in entry.image)]


def named_entries(described: Mapping[str, Any], *, path: Path) -> dict[str, Entry]:
    """Return name -> entry of nnU-Net v2's `dataset`, `{name: {"images": [paths], "label": path}}`, if it is there.

    As in nnU-Net, paths may hold environment variables, and begin beside the JSON file.
    """
    given = described.get("dataset") if "channel_names" in described else None
    entries = {}
    for name, value in (given if isinstance(given, dict) else {}).items():
        files = {"image": value.get("images"), "label": value.get("label")} if isinstance(value, dict) else None
        entries[name] = _entry(files, place=f"dataset[{name}]", root=path.parent, expand=True)
    return entries


def entry_names(entries: Sequence[Entry]) -> list[str]:
    """Return the cases' names: their first image files', without suffix, and without _0000 unless the label has it.

    Where that tells fewer entries apart, such as image.nii.gz in folders of their own, the folder's name comes first.
    """
    plain, with_folder = [], []
    for entry in entries:
        image = entry.image[0] if entry.image else Path(entry.place)
        name = case_name(image)
        if entry.label is None or case_name(entry.label) != name:
            name = name.removesuffix(CHANNEL_SUFFIX)
        plain.append(name)
        with_folder.append(f"{image.parent.name}_{name}")
    return max(plain, with_folder, key=lambda names: len({name.casefold() for name in names}))


def entry_faults(entry: Entry, *, source: Path, files: int, has_folds: bool = False) -> list[Problem]:
    """Return why an entry of a list is no case.

    Args:
        entry: of the list.
        source: the JSON file.
        files: that an image has.
        has_folds: whether each entry must say its fold.
    """
    if entry.fault or not entry.image:
        what = f"{entry.place} {entry.fault or 'names no image'}"
        return [Problem(str(source), what, "Correct the entry, or take it out.")]
    image, place = str(entry.image[0]), f"{entry.place} in {source.name}"
    faults = [
        Problem(
            str(file), f"no such file, though {place} names it", "Correct its path or the data root, or take it out."
        )
        for file in (*entry.image, *filter(None, [entry.label]))
        if not os.path.isfile(file)  # unlike Path.is_file, False also where looking is forbidden
    ]
    if entry.label is None:
        faults.append(Problem(image, f"has no label map: {place} names none", "Add it, or take the entry out."))
    if len(entry.image) != files:
        several = "s" if len(entry.image) > 1 else ""
        what = f"has {len(entry.image)} channel file{several} ({place}), expected {files}"
        faults.append(Problem(image, what, "Name as many for each image."))
    if has_folds and entry.fold is None:
        faults.append(Problem(image, f"has no fold: {place} names none, others do", "Give each entry a fold."))
    return faults


def list_volumes(folder: Path) -> list[Path]:
    """Return the NIfTI files of a folder, sorted by name; hidden files, as macOS's `._x`, are left out.

    Raises:
        BadInput: no such folder, one that can't be read, or no NIfTI file in it.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such file or folder. Check the path.")
    try:
        files = [f for f in folder.iterdir() if f.name.endswith(SUFFIXES) and not f.name.startswith(".")]
    except OSError as error:
        raise BadInput(f"{folder}: can't be read ({error.strerror}). Check its permissions.") from error
    if not files:
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
    found = Counter(counts)
    return max(found, key=lambda count: (found[count], count), default=1)


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


def _entry(value: Any, *, place: str, root: Path, expand: bool = False) -> Entry:
    value = {"image": value} if isinstance(value, str) else value
    if not isinstance(value, dict):
        return Entry(place, fault="is no object with image and label")
    image = [value["image"]] if isinstance(value.get("image"), str) else value.get("image") or []
    label, fold = value.get("label"), value.get("fold")
    if not isinstance(image, list) or not all(isinstance(file, str) for file in image):
        return Entry(place, fault="has an image that is neither a path nor a list of paths")
    if not isinstance(label, str | None):
        return Entry(place, fault="has a label that is no path")
    if not (fold is None or _is_whole(fold)):
        return Entry(place, fault=f"has the fold {json.dumps(fold)}, which is no whole number")
    files = [os.path.expandvars(file) if expand else file for file in (*image, label or "")]
    paths = [root / file for file in files]
    return Entry(place, tuple(paths[:-1]), paths[-1] if label else None, fold)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
