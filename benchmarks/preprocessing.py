"""How long does it take to prepare a CT for training, beside nnU-Net v2's preprocessor?

    pip install '.[benchmarks]'    # without it, ours alone
    python benchmarks/preprocessing.py [--ct CT] [--rounds N] [--slices N] [--spacing_mm MM]

CT is a folder with image.nii.gz (HU) and label.nii.gz (FLARE21's ids); without it, a phantom. It is brought to
512 x 512 pixels and 119 slices of 0.74 mm a pixel, with a scanner's noise, and written as NIfTI. Then both prepare it
in turn, each in a process of its own and once before it counts, as one of many cases: for a pixel of 0.8164 mm, from
the files (gzip, in the page cache) to arrays in memory that are resampled and normalised, and an index of where the
classes are. Ours does what `slice_store` does before it writes, with freed memory kept as `cyclic-committee prepare`
keeps it; theirs is `DefaultPreprocessor.run_case`, as it comes and with freed memory kept. Once on one thread, as both
prepare data sets, a case a process; once on as many as PyTorch takes. The time of reading and unpacking the two files
alone stands below. The difference of the images is given in nnU-Net v2's order (first normalised, then resampled) and
in ours (nnU-Net v1's: first resampled).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from scipy import ndimage

from cyclic_committee.scripts.data.slice_store import Preparation, index_foreground, prepare_case
from cyclic_committee.scripts.phantoms.phantom import make_phantom
from cyclic_committee.scripts.runtime.allocator import keep_freed_memory
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.transforms.normalisation import ClipAndStandardise
from cyclic_committee.scripts.transforms.resampling import NormaliseThenResample, ResampleThenNormalise

SIZE = 512
SLICE_MM = 2.5
ORDERS = {"ours, resampled first (default)": ResampleThenNormalise(), "ours, normalised first": NormaliseThenResample()}
THEIRS = "nnU-Net v2"
WORK: list[Callable[[], Any]] = []  # what a process does


def write_ct(folder: Path, ct: str | None, *, slices: int, spacing_mm: float, noise_hu: float = 10) -> dict[str, str]:
    """Write image and label map with `(SIZE, SIZE, slices)` voxels; return their paths."""
    if ct:
        hu, label = (np.asanyarray(nib.load(Path(ct, f"{name}.nii.gz")).dataobj) for name in ("image", "label"))
    else:
        phantom = make_phantom(0)
        hu, label = phantom.image_hu, phantom.label
    factors = [wanted / n for wanted, n in zip((SIZE, SIZE, slices), hu.shape, strict=True)]
    hu = ndimage.zoom(hu.astype(np.float32), factors, order=1, mode="nearest", grid_mode=True)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(hu.shape, np.float32), (0.7, 0.7, 0))
    hu = (hu + noise * np.float32(noise_hu / noise.std())).round().clip(-1024, 3071).astype(np.int16)
    label = ndimage.zoom(label.astype(np.uint8), factors, order=0, mode="nearest", grid_mode=True)
    paths = {}
    for name, voxels in (("image", hu), ("label", label)):
        paths[name] = str(folder / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(voxels, np.diag([spacing_mm, spacing_mm, SLICE_MM, 1])), paths[name])
    return paths


def our_work(case: dict[str, str], preparation: Preparation) -> Callable[[], np.ndarray]:
    def work() -> np.ndarray:
        image, label, _ = prepare_case(case, preparation)
        index_foreground(label.numpy(), classes=len(preparation.labels))
        return image[0].mT.numpy()  # (slices, y, x)

    return work


def their_work(case: dict[str, str], train: Any, normalise: ClipAndStandardise) -> Callable[[], np.ndarray]:
    handler = importlib.import_module("nnunetv2.utilities.plans_handling.plans_handler")
    preprocessor = importlib.import_module("nnunetv2.preprocessing.preprocessors.default_preprocessor")
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    name = "resample_data_or_seg_to_shape"
    configuration = {  # as their planner writes it
        "preprocessor_name": "DefaultPreprocessor",
        "spacing": train["spacing_mm"][::-1],
        "patch_size": train["patch_size"][::-1],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},  # not looked at
        "resampling_fn_data": name,
        "resampling_fn_seg": name,
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
    }
    low, high = normalise.clip
    properties = {"mean": normalise.mean, "std": normalise.sd, "percentile_00_5": low, "percentile_99_5": high}
    plans = handler.PlansManager(
        {
            "dataset_name": "Dataset001_CT",
            "plans_name": "nnUNetPlans",
            "configurations": {"2d": configuration},
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "image_reader_writer": "SimpleITKIO",
            "foreground_intensity_properties_per_channel": {"0": properties},
        }
    )
    labels = {"background": 0, **{organ: int(label) for label, organ in train["labels"].items()}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    theirs = preprocessor.DefaultPreprocessor(verbose=False)

    def work() -> np.ndarray:
        settings = plans, plans.get_configuration("2d"), json.loads(json.dumps(dataset))
        return theirs.run_case([case["image"]], case["label"], *settings)[0][0]

    return work


def read_files(case: dict[str, str]) -> None:
    for path in case.values():
        np.asanyarray(nib.load(path).dataobj)


def begin(work: Callable[[], Any], threads: int, keep: bool) -> None:
    """Set up a process that does one work."""
    WORK[:] = [work]
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()


def timed() -> tuple[float, float]:
    """Return the seconds of a process' work, by the clock and of the cores."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        WORK[0]()
    return time.perf_counter() - began_s, time.process_time() - began_cpu_s


