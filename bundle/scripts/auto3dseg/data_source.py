"""Auto3DSeg's input file and data analysis, read as this bundle's data set and channel names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data.layouts import DataSet, read_data_set
from ..data.volumes import label_ids
from ..planning.fingerprint import CaseFingerprint
from ..planning.preparation import measure, require_usable
from ..runtime.errors import BadInput

KNOWN_MODALITIES = ("ct", "mr", "mri", "pet")


@dataclass(frozen=True)
class Source:
    """A data set as AutoRunner hands it over."""

    input_file: Path
    data_list: Path
    data_root: str  # absolute
    modality: Any
    class_names: Any
    sigmoid: bool

    def unsupported(self) -> str:
        """Return in one line why the committee can't learn this, or nothing."""
        regions = [one["name"] for one in self.class_names or () if isinstance(one, dict) and len(index_of(one)) != 1]
        if regions:
            return f"{self.input_file}: class_names: {regions[0]} is a region of several labels, which isn't supported."
        return f"{self.input_file}: sigmoid: overlapping classes aren't supported." if self.sigmoid else ""


@dataclass(frozen=True)
class Analysis:
    """What MONAI's DataAnalyzer found, as far as it is used here."""

    file: Path
    cases: int
    channels: tuple[int, int]  # the least and the most
    labels: tuple[float, ...]

    def unsupported(self) -> str:
        """Return in one line why the committee can't learn this, or nothing."""
        wrong = [label for label in self.labels if label != int(label) or not 0 <= label <= 255]
        if wrong:
            return f"{self.file}: the label {wrong[0]:g} isn't supported, only whole numbers up to 255."
        if not any(self.labels):
            return f"{self.file}: no case shows any label."
        return ""


def read_source(path: str | Path) -> Source:
    """Return what AutoRunner's input.yaml says.

    Raises:
        BadInput: unreadable, or a key is missing.
    """
    given = read_yaml(path)
    missing = {"datalist", "dataroot", "modality"} - given.keys()
    if missing:
        raise BadInput(f"{path}: lacks {min(missing)}. Give datalist, dataroot and modality.")
    return Source(
        input_file=Path(path),
        data_list=Path(os.path.abspath(given["datalist"])),
        data_root=os.path.abspath(given["dataroot"]),
        modality=given["modality"],
        class_names=given.get("class_names"),
        sigmoid=bool(given.get("sigmoid", False)),
    )


def read_analysis(path: str | Path) -> Analysis:
    """Return what MONAI's data analysis says.

    Raises:
        BadInput: unreadable, or no data analysis.
    """
    try:
        summary = read_yaml(path)["stats_summary"]
        channels = summary["image_stats"]["channels"]
        return Analysis(
            file=Path(path),
            cases=int(summary["n_cases"]),
            channels=(int(channels["min"]), int(channels["max"])),
            labels=tuple(float(label) for label in summary["label_stats"]["labels"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: is no data analysis of MONAI's (it lacks {error}). Run the analysis anew.") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds. Raises BadInput if it can't be read."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadInput(
            f"{path}: can't be read ({error}). Run AutoRunner's earlier steps, or check the path."
        ) from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: holds no keys with values. Give a file as AutoRunner writes it.")
    return content


def measured_source(
    source: Source, analysis: Analysis, folder: Path
) -> tuple[list[CaseFingerprint], dict[int, str], list[str]]:
    """Measure a data set as `prepare` does, and check that the analysis is of the same one.

    Args:
        source: the data set.
        analysis: MONAI's.
        folder: where the measurements lie, or are put.

    Returns:
        measured: of each case.
        labels: label id -> name.
        channel_names: such as CT.

    Raises:
        BadInput: data that can't be used, the analysis of another data set.
    """
    unsupported = source.unsupported() or analysis.unsupported()
    if unsupported:
        raise BadInput(f"{unsupported} Give each label a number of its own.")
    data_set = read_data_set(source.data_list, layout="datalist", data_root=source.data_root)
    require_usable(data_set, source.data_list)
    require_same(analysis, "cases", len(data_set.cases), analysis.cases, source)
    labels = names_of_labels(source, data_set, analysis)
    channel_names = names_of_channels(source, analysis.channels[1])
    measured = measure(data_set, folder, labels=labels, channel_names=channel_names)
    require_same(analysis, "channels", len(measured[0].foreground), analysis.channels[0], source)
    ids = {0, *(int(label) for case in measured for label in case.label_voxels)}
    require_same(analysis, "labels", sorted(ids), sorted({0, *map(int, analysis.labels)}), source)
    return measured, labels, channel_names


def require_same(analysis: Analysis, what: str, measured: Any, analysed: Any, source: Source) -> None:
    """Raise `BadInput` if MONAI's analysis says something else than what was measured."""
    if measured != analysed:
        raise BadInput(
            f"{analysis.file}: is of another data set: its {what} are {analysed}, those of {source.data_list.name} "
            f"{measured}. Run the analysis anew."
        )


def names_of_labels(source: Source, data_set: DataSet, analysis: Analysis) -> dict[int, str]:
    """Return label id -> name: of class_names, or of the data list, or label_1 and so on.

    Mere names belong to the ids that occur, or if there are more names to 1, 2 and so on; a first name "background" is
    that of 0.

    Raises:
        BadInput: fewer names than labels.
    """
    analysed = sorted({int(label) for label in analysis.labels} - {0})
    given = list(source.class_names or ())
    if not given:
        return dict(data_set.labels) or {label: f"label_{label}" for label in analysed}
    if isinstance(given[0], dict):
        labels = {index_of(one)[0]: str(one["name"]) for one in given}
        labels.pop(0, None)
    else:
        names = [str(name) for name in given]
        names = names[1:] if names[0].lower() == "background" else names
        ids = analysed if len(names) == len(analysed) else range(1, len(names) + 1)
        labels = dict(zip(ids, names, strict=True))
    unknown = set(analysed) - labels.keys()
    if unknown:
        raise BadInput(f"{source.input_file}: class_names: the label {min(unknown)} has no name. Name all labels.")
    label_ids(labels)
    return labels


def index_of(named: Mapping[str, Any]) -> list[int]:
    """Return the label ids of an entry of class_names."""
    index = named.get("index", [])
    return [int(one) for one in index] if isinstance(index, Sequence) else [int(index)]


def names_of_channels(source: Source, channels: int) -> list[str]:
    """Return a name for each channel: those given, or the modality's.

    Raises:
        BadInput: another number of names.
    """
    given = source.modality
    if isinstance(given, Mapping):
        given = [name for _, name in sorted(given.items(), key=lambda item: int(item[0]))]
    names = [str(name) for name in given] if isinstance(given, Sequence) and not isinstance(given, str) else None
    names = [str(given)] * channels if names is None else names
    if len(names) != channels:
        raise BadInput(
            f"{source.input_file}: modality: names {len(names)} channels, images have {channels}. Correct it."
        )
    return [name.upper() if name.lower() in KNOWN_MODALITIES else name for name in names]
