"""Data-set layouts: FLARE21, nnU-Net raw, Medical Segmentation Decathlon, data lists, plain folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..runtime.config_files import read_json, read_object
from ..runtime.errors import BadInput
from .case_files import WHOLE, Case, Problem, image_keys, list_volumes, most_common, pair_files
from .data_lists import (
    Entry,
    channel_names,
    entry_faults,
    entry_names,
    label_names,
    list_entries,
    mistyped_keys,
    named_entries,
)
from .volumes import SUFFIXES, case_name

EXPECTED = {  # in the order in which they are tried
    "flare21": "TrainingImg/NAME_0000.nii.gz and TrainingMask/NAME.nii.gz",
    "nnunet": "imagesTr/NAME_0000.nii.gz, labelsTr/NAME.nii.gz and dataset.json",
    "decathlon": "imagesTr/, labelsTr/ and dataset.json with a training list",
    "datalist": "datalist.json, or one JSON file with a training list",
    "folders": "images/NAME.nii.gz and labels/NAME.nii.gz",
}
FLARE21_LABELS = {1: "liver", 2: "kidney", 3: "spleen", 4: "pancreas"}
LAYOUTS = tuple(EXPECTED)
FOLDERS = {  # of images and of labels
    "flare21": ("TrainingImg", "TrainingMask"),
    "nnunet": ("imagesTr", "labelsTr"),
    "decathlon": ("imagesTr", "labelsTr"),
    "folders": ("images", "labels"),
}
DESCRIPTION, DATA_LIST = "dataset.json", "datalist.json"


@dataclass(frozen=True)
class DataSet:
    """A data set as it lies on disk; nothing of it was opened.

    `channel_names` and `labels` (id -> name, without background) are empty where nothing in the data set says them.
    """

    layout: str
    cases: tuple[Case, ...]  # sorted by name; what is incomplete is among the problems instead
    problems: tuple[Problem, ...] = ()
    channel_names: tuple[str, ...] = ()
    labels: dict[int, str] = field(default_factory=dict)


def read_data_set(path: str | Path, *, layout: str = "auto", data_root: str | Path | None = None) -> DataSet:
    """Find the cases of a data set. Only JSON files are opened.

    What is wrong with single cases is among the `problems`: a missing partner or file, a missing or additional
    channel, several cases of one name (upper and lower case don't count; the first of them stays).

    Args:
        path: the data set's folder, or the JSON file of a data list.
        layout: one of `LAYOUTS`; "auto" takes the first one that fits.
        data_root: where the relative paths of a data list begin; None: beside the JSON file.

    Raises:
        BadInput: no such folder, no known layout or not the named one, damaged JSON, no cases; what isn't supported:
            regions, an ignore label, other files than NIfTI.
    """
    path = Path(path)
    require_known(layout)
    if not os.path.exists(path):
        raise BadInput(f"{path}: no such folder. Give the data set's folder, or the JSON file of its data list.")
    if layout == "auto":
        layout = _detect(path)
    elif lacks := _lacks(path, layout):
        raise BadInput(f"{path}: no data set in the layout {layout}: {lacks}. Expected {EXPECTED[layout]}.")
    if layout in ("decathlon", "datalist"):
        source = path / DESCRIPTION if layout == "decathlon" else find_data_lists(path)[0]
        data_set = _read_list(source, root=source.parent if data_root is None else Path(data_root))
    else:
        data_set = _read_nnunet(path) if layout == "nnunet" else _read_folders(path, layout)
    cases, doubled = _distinct(data_set.cases)
    problems = (*data_set.problems, *doubled)
    if not cases and all(problem.usable for problem in problems):
        raise BadInput(f"{path}: holds no cases. Expected {EXPECTED[layout]}.")
    return replace(data_set, layout=layout, cases=cases, problems=problems)


def require_known(layout: str) -> None:
    """Raise `BadInput` if there is no layout of this name."""
    if layout not in ("auto", *LAYOUTS):
        raise BadInput(f"layout: {layout} is unknown. Choose auto, {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}.")


def _detect(path: Path) -> str:
    """Return the first layout that fits."""
    for layout in LAYOUTS:
        if not _lacks(path, layout):
            return layout
    if path.is_file():
        raise BadInput(f"{path}: {_lacks(path, 'datalist')}. Give the data set's folder, or its data list.")
    near = "nnunet" if (path / "imagesTr").is_dir() else "datalist" if find_data_lists(path) else ""
    known = "; ".join(f"{expected} ({layout})" for layout, expected in EXPECTED.items())
    raise BadInput(f"{path}: holds no data set{near and f': {_lacks(path, near)}'}. Expected one of: {known}.")


def _lacks(path: Path, layout: str) -> str:
    """Return what is missing for a layout, or nothing if it fits."""
    if layout == "datalist":
        return _lacks_list(path)
    if path.is_file():
        return "it is a file"
    source, images = path / DESCRIPTION, path / FOLDERS[layout][0]
    if layout in ("nnunet", "decathlon"):
        if not source.is_file():
            return f"{DESCRIPTION} is missing"
        described = read_object(source)
        if layout == "decathlon" and not isinstance(described.get("training"), list):
            return f"{DESCRIPTION} holds no training list"
        if layout == "nnunet" and not {"channel_names", "modality"} & set(described):
            return f"{DESCRIPTION} names no channels, as channel_names or modality"
        readable = described.get("file_ending", SUFFIXES[0]) in SUFFIXES
        if layout == "nnunet" and (not readable or named_entries(described, path=source)):
            return ""  # reading it says what isn't supported, or finds the images elsewhere
    if not images.is_dir():
        return f"the folder {images.name} is missing"
    if layout == "nnunet" and not _has_numbered_channels(images, path / FOLDERS[layout][1]):
        return _why_no_channels(images, path / FOLDERS[layout][1])
    return ""


def find_data_lists(path: Path) -> list[Path]:
    """Return the JSON files that are data lists, or must be: the given one, or a folder's datalist.json."""
    if path.is_file():
        return [path] if path.suffix == ".json" else []
    if (path / DATA_LIST).is_file():
        return [path / DATA_LIST]
    files = sorted(file for file in path.glob("*.json") if not file.name.startswith("."))
    return [f for f in files if isinstance(held := read_json(f), dict) and isinstance(held.get("training"), list)]


def _lacks_list(path: Path) -> str:
    """Return why a file, or a folder, gives no data list; nothing if it gives one."""
    lists = find_data_lists(path)
    if not lists:
        return "it is no JSON file" if path.is_file() else "no JSON file with a training list is in it"
    if len(lists) > 1:
        return f"{', '.join(file.name for file in lists)} all hold a training list, so that one must be given"
    held = read_object(lists[0]).get("training")
    return "" if isinstance(held, list) else f"{'it' if path.is_file() else DATA_LIST} holds no training list"


def _has_numbered_channels(images: Path, labels: Path) -> bool:
    """Return whether most images carry a channel's number; a single one without is that one's problem.

    Numbers that are part of the label maps' names, too, count cases.
    """
    keys = image_keys(list_volumes(images), names={case_name(file) for file in labels.glob("*")})
    return sum(channel != WHOLE for (_, channel), _ in keys) * 2 > len(keys)


def _why_no_channels(images: Path, labels: Path) -> str:
    """Return why files carry no channels' numbers: those at the ends of their names may be the cases'."""
    numbered = [file.name for file in list_volumes(images) if re.search(r"_\d{4}$", case_name(file))]
    if numbered and (labels / numbered[0]).is_file():
        stem = case_name(numbered[0])
        ending = numbered[0][len(stem) :]
        return (
            f"the number in {images.name}/{numbered[0]} is the case's, as {labels.name} holds {numbered[0]}, too: "
            f"rename the image to {stem}_0000{ending}, or the folders to images and labels"
        )
    return f"the files in {images.name} carry no channel numbers such as _0000"


def _read_list(source: Path, *, root: Path) -> DataSet:
    """Read a data list, the Decathlon's included. Without folds, what is listed for validation becomes fold 0."""
    described = read_object(source)
    entries = list_entries(described, "training", path=source, root=root)
    validation = list_entries(described, "validation", path=source, root=root)
    has_folds = any(entry.fold is not None for entry in entries)
    notes = mistyped_keys(described, source)
    if any(entry.label for entry in validation):
        if has_folds:
            remedy = "The folds count, its validation list is left out."
            notes.append(Problem(str(source), "has folds in its training list besides a validation list", remedy, True))
        else:
            has_folds = True
            entries = [replace(e, fold=1) for e in entries] + [replace(e, fold=0) for e in validation]
    files = most_common(len(entry.image) for entry in entries if entry.image)
    channels = channel_names(described, source, files=files)
    files = len(channels) if channels and files > 1 else files  # one file may hold several channels
    cases, problems = _complete(entries, entry_names(entries), source=source, files=files, has_folds=has_folds)
    return DataSet("", tuple(cases), (*notes, *problems), channels, label_names(described, source))


def _complete(
    entries: Iterable[Entry], names: Iterable[str], *, source: Path, files: int, has_folds: bool = False
) -> tuple[list[Case], list[Problem]]:
    """Return the entries that are cases, and why the others aren't."""
    cases, problems = [], []
    for entry, name in zip(entries, names, strict=True):
        faults = entry_faults(entry, source=source, files=files, has_folds=has_folds)
        problems += faults
        if entry.label is not None and not faults:
            cases.append(Case(name, entry.image, entry.label, entry.fold))
    return cases, problems


def _read_nnunet(path: Path) -> DataSet:
    """Read nnU-Net's raw data. Version 1 trains on what its list names; version 2 has none, or one left over from 1."""
    source = path / DESCRIPTION
    described = read_object(source)
    ending = described.get("file_ending", SUFFIXES[0])
    if ending not in SUFFIXES:
        raise BadInput(f"{source}: the file_ending {ending} isn't supported. Convert the files to .nii.gz.")
    labels, channels = label_names(described, source), channel_names(described, source)
    named = named_entries(described, path=source)
    if named:
        cases, problems = _complete(named.values(), named, source=source, files=len(channels))
        problems += mistyped_keys(described, source)
        return DataSet("", tuple(cases), tuple(problems), channels, labels)
    training = [] if "channel_names" in described else list_entries(described, "training", path=source, root=path)
    listed: dict[str, str] = {}
    faults = []
    for entry in training:
        if not entry.image:
            faults += entry_faults(entry, source=source, files=0)
            continue
        name, place = case_name(entry.label or entry.image[0]), f"{entry.place} in {source.name}"
        if listed.setdefault(name, place) != place:
            faults.append(Problem(str(source), f"{entry.place} repeats {name}", "Take one of them out."))
    images, maps = (path / folder for folder in FOLDERS["nnunet"])
    cases, problems = pair_files(images, maps, channels=len(channels), numbered=True, listed=listed)
    notes = mistyped_keys(described, source)
    return DataSet("", tuple(cases), (*faults, *notes, *problems), channels, labels)


def _read_folders(path: Path, layout: str) -> DataSet:
    """Read a folder of images and one of label maps; plain ones may have a description beside them."""
    source = path / DESCRIPTION
    described = read_object(source) if source.is_file() and layout == "folders" else {}
    channels = ("CT",) if layout == "flare21" else channel_names(described, source)
    images, maps = (path / folder for folder in FOLDERS[layout])
    cases, problems = pair_files(images, maps, channels=len(channels))
    notes = mistyped_keys(described, source)
    return DataSet("", tuple(cases), (*notes, *problems), channels, label_names(described, source))


def _distinct(cases: Iterable[Case]) -> tuple[tuple[Case, ...], list[Problem]]:
    """Return the cases sorted by name, and as problems those whose name is taken: also on disks that ignore case."""
    kept: dict[str, Case] = {}
    problems = []
    for case in sorted(cases, key=lambda case: case.name):
        first = kept.setdefault(case.name.casefold(), case)
        if first is not case:
            what = "is listed twice" if first.image == case.image else f"has the same name as {first.image[0]}"
            problems.append(Problem(str(case.image[0]), what, "Take one of them out, or rename it."))
    return tuple(kept.values()), problems