def compare(
    works: dict[str, tuple[Callable[[], Any], bool]], *, threads: int, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Return each one's seconds by the clock and of the cores; works: what is done, and whether memory is kept."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    with contextlib.ExitStack() as running:
        processes = {}
        for name, (work, keep) in works.items():
            settings = {"mp_context": get_context("fork"), "initializer": begin, "initargs": (work, threads, keep)}
            processes[name] = running.enter_context(ProcessPoolExecutor(1, **settings))
            processes[name].submit(timed).result()
        for turn in range(rounds):
            for name in list(works)[:: 1 if turn % 2 == 0 else -1]:
                seconds[name].append(processes[name].submit(timed).result())
    return seconds


def main(*, ct: str | None = None, rounds: int = 3, slices: int = 119, spacing_mm: float = 0.74) -> None:
    default_threads = torch.get_num_threads()
    train = ConfigParser()
    train.read_config(f"{bundle_root()}/configs/train.yaml")
    settings = {key: value for key, value in train["normalise"][0].items() if key != "_target_"}
    normalise = ClipAndStandardise(**settings)
    with tempfile.TemporaryDirectory() as folder:
        case = write_ct(Path(folder), ct, slices=slices, spacing_mm=spacing_mm)
        works: dict[str, Callable[[], Any]] = {
            name: our_work(
                case, Preparation(train["spacing_mm"], train["orientation"], [normalise], order, train["labels"])
            )
            for name, order in ORDERS.items()
        }
        libraries = ["numpy", "torch", "nibabel"]
        if find_spec("nnunetv2"):
            works[THEIRS] = their_work(case, train, normalise)
            libraries += ["nnunetv2", "scikit-image", "SimpleITK"]
        else:
            print("nnU-Net isn't installed, so nothing is compared: pip install nnunetv2==2.8.1")
        print(", ".join(f"{library} {version(library)}" for library in libraries))
        print(f"{SIZE} x {SIZE} x {slices}, {spacing_mm} -> {train['spacing_mm'][0]} mm; {rounds} rounds")
        both = {name: (work, name != THEIRS) for name, work in works.items()}
        if THEIRS in works:
            both[f"{THEIRS}, memory kept"] = works[THEIRS], True
        both["reading both files alone"] = (lambda: read_files(case)), False
        found = {n: compare(both, threads=n, rounds=rounds) for n in sorted({1, default_threads})}  # forks come first
        arrays = {name: work() for name, work in works.items()}
        for name in ORDERS:
            if THEIRS in arrays:
                image, other = arrays[name], arrays[THEIRS][:, ::-1, ::-1]  # nibabel's RAS, SimpleITK's LPS
                other = min((other, arrays[THEIRS]), key=lambda one: float(np.abs(image - one).mean()))
                print(f"{name}: mean difference to nnU-Net {np.abs(image - other).mean():.4f} sd")
        for threads, seconds in found.items():
            title = f"{threads} thread(s), median of the rounds (min-max)"
            print(f"\n{title:46}" + "".join(f"{f'{what} s':>22}{'ratio':>8}" for what in ("clock", "cores")))
            for name, of_one in seconds.items():
                cells = []
                for which, one in enumerate(zip(*of_one, strict=True)):
                    cells.append(f"{f'{np.median(one):.2f} ({min(one):.2f}-{max(one):.2f})':>22}")
                    theirs = [pair[which] for pair in seconds.get(THEIRS, [])]
                    cells.append(f"{np.median(one) / np.median(theirs):8.3f}" if theirs else f"{'':8}")
                print(f"{name:46}" + "".join(cells))


if __name__ == "__main__":
    fire.Fire(main)
