"""What can be typed after `cyclic-committee`?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import fire

from .demo import run_demo
from .errors import BadInput, find_bad_input
from .location import bundle_root, copy_bundle
from .model_size import committee_from, size_table
from .phantom import LABELS
from .score_report import evaluate_folders, format_table, summarise, write_csv, write_json


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


def evaluate(predictions: str, references: str, out: str, labels: dict[int, str] | None = None) -> None:
    """Compare a folder of label maps with a folder of references: DSC and NSD at 1 mm, as FLARE21 has them.

    Args:
        predictions: folder of label maps.
        references: folder of label maps of the same names.
        out: CSV file with the columns case, label, organ, dsc, nsd; beside it a JSON file with the summary.
        labels: label id -> organ, such as "{1: liver, 2: kidney}"; by default FLARE21's four.
    """
    if labels is not None and not isinstance(labels, dict):
        raise BadInput(f'labels must be ids with names, such as "{{1: liver}}", got {labels}.')
    rows = evaluate_folders(str(predictions), str(references), labels=labels or LABELS)
    summary = summarise(rows)
    write_csv(rows, Path(out))
    write_json(summary, Path(out).with_suffix(".json"))
    print(format_table(summary))


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "bundle": bundle,
    "parameters": parameters,
    "evaluate": evaluate,
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
