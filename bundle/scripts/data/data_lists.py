"""Data lists (JSON): the files of each case, as MONAI and nnU-Net write them down."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.config_files import require_no_code
from ..runtime.errors import BadInput
from .case_files import CHANNEL_SUFFIX, Problem
from .volumes import case_name

LISTS = ("training", "validation")
ENTRY_KEYS = ("image", "label", "fold")
DESCRIPTION_KEYS = (*LISTS, "labels", "channel_names", "modality", "file_ending", "dataset")


@dataclass(frozen=True)
class Entry:
    """One entry of a data list, as far as it says anything; `fault` is what makes no sense in it."""

    place: str  # in the file, such as training[3]
    image: tuple[Path, ...] = ()
    label: Path | None = None
    fold: int | None = None
    fault: str = ""


def label_names(described: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Return label id -> name without background, from `labels` as `{"1": "liver"}` or as `{"liver": 1}`.

    The first is that of the Medical Segmentation Decathlon and nnU-Net v1, the second that of nnU-Net v2.

    Raises:
        BadInput: regions, an ignore label, or neither of both ways; a name that a configuration would run.
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
        require_no_code(name, f"{path}: labels")
        if name.lower() == "ignore":
            raise BadInput(f"{path}: the label ignore isn't supported. Take it out of the labels and the label maps.")
        names[number] = name
    return {number: names[number] for number in sorted(names) if number > 0}


def mistyped_keys(described: Mapping[str, Any], path: Path) -> list[Problem]:
    """Return a remark for each key of a data list that is nearly, but not, one that is read: such as `fold:`."""
    lists = [value for value in map(described.get, LISTS) if isinstance(value, list)]
    entries = [entry for listed in lists for entry in listed if isinstance(entry, dict)]
    remarks = []
    for objects, known in (([described], DESCRIPTION_KEYS), (entries, ENTRY_KEYS)):
        for key in sorted(set().union(*objects) - set(known)):
            plain = re.sub(r"[^a-z]", "", key.casefold())
            near = difflib.get_close_matches(plain, known, n=1, cutoff=0.75)
            absent = near and sum(key in one and near[0] not in one for one in objects)
            if absent:
                where = f"in {absent} of {len(entries)} entries" if known is ENTRY_KEYS else "in it"
                what = f"has the key {json.dumps(key)} {where}, which is not read, and no {json.dumps(near[0])} there"
                remarks.append(Problem(str(path), what, f"Write {json.dumps(near[0])} if that is meant.", usable=True))
    return remarks


def channel_names(described: Mapping[str, Any], path: Path, *, files: int = 1) -> tuple[str, ...]:
    """Return the names from `channel_names` (nnU-Net v2) or `modality`, or none where neither is there.

    Args:
        described: the JSON file's content.
        path: of the JSON file.
        files: that an image has; a `modality` that is a mere name, such as "MRI", is that of each of them.

    Raises:
        BadInput: not numbered from 0; a name that a configuration would run.
    """
    key = "channel_names" if "channel_names" in described else "modality"
    given = described.get(key, {})
    if isinstance(given, str):
        require_no_code(given, f"{path}: {key}")
        return (given,) * files
    if isinstance(given, list):
        given = {str(number): name for number, name in enumerate(given)}
    numbers = [_whole_number(number) for number in given] if isinstance(given, dict) else [None]
    if set(numbers) != set(range(len(numbers))) or not all(isinstance(name, str) for name in given.values()):
        raise BadInput(f'{path}: {key} doesn\'t number the channels from 0. Write it as {{"0": "CT"}}.')
    for name in given.values():
        require_no_code(name, f"{path}: {key}")
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

    Raises:
        BadInput: a name that can't be a file's: a case's labels, pictures and prepared slices are named after it.
    """
    given = described.get("dataset") if "channel_names" in described else None
    entries = {}
    for name, value in (given if isinstance(given, dict) else {}).items():
        files = {"image": value.get("images"), "label": value.get("label")} if isinstance(value, dict) else None
        if not is_file_name(name):
            raise BadInput(
                f"{path}: the case {json.dumps(name)[:80]} in dataset can't be a file's name. "
                "Rename it: without / and \\, and not beginning with a dot."
            )
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


def is_file_name(name: str) -> bool:
    """Return whether a name from outside names a file in a folder, and leads nowhere else, on any system."""
    return re.fullmatch(r"[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]{0,199}", name) is not None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
