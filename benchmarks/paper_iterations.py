"""What does an iteration of the paper's configuration cost on this machine, and does its checkpoint infer?

    python benchmarks/paper_iterations.py [--iterations N] [--config OVERLAY] [--out FOLDER]

Three networks of 41,268,192 parameters, batch 8, 512 x 512, as train.yaml has them: nothing is changed but the number
of iterations and the phantoms that stand in for FLARE21. Prints seconds per iteration and the peak memory.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path

import fire
import nibabel as nib
import numpy as np

from cyclic_committee.scripts.experiments.bundle_run import run_bundle
from cyclic_committee.scripts.experiments.demo import make_room
from cyclic_committee.scripts.phantoms.data_set import write_phantoms
from cyclic_committee.scripts.runtime.bundle_paths import copy_bundle
from cyclic_committee.scripts.runtime.config_files import find_config


def peak_gib() -> float:
    """The largest resident size of any finished child process so far."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def main(*, iterations: int = 2, config: str | None = None, out: str = "paper_iterations") -> None:
    folder = Path(out).resolve()
    make_room(folder)
    bundle, data = folder / "bundle", folder / "data"
    copy_bundle(bundle)
    overlays = [find_config(config)] if config else []
    for overlay in overlays:
        shutil.copy(overlay, bundle / "configs")
    names = [overlay.name for overlay in overlays]
    [case] = write_phantoms(data, cases=1)

    run_bundle(
        bundle,
        "training",
        ["train.yaml", *names],
        dataset_dir=data,
        output_dir=folder / "run",
        fold="none",
        max_epochs=1,
        iterations_per_epoch=iterations,
        num_workers=0,
    )
    [epoch] = json.loads((folder / "run" / "history.json").read_text())
    print(
        f"training:  {epoch['seconds'] / iterations:.1f} s per iteration, {peak_gib():.1f} GiB at the peak", flush=True
    )

    began_s = time.monotonic()
    run_bundle(bundle, "run", ["inference.yaml", *names], dataset_dir=case["image"], output_dir=folder / "labels")
    label = nib.load(folder / "labels" / Path(case["image"]).name)
    slices, classes = label.shape[2], np.unique(np.asanyarray(label.dataobj)).tolist()
    print(f"inference: {slices} slices in {time.monotonic() - began_s:.0f} s, start included; classes {classes}")


if __name__ == "__main__":
    fire.Fire(main)
