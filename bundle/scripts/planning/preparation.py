"""Preparation of a data set: fingerprint, plan and stored cases."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.layouts import DataSet, read_data_set
from ..data.slice_store import place_of
from ..data.volumes import label_ids
from ..runtime.atomic_files import put_in_place, remove_unfinished, unfinished_path
from ..runtime.config_files import require_mapping
from ..runtime.configuration import open_config
from ..runtime.errors import BadInput, size_text
from .fingerprint import CaseFingerprint, foreground_intensities, measure_cases
from .plan import make_plan
from .plan_file import write_plan

AXIS_OF = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}  # of x, y and z


def prepare(
    dataset: str | Path,
    out: str | Path,
    *,
    overlays: Sequence[str] = (),
    bundle: str | Path | None = None,
    layout: str = "auto",
    data_root: str | Path | None = None,
    labels: Mapping[int, str] | None = None,
    channel_names: Sequence[str] | None = None,
    processes: int | None = None,
) -> Path:
    """Measure a data set, plan, and store all of its cases prepared; return the plan's file.

    Stopped at any moment and started again, it goes on where it was. A plan that lies in `out` already is kept.

    Args:
        dataset: folder or data list.
        out: folder for plan.yaml, fingerprint.json and the prepared cases.
        overlays: configurations that go over the plan, such as variants/small.yaml.
        bundle: the folder of a bundle, whose train.yaml the plan goes over; by default the installed one.
        layout: see `layouts.read_data_set`.
        data_root: where a data list's relative paths begin.
        labels: label id -> name; by default the data set's own, or those of train.yaml.
        channel_names: such as CT or MR; by default the data set's own, or CT.
        processes: by default as many as there are cores.

    Raises:
        BadInput: a data set or case that can't be used; another data set's plan in `out`; no room.
    """
    out = Path(out).resolve()
    data_set = read_data_set(dataset, layout=layout, data_root=data_root)
    require_usable(data_set, dataset)
    places = {
        "dataset_dir": str(Path(dataset).resolve()),
        "layout": data_set.layout,
        "data_root": None if data_root is None else str(Path(data_root).resolve()),
        "cache_dir": str(out / "cases"),
    }
    plan_path = out / "plan.yaml"
    require_same_data_set(plan_path, places)
    labels = labels or data_set.labels or bundled_labels(bundle)
    label_ids(labels)
    channel_names = channel_names or data_set.channel_names or ["CT"] * len(data_set.cases[0].image)

    print(f"1/3  Measuring {len(data_set.cases)} cases ({data_set.layout} layout)", flush=True)
    try:
        measured = measure(data_set, out, labels=labels, channel_names=channel_names, processes=processes)
        if plan_path.is_file():
            print(f"2/3  Keeping the plan {plan_path}; without it a new one would be made", flush=True)
        else:
            print(f"2/3  Planning: {plan_path}", flush=True)
            write_plan(
                make_plan(measured, channel_names=channel_names, labels=labels), plan_path, labels=labels, places=places
            )
    except OSError as error:
        raise BadInput(f"{out}: can't be written ({error}). Make room, or choose another folder with --out.") from error

    values = {"fold": "all"}
    dataset_parser = open_config("train.yaml", [plan_path, *overlays], bundle=bundle, values=values)
    print(f"3/3  Preparing the cases: {dataset_parser['cache_dir']}", flush=True)
    slices = dataset_parser.get_parsed_content("train#dataset")
    require_room(slices, measured)
    slices.prepare(processes=processes)
    return plan_path


def measure(
    data_set: DataSet,
    out: Path,
    *,
    labels: Mapping[int, str],
    channel_names: Sequence[str],
    processes: int | None = None,
) -> list[CaseFingerprint]:
    """Measure all cases of a data set; write fingerprint.json, and of each case what need not be measured again.

    Args:
        data_set: of usable cases.
        out: folder, made if it isn't there.
        labels: label id -> name.
        channel_names: of all channels.
        processes: by default as many as there are cores.

    Raises:
        BadInput: a case that can't be used, another number of channels.
        OSError: the folder can't be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    remove_unfinished(out)
    measured = measure_cases(data_set.cases, labels=labels, folder=out / "fingerprints", processes=processes)
    require_channels(data_set, measured, channel_names)
    write_fingerprint(measured, channel_names, out / "fingerprint.json")
    return measured


def require_usable(data_set: DataSet, dataset: str | Path) -> None:
    """Raise `BadInput` for the first problem that leaves a case out."""
    problems = [problem for problem in data_set.problems if not problem.usable]
    if problems:
        more = f" {len(problems) - 1} more problems:" if len(problems) > 1 else ""
        raise BadInput(f"{problems[0]}{more} `cyclic-committee check {dataset}` lists everything.")


def require_same_data_set(plan_path: Path, places: Mapping[str, Any]) -> None:
    """Raise `BadInput` if the plan in the folder is another data set's, or no plan."""
    if not plan_path.is_file():
        return
    planned_from = require_mapping(plan_path).get("dataset_dir")
    if planned_from != places["dataset_dir"]:
        raise BadInput(f"{plan_path}: is the plan of {planned_from}. Choose another folder with --out.")


def bundled_labels(bundle: str | Path | None) -> dict[int, str]:
    """Return the labels of a bundle's train.yaml."""
    labels = open_config("train.yaml", bundle=bundle).get_parsed_content("labels")
    return {int(label): name for label, name in labels.items()}


def require_channels(data_set: DataSet, measured: Sequence[CaseFingerprint], channel_names: Sequence[str]) -> None:
    """Raise `BadInput` for the first image with another number of channels than there are names."""
    for case, of_case in zip(data_set.cases, measured, strict=True):
        if len(of_case.foreground) != len(channel_names):
            raise BadInput(
                f"{case.image[0]}: has {len(of_case.foreground)} channels, expected {len(channel_names)} "
                f"({', '.join(channel_names)}). Give the names of all channels with --channels, or mend the image."
            )


def write_fingerprint(measured: Sequence[CaseFingerprint], channel_names: Sequence[str], path: Path) -> None:
    """Write what was measured, as JSON: of the labelled voxels over all cases, and of each case."""
    content = {
        "cases": len(measured),
        "foreground": {
            f"{channel} {name}": asdict(foreground_intensities(measured, channel))
            for channel, name in enumerate(channel_names)
        },
        "each_case": [{key: value for key, value in asdict(case).items() if key != "foreground"} for case in measured],
    }
    unfinished = unfinished_path(path)
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    put_in_place(unfinished, path)


def require_room(slices: Any, measured: Sequence[CaseFingerprint]) -> None:
    """Raise `BadInput` if the cases that aren't stored yet won't fit on the disk."""
    folder, preparation = Path(slices.cache_dir), slices.preparation
    in_plane = [AXIS_OF[code] for code in preparation.orientation[:2]]
    needed = 0.0
    for case, of_case in zip(slices.data, measured, strict=True):
        if not place_of(case, folder=folder, preparation=preparation).is_dir():
            finer = [of_case.spacing_mm[a] / mm for a, mm in zip(in_plane, preparation.spacing_mm, strict=True)]
            needed += math.prod(of_case.size) * math.prod(finer) * (2 * len(of_case.foreground) + 1)  # bytes
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise BadInput(
            f"{folder}: the prepared cases need {size_text(needed)}, but only {size_text(free)} are free there. "
            "Make room, or choose another folder with --out."
        )
