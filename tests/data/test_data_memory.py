"""The memory of the data path, whatever the number of cases."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import TESTS

MEASURE = """
import json, sys
from pathlib import Path
from monai.transforms import Compose
from torch.utils.data import DataLoader
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent / "benchmarks")]
from conftest import preparation
from data_memory import children, private_bytes
from cyclic_committee.scripts.data.cases import find_cases
from cyclic_committee.scripts.data.slice_dataset import SliceDataset, SliceSampler

def measure(folder):
    settings = vars(preparation(spacing_mm=[3.0, 3.0]))
    data = find_cases(folder, part="training", fold="all")
    size = {"crop_size": [40, 40], "patch_size": [32, 32]}
    slices = SliceDataset(data, Compose([]), cache_dir=f"{folder}/store", **size, **settings)
    slices.prepare()
    sampler = SliceSampler(batch_size=8, iterations_per_epoch=100)
    batches = iter(DataLoader(slices, batch_sampler=sampler, num_workers=2, multiprocessing_context="fork"))
    for _ in range(90):
        next(batches)
    used = [private_bytes(process) for process in ("self", *children())]
    return {"parent": used[0], "workers": sum(used[1:]), "processes": len(used), "cases": len(slices.cases)}

measure(sys.argv[2])  # what is loaded once is loaded now
print(json.dumps([measure(folder) for folder in sys.argv[2:]]))
"""


def write_cases(folder: Path, cases: int) -> str:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    label = np.zeros((40, 36, 6), np.uint8)
    label[5:20, 5:20] = 1
    for case in range(cases):
        image = np.random.default_rng(case).integers(-1000, 1000, label.shape).astype(np.int16)
        for part, voxels in (("images", image), ("labels", label)):
            nib.save(nib.Nifti1Image(voxels, np.diag([3, 3, 5, 1])), folder / part / f"case_{case:03d}.nii")
    return str(folder)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="private memory is read from /proc")
def test_private_memory_is_the_same_for_ten_and_for_three_hundred_cases(tmp_path: Path) -> None:
    few, many = write_cases(tmp_path / "few", 10), write_cases(tmp_path / "many", 300)
    command = [sys.executable, "-c", MEASURE, str(TESTS), few, many]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ten, three_hundred = json.loads(done.stdout.splitlines()[-1])
    assert (ten["cases"], three_hundred["cases"]) == (10, 300)
    assert ten["processes"] == three_hundred["processes"] == 3
    total = [found["parent"] + found["workers"] for found in (ten, three_hundred)]
    assert total[1] <= 1.10 * total[0]
    assert total[1] - total[0] < 15 * 2**20  # 300 cases hold 15 MiB of voxels: they are in nobody's memory


KEPT = """
import torch
from cyclic_committee.scripts.runtime.allocator import keep_freed_memory
from cyclic_committee.scripts.estimate.memory import resident_bytes

assert keep_freed_memory()
held = [torch.ones(2**28) for _ in range(3)]  # 3 GiB, as the step at 512 x 512 frees at a time
most = resident_bytes()
del held
print(resident_bytes() / most)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_stays_with_the_process_however_much_it_is() -> None:
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0.95
