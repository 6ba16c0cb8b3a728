"""What is lost when processes of a training on many GPUs die?

    python benchmarks/lost_processes.py [--kills 10] [--epochs 24] [--processes 2] [--config OVERLAY]

A tiny committee (tiny.yaml) is trained on phantoms by several CPU processes under torchrun with --max-restarts, once
undisturbed and once while one process after another is killed (SIGKILL), a random one at a random moment. Prints how
long a run without restarts takes to end after a kill; for each kill the last whole epoch before it; and how far the
weights are from the undisturbed ones. About 20 seconds a kill: torchrun starts all processes anew.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fire
import torch

from cyclic_committee.scripts.phantoms.data_set import write_phantoms
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.runtime.config_files import find_config

TINY = Path(__file__).with_name("tiny.yaml")


def train(folder: Path, *, processes: int, restarts: int, configs: list[str]) -> subprocess.Popen[str]:
    """Start a training; what it prints goes to a file of the folder."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", f"--max_restarts={restarts}"]
    places = {"dataset_dir": folder.parent / "data", "output_dir": folder, "model_path": folder / "model.pt"}
    values = [word for key, value in places.items() for word in (f"--{key}", str(value))]
    workflow = ["monai.bundle", "run", "training", "--config_file", str(configs)]
    folder.mkdir()
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *torchrun, "-m", *workflow, *values], stdout=log, stderr=log, text=True
        )


def epochs_of(folder: Path) -> list[int]:
    history = folder / "history.json"
    return [row["epoch"] for row in json.loads(history.read_text())] if history.is_file() else []


def children_of(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def seconds_to_end(folder: Path, processes: int, configs: list[str]) -> float:
    """Return how long after the death of one process the whole run has ended."""
    process = train(folder, processes=processes, restarts=0, configs=configs)
    while not epochs_of(folder) and process.poll() is None:
        time.sleep(0.05)
    began_s = time.monotonic()
    os.kill(children_of(process)[0], signal.SIGKILL)
    process.wait()
    return time.monotonic() - began_s


def main(*, kills: int = 10, epochs: int = 24, processes: int = 2, seed: int = 0, config: str | None = None) -> None:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantoms(folder / "data", cases=5)
        (folder / "epochs.yaml").write_text(f"max_epochs: {epochs}\n")
        configs = [f"{bundle_root()}/configs/{file}.yaml" for file in ("train", "multi_gpu_train")]
        configs += [str(TINY), str(folder / "epochs.yaml"), *([str(find_config(config).resolve())] if config else [])]
        os.environ["OMP_NUM_THREADS"] = "1"

        undisturbed, killed = folder / "undisturbed", folder / "killed"
        if train(undisturbed, processes=processes, restarts=0, configs=configs).wait():
            sys.exit((undisturbed / "log.txt").read_text())
        ended_s = seconds_to_end(folder / "ended", processes, configs)
        print(f"without restarts, one kill ends the run after {ended_s:.1f} s")
        process = train(killed, processes=processes, restarts=kills, configs=configs)
        before, done = 0, 0
        while process.poll() is None and done < kills:
            now = epochs_of(killed)[-1:]
            if now and now[0] > before:  # an epoch since the last kill: it is training again
                time.sleep(dice.uniform(0, 2))
                workers = children_of(process)
                last = epochs_of(killed)[-1]
                if len(workers) == processes and last < epochs - 1:
                    os.kill(dice.choice(workers), signal.SIGKILL)
                    done, before = done + 1, last
                    print(f"kill {done}: {last} whole epochs were done", flush=True)
                else:
                    break
            time.sleep(0.05)
        if process.wait():
            sys.exit((killed / "log.txt").read_text())
        told = [line.split()[1] for line in (killed / "log.txt").read_text().splitlines() if line.startswith("epoch ")]
        print(f"epochs in the order that they ended: {' '.join(word.split('/')[0] for word in told)}")
        one, other = (torch.load(run / "model.pt", weights_only=True) for run in (undisturbed, killed))
        apart = max(float((one[key].double() - other[key].double()).abs().max()) for key in one)
        print(f"{done} kills; history whole: {epochs_of(killed) == list(range(1, epochs + 1))}; weights apart: {apart}")


if __name__ == "__main__":
    fire.Fire(main)
