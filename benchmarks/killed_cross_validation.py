"""Does a cross-validation that is killed again and again end with the same table?

    python benchmarks/killed_cross_validation.py [--kills 3] [--cases 10] [--epochs 8] [--seed 0] [--folds 0]
        [--config OVERLAY]

A tiny committee (tiny.yaml) is cross-validated on phantoms in five folds by the command line, once undisturbed and once
while it is killed (SIGKILL) at random moments and started again with the same words. Prints after each kill what was
done by then, and at the end which runs stand in MLflow, and whether the two tables of scores are the same, byte for
byte.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import fire
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from cyclic_committee.scripts.phantoms.data_set import write_phantoms
from cyclic_committee.scripts.runtime.config_files import find_config

COMMAND = "from cyclic_committee.scripts.commands.main import main; main()"
TINY = Path(__file__).with_name("tiny.yaml")


def start(out: Path, *, data: Path, epochs: int, folds: str | None, configs: list[str]) -> subprocess.Popen[str]:
    """Start a cross-validation, or go on with it; what it prints is added to a file beside its folder."""
    command = [sys.executable, "-c", COMMAND, "cross-validate", str(data), str(out), str(TINY), *configs]
    command += ["--max_epochs", str(epochs), "--track", "true"]
    command += [] if folds is None else ["--folds", str(folds)]
    with out.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, text=True)


def done(out: Path) -> str:
    """Return what of each fold lies in a folder."""
    parts = []
    for folder in sorted(out.glob("fold_*")):
        files = [name for name in ("checkpoint.pt", "model.pt", "scores.csv") if (folder / name).is_file()]
        parts.append(f"{folder.name}: {files[-1] if files else 'begun'}")
    return ", ".join(parts) or "nothing"


def tracked(out: Path) -> str:
    """Return which runs of a cross-validation stand in MLflow, and how they ended."""
    client = MlflowClient(f"sqlite:///{out}/mlflow/mlflow.db")
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    parents = [run for run in runs if MLFLOW_PARENT_RUN_ID not in run.data.tags]
    states = sorted({run.info.status for run in runs})
    return f"{len(parents)} parent run and {len(runs) - len(parents)} child runs in MLflow, {', '.join(states)}"


def main(
    *,
    kills: int = 3,
    cases: int = 10,
    epochs: int = 8,
    seed: int = 0,
    folds: str | None = None,
    config: str | None = None,
) -> None:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantoms(folder / "data", cases=cases)
        configs = [str(find_config(config).resolve())] if config else []
        begin = partial(start, data=folder / "data", epochs=epochs, folds=folds, configs=configs)
        undisturbed, killed = folder / "undisturbed", folder / "killed"

        began_s = time.monotonic()
        if begin(undisturbed).wait():
            sys.exit(undisturbed.with_suffix(".log").read_text())
        whole_s = time.monotonic() - began_s
        print(f"undisturbed: {whole_s:.0f} s", flush=True)
        for kill in range(kills):
            process = begin(killed)
            alive_s = dice.uniform(0.05, 1) * whole_s / kills
            try:
                process.wait(alive_s)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                print(f"kill {kill + 1} after {alive_s:.0f} s: {done(killed)}", flush=True)
        if begin(killed).wait():
            sys.exit(killed.with_suffix(".log").read_text())
        print(tracked(killed))
        tables = [(run / "scores.csv").read_text() for run in (undisturbed, killed)]
        print(f"the same table: {tables[0] == tables[1]}, {tables[0].count(chr(10)) - 1} rows")
        if tables[0] != tables[1]:
            sys.exit(1)


if __name__ == "__main__":
    fire.Fire(main)
