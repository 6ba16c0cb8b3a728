"""What can be typed after `cyclic-committee`?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from json import dumps as to_json
from pathlib import Path
from typing import Any

import fire

from .agreement import format_agreements
from .check_report import format_report, report_as_json
from .cross_validation import cross_validate as validate_folds
from .data_check import check_data_set, nothing_to_check
from .demo import run_demo
from .errors import BadInput, find_bad_input
from .estimate import estimate as estimate_training
from .estimate import format_estimate
from .export import export as export_committee
from .label_audit import audit as audit_labels
from .label_audit import format_suspects
from .label_noise import WAYS
from .location import bundle_root, copy_bundle, find_config
from .model_size import committee_from, size_table
from .phantom import LABELS
from .phantom_data_set import CLEAN_LABELS, CORRUPTION, write_phantoms
from .preparation import prepare as prepare_data_set
from .score_report import evaluate_folders, format_table, summarise, write_csv, write_json

TRAIN = "python -m monai.bundle run training"


def demo(*config: str, out: str = "demo") -> None:
    """Train on phantoms, then label and evaluate unseen ones: all of it in minutes, on a CPU.

    Args:
        config: overlays on the small variant, such as variants/small_loss.yaml, to see what a difference they make.
        out: the folder that all of it goes to; an earlier demo there is replaced.
    """
    run_demo(Path(out), overlays=[str(file) for file in config])


def bundle(folder: str) -> None:
    """Copy the bundle to a new folder, to train there or to change it.

    Args:
        folder: must not exist yet.
    """
    copy_bundle(Path(folder))
    print(f"The bundle is in {folder}.")


def parameters(*config: str) -> None:
    """Print parameters and multiply-accumulate operations of a configuration's networks.

    Args:
        config: configuration files, overlays last; without any, the paper's train.yaml.
    """
    root = bundle_root()
    sys.path.insert(1, root)  # as `monai.bundle run` does, for the configuration's own scripts
    files = [str(file) for file in config] or [f"{root}/configs/train.yaml"]
    print(size_table(*committee_from(files)))


def estimate(*config: str, json: bool = False, **values: Any) -> None:
    """Print what a training will cost, before it is run: parameters, operations, memory, and time on this CPU.

    No data set is needed. It takes about as long as three iterations of one network.

    Args:
        config: configuration files as for training, overlays last, such as plan.yaml or variants/small.yaml; the
            bundle's train.yaml is read first.
        json: print JSON instead of tables; bytes and seconds.
        values: any key of the configuration, as for training, such as --batch_size 4.
    """
    if values.keys() & {"help", "h"}:  # Fire takes them for a key, too
        fire.Fire(estimate, command=["--", "--help"], name="cyclic-committee estimate")
    sys.path.insert(1, bundle_root())  # as `monai.bundle run` does, for the configuration's own scripts
    found = estimate_training([str(file) for file in config], values)
    print(to_json(asdict(found)) if json else format_estimate(found))


def evaluate(
    predictions: str,
    references: str,
    out: str,
    labels: dict[int, str] | None = None,
    tolerance_mm: float = 1.0,
    processes: int | None = None,
) -> None:
    """Compare a folder of label maps with a folder of references: DSC and NSD, as FLARE21 has them.

    Args:
        predictions: folder of label maps.
        references: folder of label maps of the same names.
        out: CSV file with the columns case, label, organ, dsc, nsd; beside it a JSON file with the summary.
        labels: label id -> organ, such as "{1: liver, 2: kidney}"; by default FLARE21's four.
        tolerance_mm: of the NSD, 1 in FLARE21.
        processes: how many; by default one a core, 8 at most.
    """
    rows = evaluate_folders(
        str(predictions),
        str(references),
        labels=label_names(labels) or LABELS,
        tolerance_mm=tolerance_mm,
        processes=processes,
    )
    summary = summarise(rows)
    write_csv(rows, Path(out))
    write_json(summary, Path(out).with_suffix(".json"))
    print(format_table(summary))


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
        layout: flare21, nnunet, decathlon, datalist or folders; by default found out.
        data_root: where a data list's relative paths begin; by default beside it.
        labels: label id -> name, such as "{1: liver}"; by default the data set's own, or FLARE21's.
        channels: names of the image's channels, such as CT or T1,T2; by default the data set's own, or CT.
        processes: at a time; by default as many as there are cores.
    """
    plan = prepare_data_set(
        str(dataset),
        str(out),
        overlays=[str(file) for file in config],
        layout=layout,
        data_root=data_root,
        labels=label_names(labels),
        channel_names=channel_list(channels),
        processes=processes,
    )
    files = [f"{bundle_root()}/configs/train.yaml", str(plan), *(str(find_config(str(file))) for file in config)]
    print(f'\nPrepared. Train, with any further overlays last:\n{TRAIN} --config_file "{files}"')


def label_names(labels: dict[int, str] | None) -> dict[int, str] | None:
    """Return labels as they were given, if they are ids with names.

    Raises:
        BadInput: they are something else.
    """
    if labels is not None and not isinstance(labels, dict):
        raise BadInput(f'labels must be ids with names, such as "{{1: liver, 2: kidney}}", got {labels}.')
    return labels


