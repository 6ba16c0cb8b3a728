"""The commands that make, check and prepare data sets."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..runtime.allocator import keep_freed_memory
from ..runtime.config_files import config_files, require_config
from ..runtime.errors import BadInput
from .arguments import channel_list, label_names, require_there

TRAIN = "python -m monai.bundle run training"


def phantom(
    out: str,
    *,
    cases: int = 10,
    layout: str = "flare21",
    seed: int = 0,
    corrupt: float = 0.0,
    corruptions: str | Sequence[str] | None = None,
) -> None:
    """Write phantom CTs with labels as a data set, with a share of the labels made wrong if wanted.

    Args:
        out: the folder that it goes to; files of the same names are replaced.
        cases: how many.
        layout: flare21, nnunet or decathlon.
        seed: of the phantoms, of the choice of those to corrupt and of what is done to them.
        corrupt: share of the cases whose labels are corrupted, in [0, 1].
        corruptions: what is done to labels, such as "dilation,shift"; by default an equal number of each of dilation,
            erosion, elastic, missing_organ, swapped_organs, shift.
    """
    if corruptions is not None and corrupt == 0:
        raise BadInput("corruptions: no labels are corrupted. Give the share of cases to corrupt with --corrupt.")
    from ..phantoms.data_set import CLEAN_LABELS, CORRUPTION, write_phantoms
    from ..phantoms.label_noise import CORRUPTIONS

    names = tuple(CORRUPTIONS) if corruptions is None else tuple(channel_list(corruptions))
    write_phantoms(str(out), cases=cases, seed=seed, layout=layout, corrupt=corrupt, corruptions=names)
    print(f"{out}: {cases} cases in the layout {layout}")
    if corrupt > 0:
        print(f"{Path(str(out), CORRUPTION)}: which labels are corrupted, how, and by how much")
        print(f"{Path(str(out), CLEAN_LABELS)}: the clean labels of all cases")
    print(f"Check it with: {shlex.join(['cyclic-committee', 'check', str(out)])}")


def check(
    dataset: str,
    layout: str = "auto",
    data_root: str | None = None,
    labels: dict[int, str] | None = None,
    channels: str | Sequence[str] | None = None,
    json: bool = False,
    processes: int | None = None,
) -> None:
    """Read every case of a data set and print all that is wrong with it; exit code 1 if a case can't be used.

    Args:
        dataset: the data set's folder, or a data list (JSON).
        layout: flare21, nnunet, decathlon, datalist or folders; by default found out.
        data_root: where a data list's relative paths begin; by default beside it.
        labels: label id -> name, such as "{1: liver}"; by default the data set's own.
        channels: names of the image's channels, such as CT or T1,T2; by default the data set's own.
        json: print JSON instead of a table.
        processes: at a time; by default as many as there are cores.
    """
    if not json:
        require_there(dataset, data_root)
    from ..planning.check_report import format_report, report_as_json
    from ..planning.data_check import check_data_set, nothing_to_check

    try:
        report = check_data_set(
            str(dataset),
            layout=layout,
            data_root=data_root,
            labels=label_names(labels),
            channel_names=channel_list(channels),
            processes=processes,
        )
    except BadInput as error:
        if not json:
            raise
        report = nothing_to_check(str(dataset), error)
    print(report_as_json(report) if json else format_report(report))
    if not report.all_usable:
        sys.exit(1)


def prepare(
    dataset: str,
    out: str,
    *config: str,
    bundle: str | None = None,
    layout: str = "auto",
    data_root: str | None = None,
    labels: dict[int, str] | None = None,
    channels: str | Sequence[str] | None = None,
    processes: int | None = None,
) -> None:
    """Measure a data set, plan spacing, patch, network and normalisation, and store all cases ready to train on.

    Stopped and started again, it goes on where it was. OUT/plan.yaml goes over train.yaml and inference.yaml.

    Args:
        dataset: the data set's folder, or a data list (JSON).
        out: the folder for plan.yaml, fingerprint.json and the prepared cases, 3 bytes a voxel.
        config: overlays over the plan, such as variants/small.yaml: the cases are prepared as they say.
        bundle: the folder of a bundle; by default the installed one.
        layout: flare21, nnunet, decathlon, datalist or folders; by default found out.
        data_root: where a data list's relative paths begin; by default beside it.
        labels: label id -> name, such as "{1: liver}"; by default the data set's own, or FLARE21's.
        channels: names of the image's channels, such as CT or T1,T2; by default the data set's own, or CT.
        processes: at a time; by default as many as there are cores.
    """
    require_there(dataset, data_root)
    require_config("train.yaml", config, bundle=bundle)
    from ..planning.preparation import prepare as prepare_data_set

    keep_freed_memory()
    plan = prepare_data_set(
        str(dataset),
        str(out),
        overlays=[str(file) for file in config],
        bundle=bundle,
        layout=layout,
        data_root=data_root,
        labels=label_names(labels),
        channel_names=channel_list(channels),
        processes=processes,
    )
    files = config_files("train.yaml", [plan, *config], bundle=bundle)
    print("\nPrepared. Train, with any further overlays last:")
    print(TRAIN, "--config_file", json.dumps(str(files)))  # in double quotes: there are single ones in it
