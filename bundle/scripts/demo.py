"""Does all of it work here, and what does it look like?"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .errors import BadInput
from .location import bundle_root
from .phantom import write_phantoms

TRAINING_CASES, UNSEEN_CASES = 12, 4
TRAINING_SEED, UNSEEN_SEED = 1, 2  # other phantoms
MONAI_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ - (INFO|WARNING) - ")
MARK = ".cyclic-committee-demo"  # a folder with this file is ours to replace


def run_demo(folder: Path) -> None:
    """Make phantoms, train with the small variant, label and evaluate unseen phantoms, and say where all of it lies.

    Raises:
        BadInput: the folder holds something else than an earlier demo.
    """
    began_s = time.monotonic()
    folder = folder.resolve()
    make_room(folder)
    train, unseen, output = folder / "data" / "train", folder / "data" / "unseen", folder / "output"
    overlays = ["variants/small.yaml"]

    print(f"1/4  Making {TRAINING_CASES} phantom CTs to train on and {UNSEEN_CASES} to test with", flush=True)
    write_phantoms(train, cases=TRAINING_CASES, seed=TRAINING_SEED)
    write_phantoms(unseen, cases=UNSEEN_CASES, seed=UNSEEN_SEED)

    print("2/4  Training three U-Nets as a cyclic committee", flush=True)
    model = folder / "model.pt"
    run_bundle("training", ["train.yaml", *overlays], dataset_dir=train, output_dir=output, model_path=model)

    print("3/4  Labelling the unseen phantoms", flush=True)
    run_bundle("run", ["inference.yaml", *overlays], dataset_dir=unseen, output_dir=folder / "labels", ckpt_path=model)

    print("4/4  Evaluating on the unseen phantoms\n", flush=True)
    scores = folder / "evaluation"
    configs = ["inference.yaml", "evaluate.yaml", *overlays]
    run_bundle("run", configs, dataset_dir=unseen, output_dir=scores, ckpt_path=model)

    store = output / "mlflow" / "mlflow.db"
    print(f"\nDone in {(time.monotonic() - began_s) / 60:.1f} minutes.")
    print(f"Pictures:    {scores / 'pictures'} and {output / 'pictures'}")
    print(f"Label maps:  {folder / 'labels'}")
    print(f"Scores:      {scores / 'scores.csv'}")
    mlflow = Path(sys.executable).with_name("mlflow")
    print(f"Tracked run: {shlex.join([str(mlflow), 'ui', '--backend-store-uri', f'sqlite:///{store}'])}")


def make_room(folder: Path) -> None:
    """Make the folder, replacing an earlier demo, and nothing else."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise BadInput(f"{folder}: holds other things than an earlier demo. Choose another folder with --out.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def run_bundle(workflow: str, configs: list[str], **values: Path) -> None:
    """Run one of the bundle's workflows as a user would, and stop if it fails.

    Args:
        workflow: the id that is run.
        configs: files in the bundle's configs, overlays last.
        values: keys of the configuration with their values.
    """
    files = [str(Path(bundle_root(), "configs", config)) for config in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", workflow, "--config_file", str(files)]
    for key, value in values.items():
        command += [f"--{key}", str(value)]
    # MONAI warns and logs before the first line of ours is reached
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if not MONAI_LOG_LINE.match(line):
                print(line, end="", flush=True)
    if process.returncode != 0:
        raise BadInput(f"The workflow {workflow} failed: the reason is in the lines above.")