def channel_list(channels: str | Sequence[str] | None) -> list[str]:
    """Return channel names as Fire hands them over: one word, words with commas between them, or several."""
    return channels.split(",") if isinstance(channels, str) else [str(name) for name in channels or ()]


def phantom(
    out: str,
    *,
    cases: int = 10,
    layout: str = "flare21",
    seed: int = 0,
    corrupt: float = 0.0,
    ways: str | Sequence[str] | None = None,
) -> None:
    """Write phantom CTs with labels as a data set, with a share of the labels made wrong if wanted.

    Args:
        out: the folder that it goes to; files of the same names are replaced.
        cases: how many.
        layout: flare21, nnunet or decathlon.
        seed: of the phantoms, of the choice of those to corrupt and of what is done to them.
        corrupt: share of the cases whose labels are corrupted, in [0, 1].
        ways: what is done to labels, such as "dilation,shift"; by default an equal number of each of dilation,
            erosion, elastic, missing_organ, swapped_organs, shift.
    """
    if ways is not None and corrupt == 0:
        raise BadInput("ways: no labels are corrupted. Give the share of cases to corrupt with --corrupt.")
    names = tuple(WAYS) if ways is None else ways
    write_phantoms(str(out), cases=cases, seed=seed, layout=layout, corrupt=corrupt, ways=names)
    print(f"{out}: {cases} cases in the layout {layout}")
    if corrupt > 0:
        print(f"{Path(str(out), CORRUPTION)}: which labels are corrupted, how, and by how much")
        print(f"{Path(str(out), CLEAN_LABELS)}: the clean labels of all cases")
    print(f"Check it with: {shlex.join(['cyclic-committee', 'check', str(out)])}")


def export(
    out: str,
    format: str,
    bundle: str | None = None,
    config: str | Sequence[str] | None = None,
    ckpt_path: str | None = None,
    member: int | None = None,
    image: str | Sequence[str] | None = None,
) -> None:
    """Write the trained committee, or one member, for programs without this package; checked before it appears.

    Args:
        out: the file; one that is there is replaced.
        format: torchscript, pt2 or onnx.
        bundle: the folder of a bundle; by default the installed one.
        config: overlays that the networks were trained with, commas between them, such as variants/small.yaml.
        ckpt_path: the weights; by default models/model.pt of the bundle.
        member: the one to write, from 0; by default the mean of all voters.
        image: a volume's file, NIfTI, to compare the file with the original on; or a file a channel, with commas.
    """
    agreements = export_committee(
        str(out),
        format=str(format),
        bundle=bundle,
        overlays=channel_list(config),
        ckpt_path=ckpt_path,
        member=member,
        image=channel_list(image) or None,
    )
    print(format_agreements(str(out), agreements))


def cross_validate(
    dataset: str,
    out: str,
    *config: str,
    folds: int | Sequence[int] | None = None,
    layout: str = "auto",
    data_root: str | None = None,
    **values: Any,
) -> None:
    """Train, label and score each fold of a data set, and print the table of all.

    Stopped and started again, it goes on with what is missing.

    Args:
        dataset: the data set's folder, or a data list (JSON).
        out: the folder that all of it goes to.
        config: overlays, such as PREPARED/plan.yaml or variants/small.yaml.
        folds: the ones to do now, such as 0,3; by default all.
        layout: flare21, nnunet, decathlon, datalist or folders; by default found out.
        data_root: where a data list's relative paths begin; by default beside it.
        values: any key of the configuration, as for training, such as --max_epochs 100.
    """
    if values.keys() & {"help", "h"}:  # Fire takes them for a key, too
        fire.Fire(cross_validate, command=["--", "--help"], name="cyclic-committee cross-validate")
    validate_folds(
        str(dataset),
        str(out),
        overlays=[str(file) for file in config],
        folds=[folds] if isinstance(folds, int) else folds,
        layout=layout,
        data_root=data_root,
        values=values,
    )


def audit(run: str, out: str | None = None, top: int = 20) -> None:
    """Rank the training cases by how much the committee distrusted their labels, and draw the first of them.

    Args:
        run: the output folder of a training.
        out: the folder for the tables and pictures; by default audit in the run's.
        top: how many cases to print and to draw.
    """
    rows = audit_labels(str(run), out=None if out is None else str(out), top=top)
    print(format_suspects(rows, top=top))


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "bundle": bundle,
    "parameters": parameters,
    "estimate": estimate,
    "evaluate": evaluate,
    "check": check,
    "prepare": prepare,
    "phantom": phantom,
    "export": export,
    "cross-validate": cross_validate,
    "audit": audit,
}


def main() -> None:
    """Run a command; bad input ends in one line and exit code 1."""
    try:
        fire.Fire(COMMANDS, name="cyclic-committee")
    except Exception as error:
        bad_input = find_bad_input(error)
        if bad_input is None:
            raise
        print(f"error: {bad_input}", file=sys.stderr)
        sys.exit(1)
