"""The demo: phantoms made, trained on, labelled and evaluated."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..phantoms.data_set import write_phantoms
from ..runtime.atomic_files import remove_folder
from ..runtime.bundle_paths import copy_bundle
from ..runtime.config_files import find_config
from ..runtime.errors import BadInput
from .bundle_run import run_bundle

TRAINING_CASES, UNSEEN_CASES = 48, 8
FOLDS = 24  # of which one validates: 2 cases
TRAINING_SEED, UNSEEN_SEED = 1, 2  # other phantoms
MARK = ".cyclic-committee-demo"  # a folder with this file is ours to replace


def run_demo(folder: Path, *, overlays: Sequence[str] = ()) -> None:
    """Make phantoms, train with the small variant, label and evaluate unseen phantoms, and say where all of it lies.

    Args:
        folder: that all of it goes to, a bundle of its own with the trained weights among it; an earlier demo there
            is replaced.
        overlays: configuration files that go over the small variant, such as one of the bundle's variants.

    Raises:
        BadInput: no such overlay; the folder holds something else than an earlier demo; a workflow failed.
    """
    began_s = time.monotonic()
    folder = folder.resolve()
    files = [find_config(overlay) for overlay in ("variants/small.yaml", *overlays)]
    make_room(folder)
    train, unseen, output, bundle = folder / "train", folder / "unseen", folder / "output", folder / "bundle"
    copy_bundle(bundle)
    for overlay in files:  # beside train.yaml: MONAI complains about configurations from several folders
        shutil.copy(overlay, bundle / "configs")
    names = [overlay.name for overlay in files]

    print(f"1/4  Making {TRAINING_CASES} phantom CTs to train with and {UNSEEN_CASES} unseen ones", flush=True)
    write_phantoms(train, cases=TRAINING_CASES, seed=TRAINING_SEED)
    write_phantoms(unseen, cases=UNSEEN_CASES, seed=UNSEEN_SEED)

    print("2/4  Training three U-Nets as a cyclic committee", flush=True)
    run_bundle(bundle, "training", ["train.yaml", *names], dataset_dir=train, output_dir=output, folds=FOLDS)

    print("3/4  Labelling the unseen phantoms", flush=True)
    labels, scores = folder / "labels", folder / "evaluation"
    run_bundle(bundle, "run", ["inference.yaml", *names], dataset_dir=unseen, output_dir=labels)

    print("4/4  Evaluating on the unseen phantoms\n", flush=True)
    run_bundle(bundle, "run", ["inference.yaml", "evaluate.yaml", *names], dataset_dir=unseen, output_dir=scores)

    show_mlflow = [str(Path(sys.executable).with_name("mlflow")), "ui", "--backend-store-uri"]
    print(f"\nDone in {(time.monotonic() - began_s) / 60:.1f} minutes.")
    print(f"Pictures:    {scores / 'pictures'} and {output / 'pictures'}")
    print(f"Label maps:  {labels}")
    print(f"Scores:      {scores / 'scores.csv'}")
    print(f"Bundle:      {bundle}, with the trained weights")
    print(f"Tracked run: {shlex.join([*show_mlflow, f'sqlite:///{output}/mlflow/mlflow.db'])}")


def make_room(folder: Path) -> None:
    """Make the folder, replacing an earlier demo, and nothing else."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise BadInput(f"{folder}: holds other things than an earlier demo. Choose another folder with --out.")
        remove_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
