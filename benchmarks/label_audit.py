"""Does the label audit find the labels that are wrong?

    python benchmarks/label_audit.py [--cases 60] [--seeds 3] [--folder FOLDER] [--config OVERLAY]
    python benchmarks/label_audit.py --cost [--config OVERLAY]

For each seed, phantoms are made of which 20 % have a corrupted label, in each of six ways, and the small variant is
trained on all of them, once with the default rule and once with SmallLoss. Prints for each rule the AUC of the cases'
distrust, corrupted against clean ones, overall and for each way: the mean and the lowest of the seeds, and beside it
that of simpler scores. Below, the AUC of the slices: those of which the corruption has changed more than a tenth of the
foreground, against all that it hasn't changed. About five minutes a training on two cores; what FOLDER holds already
isn't trained again.

With --cost it trains for some iterations and prints what the record of the losses takes of them.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import fire
import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from sklearn.metrics import roc_auc_score

from cyclic_committee.scripts.audit.label_audit import Suspect, rank
from cyclic_committee.scripts.experiments.demo import run_bundle
from cyclic_committee.scripts.handlers.loss_record import FILE, read_losses
from cyclic_committee.scripts.phantoms.data_set import CLEAN_LABELS, CORRUPTION, write_phantoms
from cyclic_committee.scripts.phantoms.label_noise import CORRUPTIONS
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.runtime.config_files import find_config

SHARE = 0.2
RULES = {"default": [], "SmallLoss": ["variants/small_loss.yaml"]}
SCORES: dict[str, Callable[[Suspect], float]] = {
    "distrust": lambda row: row.distrust,
    "loss": lambda row: row.loss,
    "dropped": lambda row: row.dropped,
}
Truth = dict[tuple[str, int], float]


def train(folder: Path, *, data: Path, seed: int, configs: Sequence[str]) -> None:
    """Train on all cases, unless it has been done; what was interrupted goes on."""
    if not (folder / "model.pt").is_file():
        values: dict[str, Any] = {"dataset_dir": data, "output_dir": folder, "model_path": folder / "model.pt"}
        values |= {"cache_dir": data / "prepared", "fold": "none", "track": "false", "seed": seed}
        values["resume"] = str((folder / "checkpoint.pt").is_file()).lower()
        run_bundle(Path(bundle_root()), "training", ["train.yaml", "variants/small.yaml", *configs], **values)


def auc(scores: Sequence[float], wrong: Sequence[bool]) -> float:
    """Return the area under the curve, NaN if all are right or all are wrong."""
    return float(roc_auc_score(wrong, scores)) if 0 < sum(wrong) < len(wrong) else float("nan")


def case_aucs(
    rows: Sequence[Suspect], corruption_of: Mapping[str, str], score: Callable[[Suspect], float]
) -> dict[str, float]:
    """Return the AUC of all corrupted cases, and of each way's, against all clean ones."""
    chosen = {"all": rows} | {
        name: [row for row in rows if corruption_of[row.case] in ("", name)] for name in CORRUPTIONS
    }
    return {
        name: auc([score(row) for row in some], [corruption_of[row.case] != "" for row in some])
        for name, some in chosen.items()
    }


def slice_auc(rows: Sequence[Suspect], changed: Truth) -> float:
    """Return the AUC of the slices; those that were changed a little count neither way."""
    places = [(row, changed[row.case, row.slice or 0]) for row in rows]
    clear = [(row.distrust, share > 0) for row, share in places if share == 0 or share > 0.1]
    return auc(*([list(column) for column in zip(*clear, strict=True)]))


def changes(data: Path, corruption_of: Mapping[str, str]) -> Truth:
    """Return for each slice how many voxels the corruption has changed, as a share of its foreground."""
    shares: Truth = {}
    for case in corruption_of:
        files = [data / folder / f"{case}.nii.gz" for folder in ("TrainingMask", CLEAN_LABELS)]
        label, clean = (np.asarray(nib.as_closest_canonical(nib.load(file)).dataobj) for file in files)
        wrong, shown = ((label != clean).sum((0, 1)), ((label > 0) | (clean > 0)).sum((0, 1)))
        shares |= {(case, z): float(share) for z, share in enumerate(wrong / np.maximum(shown, 1))}
    return shares


