"""Do the memory and the time of training grow with the number of cases?

    python benchmarks/data_memory.py

Trains the small variant for some iterations on data sets of 10 and of 300 prepared cases, each in a process of its own
with two workers, and prints the private memory of all its processes (Linux). Then draws mini-batches from both data
sets in turn, in one process without workers, from a warm page cache, and prints the time of one: all else in an
iteration has no part in the number of cases.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
SIZE = (64, 56, 12)
ITERATIONS = 40
BATCHES = 50  # in a round of timing
ROUNDS = 20


def write_cases(folder: Path, cases: int) -> None:
    """Write small cases in plain folders: noise with four boxes that stand for organs."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for case in range(cases):
        rng = np.random.default_rng(case)
        label = np.zeros(SIZE, np.uint8)
        for organ in range(1, 5):
            x, y = rng.integers(0, SIZE[0] - 12), rng.integers(0, SIZE[1] - 12)
            label[x : x + 12, y : y + 12, 2:10] = organ
        image = (rng.normal(0, 30, SIZE) + 40 * label).astype(np.int16)
        for part, voxels in (("images", image), ("labels", label)):
            nib.save(nib.Nifti1Image(voxels, np.diag([3, 3, 5, 1])), folder / part / f"case_{case:03d}.nii.gz")


def private_bytes(process: str) -> int:
    """Return the memory that a process shares with no other."""
    lines = Path("/proc", process, "smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def children() -> list[str]:
    """Return this process' children."""
    return Path("/proc/self/task", str(Path("/proc/self").resolve().name), "children").read_text().split()


def train(dataset: str, output: str) -> None:
    """Train for some iterations and print the private memory of this process and of its workers, as JSON."""
    sys.path.insert(0, str(BUNDLE))
    files = [str(BUNDLE / "configs" / name) for name in ("train.yaml", "variants/small.yaml")]
    workflow = ConfigWorkflow(
        files,
        workflow_type="train",
        dataset_dir=dataset,
        output_dir=output,
        model_path=f"{output}/model.pt",
        fold="none",
        num_workers=2,
        max_epochs=1,
        iterations_per_epoch=ITERATIONS,
        track=False,
        device="$torch.device('cpu')",
    )
    workflow.initialize()
    measured = []

    def measure(engine: Engine) -> None:
        measured.append([private_bytes(process) for process in ("self", *children())])

    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda _, i: i > ITERATIONS // 2), measure)
    workflow.run()
    middle = sorted(measured[:-2], key=sum)[len(measured) // 2 - 1]  # the median; at the end workers are gone
    print(json.dumps({"parent": middle[0], "workers": sum(middle[1:]), "processes": len(middle)}))


def batches_of(dataset: Path, output: Path) -> Callable[[int], int]:
    """Prepare a data set; return what draws an epoch's mini-batches from it and says how many they are."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / name) for name in ("train.yaml", "variants/small.yaml")])
    parser.update({"dataset_dir": str(dataset), "output_dir": str(output), "fold": "none", "num_workers": 0})
    parser.update({"iterations_per_epoch": BATCHES, "train#dataloader#pin_memory": False})
    parser.get_parsed_content("train#dataset").prepare()
    loader, sampler = (parser.get_parsed_content(f"train#{name}") for name in ("dataloader", "sampler"))

    def draw(epoch: int) -> int:
        sampler.set_epoch(epoch)
        return sum(1 for _ in loader)

    return draw


def print_times(folder: Path, cases: Sequence[int]) -> None:
    """Print the time of a mini-batch from each data set, drawn in turn, and the ratio of the last to the first."""
    sys.path.insert(0, str(BUNDLE))
    torch.set_num_threads(1)
    draws = {}
    for number in cases:
        write_cases(folder / str(number), number)
        draws[number] = batches_of(folder / str(number), folder / f"output_{number}")
        draws[number](ROUNDS)  # warms up
    wall_ms: dict[int, list[float]] = {number: [] for number in cases}
    core_ms: dict[int, list[float]] = {number: [] for number in cases}
    for turn in range(ROUNDS):
        for number in cases[:: 1 if turn % 2 == 0 else -1]:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            drawn = draws[number](turn)
            wall_ms[number].append((time.perf_counter() - began_s) * 1000 / drawn)
            core_ms[number].append((time.process_time() - began_cpu_s) * 1000 / drawn)
    print(f"\ncases  ms a mini-batch  of a core (medians of {ROUNDS} rounds)")
    for number in cases:
        print(f"{number:5d}  {np.median(wall_ms[number]):15.2f}  {np.median(core_ms[number]):9.2f}")
    ratios = [np.median(found[cases[-1]]) / np.median(found[cases[0]]) for found in (wall_ms, core_ms)]
    print(f"ratio  {ratios[0]:15.3f}  {ratios[1]:9.3f}")


def main(*cases: int) -> None:
    """Print a line for each number of cases, and the ratio of the last to the first.

    Args:
        cases: numbers of cases; by default 10 and 300.
    """
    cases = cases or (10, 300)
    totals = []
    print("cases  processes  parent MiB  workers MiB  all MiB")
    for number in cases:
        with tempfile.TemporaryDirectory() as folder:
            write_cases(Path(folder, "data"), number)
            command = [sys.executable, __file__, "--train", f"{folder}/data", f"{folder}/output"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        totals.append(found["parent"] + found["workers"])
        mib = [value / 2**20 for value in (found["parent"], found["workers"], totals[-1])]
        print(f"{number:5d}  {found['processes']:9d}  {mib[0]:10.0f}  {mib[1]:11.0f}  {mib[2]:7.0f}", flush=True)
    print(f"ratio {totals[-1] / totals[0]:.3f}")
    with tempfile.TemporaryDirectory() as folder:
        print_times(Path(folder), cases)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(*sys.argv[2:])
    else:
        fire.Fire(main)
