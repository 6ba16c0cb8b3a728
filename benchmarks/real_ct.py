"""How well does the small variant learn one real CT, in which time?

    python benchmarks/real_ct.py CT [--config OVERLAY] [--out FOLDER]

CT is a folder with image.nii.gz and label.nii.gz (FLARE21's ids). The committee is trained on the volume's slices with
the small variant, labels the volume by the inference workflow and is evaluated by the evaluation workflow. This shows
that a real CT goes through all of it and can be learned; on the volume that it was trained on it shows no more.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import yaml

from cyclic_committee.scripts.experiments.bundle_run import run_bundle
from cyclic_committee.scripts.experiments.demo import make_room
from cyclic_committee.scripts.runtime.bundle_paths import copy_bundle
from cyclic_committee.scripts.runtime.config_files import find_config

# a pancreas of 695 voxels in 19 slices needs more samples than the phantoms' organs
SCHEDULE = {"batch_size": 8, "iterations_per_epoch": 100, "max_epochs": 16, "val_interval": 4, "learning_rate": 0.004}


def main(ct: str, *, config: str | None = None, out: str = "real_ct") -> None:
    folder = Path(out).resolve()
    make_room(folder)
    copy_bundle(folder / "bundle")
    for name in ("image", "label"):
        (folder / "data" / f"{name}s").mkdir(parents=True)
        shutil.copy(Path(ct) / f"{name}.nii.gz", folder / "data" / f"{name}s" / "ct.nii.gz")
    (folder / "schedule.yaml").write_text(yaml.safe_dump(SCHEDULE))
    overlays = [find_config(name) for name in ("variants/small.yaml", str(folder / "schedule.yaml"), config) if name]
    for overlay in overlays:
        shutil.copy(overlay, folder / "bundle" / "configs")
    names = [overlay.name for overlay in overlays]
    data, labels = folder / "data", folder / "labels"

    began_s = time.monotonic()
    run_bundle(
        folder / "bundle", "training", ["train.yaml", *names], dataset_dir=data, output_dir=folder / "run", fold="all"
    )
    print(f"training:   {(time.monotonic() - began_s) / 60:.1f} minutes", flush=True)
    run_bundle(folder / "bundle", "run", ["inference.yaml", *names], dataset_dir=data, output_dir=labels)
    configs = ["inference.yaml", "evaluate.yaml", *names]
    run_bundle(folder / "bundle", "run", configs, dataset_dir=data, output_dir=folder / "scores")
    print(f"all:        {(time.monotonic() - began_s) / 60:.1f} minutes")

    image, label = nib.load(data / "images" / "ct.nii.gz"), nib.load(labels / "ct.nii.gz")
    same_grid = image.shape == label.shape and np.array_equal(image.affine, label.affine)
    print(f"label map on the image's grid: {same_grid}")


if __name__ == "__main__":
    fire.Fire(main)