def measure_cost(configs: Sequence[str], *, epochs: int = 4, iterations: int = 10) -> None:
    """Print what the record takes of an iteration; the first epoch, which warms up, isn't counted."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        write_phantoms(data, cases=2)
        sys.path.insert(0, bundle_root())
        files = [str(find_config(file)) for file in ("train.yaml", "variants/small.yaml", *configs)]
        values: dict[str, Any] = {"dataset_dir": str(data), "output_dir": name, "model_path": f"{name}/model.pt"}
        values |= {"fold": "none", "track": False, "max_epochs": epochs, "iterations_per_epoch": iterations}
        workflow = ConfigWorkflow(files, workflow_type="train", **values)
        workflow.initialize()
        [record] = [one for one in workflow.parser.get_parsed_content("train#handlers") if hasattr(one, "about")]
        recording_s, whole_s, since_s = [0.0], [], [0.0]

        def timed(method: Callable[[Engine], None]) -> Callable[[Engine], None]:
            def run(engine: Engine) -> None:
                began_s = time.perf_counter()
                method(engine)
                recording_s[-1] += time.perf_counter() - began_s

            return run

        for method in ("forward_completed", "iteration_completed", "epoch_completed"):
            setattr(record, method, timed(getattr(record, method)))
        trainer = workflow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda: since_s.append(time.perf_counter()))
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: whole_s.append(time.perf_counter() - since_s[-1]))
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: recording_s.append(0.0))
        workflow.run()
    shares = [one / whole for one, whole in zip(recording_s[1:-1], whole_s[1:], strict=True)]
    each_ms = [1000 * one / iterations for one in recording_s[1:-1]]
    print(f"the record takes {median(each_ms):.1f} ms of an iteration, {median(shares):.2%} of it")


def main(
    *, cases: int = 60, seeds: int = 3, folder: str | None = None, config: str | None = None, cost: bool = False
) -> None:
    further = [str(find_config(config).resolve())] if config else []
    if cost:
        measure_cost(further)
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(folder or name).resolve()
        found: dict[str, list[dict[str, dict[str, float]]]] = {rule: [] for rule in RULES}
        of_slices: dict[str, list[float]] = {rule: [] for rule in RULES}
        for seed in range(seeds):
            data = root / f"data_{seed}"
            if not (data / CORRUPTION).is_file():
                write_phantoms(data, cases=cases, seed=seed, corrupt=SHARE)
            with (data / CORRUPTION).open(newline="") as file:
                corruption_of = {row["case"]: row["way"] for row in csv.DictReader(file)}
            changed = changes(data, corruption_of)
            for rule, overlays in RULES.items():
                run = root / f"{rule}_{seed}"
                train(run, data=data, seed=seed, configs=[*overlays, *further])
                table, about = read_losses(run / FILE)
                rows = rank(table, labels=about["labels"], by_slice=False)
                found[rule].append({name: case_aucs(rows, corruption_of, score) for name, score in SCORES.items()})
                of_slices[rule].append(slice_auc(rank(table, labels=about["labels"]), changed))
    columns = ["all", *CORRUPTIONS]
    print(f"AUC of cases, mean (lowest) of {seeds} seeds\n| rule | score | {' | '.join(columns)} |")
    for rule, of_seeds in found.items():
        for score in SCORES:
            numbers = [[one[score][column] for one in of_seeds] for column in columns]
            texts = [f"{fmean(some):.3f} ({min(some):.3f})" for some in numbers]
            print(f"| {rule} | {score} | {' | '.join(texts)} |")
    for rule, some in of_slices.items():
        print(f"AUC of slices, {rule}: {fmean(some):.3f} ({min(some):.3f})")


if __name__ == "__main__":
    fire.Fire(main)
