"""The commands that train, estimate costs, audit labels and write reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from json import dumps as to_json
from pathlib import Path
from typing import Any

from ..runtime.bundle_paths import copy_bundle
from ..runtime.config_files import find_config, require_config
from .arguments import require_there, show_help_if_asked


def demo(*config: str, out: str = "demo") -> None:
    """Train on phantoms, then label and evaluate unseen ones: all of it in minutes, on a CPU.

    Args:
        config: overlays on the small variant, such as variants/small_loss.yaml, to see what a difference they make.
        out: the folder that all of it goes to; an earlier demo there is replaced.
    """
    for file in config:
        find_config(file)
    from ..experiments.demo import run_demo

    run_demo(Path(out), overlays=[str(file) for file in config])


def bundle(folder: str) -> None:
    """Copy the bundle to a new folder, to train there or to change it.

    Args:
        folder: must not exist yet.
    """
    copy_bundle(Path(folder))
    print(f"The bundle is in {folder}.")


def release(bundle: str, url: str) -> None:
    """Enter a bundle's trained weights into its large_files.yml: where they can be fetched, and their SHA-256.

    Nothing is uploaded: do that first, or give the address that the file will have.

    Args:
        bundle: the folder of a bundle, such as a trained copy or a fold of Auto3DSeg.
        url: of its models/model.pt.
    """
    require_there(bundle)
    from ..bundles.release import enter_weights

    entry = enter_weights(str(bundle), str(url))
    print(f"{bundle}/large_files.yml: {entry['path']} at {entry['url']}, {entry['hash_type']} {entry['hash_val']}")


def parameters(*config: str, bundle: str | None = None, **values: Any) -> None:
    """Print parameters and multiply-accumulate operations of a configuration's networks.

    Args:
        config: overlays, such as variants/mixed.yaml; the bundle's train.yaml is read first.
        bundle: the folder of a bundle; by default the installed one.
        values: any key of the configuration with another value.
    """
    show_help_if_asked(parameters, values, name="parameters")
    require_config("train.yaml", config, bundle=bundle, values=values)
    from ..estimate.model_size import committee_from, size_table

    print(size_table(*committee_from([str(file) for file in config], bundle=bundle, values=values)))


def estimate(*config: str, bundle: str | None = None, json: bool = False, **values: Any) -> None:
    """Print what a training will cost, before it is run: parameters, operations, memory, and time on this CPU.

    No data set is needed. It takes about as long as three iterations of one network.

    Args:
        config: overlays, such as PREPARED/plan.yaml or variants/small.yaml; the bundle's train.yaml is read first.
        bundle: the folder of a bundle; by default the installed one.
        json: print JSON instead of tables; bytes and seconds.
        values: any key of the configuration, as for training, such as --batch_size 4.
    """
    show_help_if_asked(estimate, values, name="estimate")
    require_config("train.yaml", config, bundle=bundle, values=values)
    from ..estimate.estimate import estimate as estimate_training
    from ..estimate.estimate import format_estimate

    estimated = estimate_training([str(file) for file in config], values, bundle=bundle)
    print(to_json(asdict(estimated)) if json else format_estimate(estimated))


def cross_validate(
    dataset: str,
    out: str,
    *config: str,
    bundle: str | None = None,
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
        bundle: the folder of a bundle; by default the installed one.
        folds: the ones to do now, such as 0,3; by default all.
        layout: flare21, nnunet, decathlon, datalist or folders; by default found out.
        data_root: where a data list's relative paths begin; by default beside it.
        values: any key of the configuration, as for training, such as --max_epochs 100.
    """
    show_help_if_asked(cross_validate, values, name="cross-validate")
    require_there(dataset, data_root)
    require_config("train.yaml", config, bundle=bundle, values=values)
    from ..experiments.cross_validation import cross_validate as validate_folds

    validate_folds(
        str(dataset),
        str(out),
        overlays=[str(file) for file in config],
        bundle=bundle,
        folds=[folds] if isinstance(folds, int) else folds,
        layout=layout,
        data_root=data_root,
        values=values,
    )


def audit(run: str, out: str | None = None, top: int = 20) -> None:
    """Rank the training cases by how much the committee distrusted their labels, and draw the first of them.

    Args:
        run: the output folder of a training, or of cross-validate, whose folds are judged together.
        out: the folder for the tables and pictures; by default audit in the run's.
        top: how many cases to print and to draw.
    """
    require_there(run)
    from ..audit.label_audit import audit as audit_labels
    from ..audit.label_audit import format_suspects
    from ..audit.training_audit import told_of
    from ..experiments.cross_validation import SETTINGS
    from ..report.audit import audit_folds

    judge = audit_folds if (Path(str(run)) / SETTINGS).is_file() else audit_labels
    rows = judge(str(run), out=None if out is None else str(out), top=top)
    print(format_suspects(rows, top=top))
    if told := told_of(Path(str(run))):
        print(told)


def report(*run: str, out: str | None = None, timed_cases: int = 3, challenging: int = 1, suspects: int = 4) -> None:
    """Write a page about cross-validations, with tables and figures beside it: one run, or several side by side.

    Args:
        run: folders of cross-validate, finished or not.
        out: the folder for all that; by default report in the first run's.
        timed_cases: cases of each run that are labelled once more to measure time and memory.
        challenging: cases of each organ that are drawn.
        suspects: cases with distrusted labels that are drawn.
    """
    require_there(*run)
    from ..report.report import write_report

    page = write_report(
        [str(folder) for folder in run],
        out=None if out is None else str(out),
        timed_cases=timed_cases,
        challenging=challenging,
        suspects=suspects,
    )
    print(f"The report is in {page}.")
