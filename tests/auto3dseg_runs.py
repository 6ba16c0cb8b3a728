"""Tiny data sets for Auto3DSeg, and AutoRunner's way to a committee on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml
from monai.apps.auto3dseg import AutoRunner

from cyclic_committee.scripts.algo import CommitteeAlgo
from cyclic_committee.scripts.phantoms.data_set import write_phantoms
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root

ALGOS = {"committee": {"_target_": "cyclic_committee.scripts.algo.CommitteeAlgo", "template_path": bundle_root()}}
TINY_TRAINING: dict[str, Any] = {
    "num_epochs": 2,
    "num_epochs_per_validation": 2,
    "num_images_per_batch": 4,
    "iterations_per_epoch": 2,
    "member": {
        "_target_": "scripts.networks.unet.UNet2d",
        "in_channels": "@channels",
        "out_channels": "@classes",
        "features": [4, 8, 16],
    },
    "patch_size": [48, 48],
    "crop_size": [48, 48],
    "spacing_mm": [6.0, 6.0],
    "augmentation": [],
    "num_workers": 0,
    "precision": "float32",
    "momentum": 0.9,
    "track": False,
}


def phantom_list(folder: Path, *, cases: int = 5) -> Path:
    """Phantoms with a data list beside them: two folds, the last case for testing. Returns the data list."""
    write_phantoms(folder, cases=cases, seed=1, layout="decathlon")
    described = json.loads((folder / "dataset.json").read_text())
    entries = described["training"]
    listed = {
        "training": [{**entry, "fold": number % 2} for number, entry in enumerate(entries[:-1])],
        "testing": [{"image": entries[-1]["image"]}],
    }
    path = folder / "task list.json"
    path.write_text(json.dumps(listed))
    return path


def mr_list(folder: Path) -> Path:
    """Five images of two channels, a file each, not CT, with the labels 1, 2 and 5. Returns the data list."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    affine = np.diag([-1.0, 1, 5, 1])  # to the left: not the orientation that slices are taken in
    affine[:3, 3] = 7, -3, 11
    entries = []
    for number in range(5):
        label = np.zeros((40, 36, 6), np.uint8)
        label[4:18, 5:20, 1:5], label[22:35, 8:22, 2:5], label[10:30, 24:33, 1:4] = 1, 2, 5
        files = []
        for channel, bright in enumerate(({1: 2.0, 2: 1.0, 5: 0.5}, {1: 0.3, 2: 2.0, 5: 1.5})):
            voxels = rng.normal(1, 0.1, label.shape) + np.select([label == i for i in bright], list(bright.values()))
            files.append(f"mr_{number}_{channel}.nii.gz")
            nib.save(nib.Nifti1Image((100 * voxels).astype(np.float32), affine), folder / files[-1])
        nib.save(nib.Nifti1Image(label, affine), folder / f"label_{number}.nii.gz")
        entries.append({"image": files, "label": f"label_{number}.nii.gz", "fold": number % 2})
    path = folder / "mr.json"
    path.write_text(json.dumps({"training": entries[:4], "testing": [{"image": entries[4]["image"]}]}))
    return path


def runner(work: Path, data_list: Path, *, train: dict[str, Any], **given: Any) -> AutoRunner:
    """AutoRunner on the CPU."""
    given = {"modality": "CT", "datalist": str(data_list), "dataroot": str(data_list.parent), **given}
    made = AutoRunner(work_dir=str(work), input=given, algos=ALGOS)
    made.set_analyze_params({"do_ccp": False, "device": "cpu"})
    made.set_training_params(train)
    return made


def input_files(
    folder: Path, data_list: Path, *, cases: int, channels: int = 1, labels: Any = (0, 1), **given: Any
) -> Any:
    """AutoRunner's input.yaml and a data analysis with what is looked at; returns the two files."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"modality": "CT", "datalist": str(data_list), "dataroot": str(data_list.parent), **given}
    (folder / "input.yaml").write_text(yaml.safe_dump(described))
    stats = {
        "n_cases": cases,
        "image_stats": {"channels": {"min": channels, "max": channels}},
        "label_stats": {"labels": list(labels)},
    }
    (folder / "datastats.yaml").write_text(yaml.safe_dump({"stats_summary": stats}))
    return folder / "input.yaml", folder / "datastats.yaml"


def made_fold(work: Path, data_list: Path, **kwargs: Any) -> CommitteeAlgo:
    """An untrained fold for phantoms, without AutoRunner."""
    algo = CommitteeAlgo(template_path=bundle_root())
    algo.name = "committee"
    source, stats = input_files(work, data_list, cases=4, labels=range(5))
    algo.set_data_source(str(source))
    algo.set_data_stats(str(stats))
    algo.export_to_disk(str(work), "committee_0", **{"fold": 0, **kwargs})
    return algo
