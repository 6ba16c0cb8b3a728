"""How fast do slices come off the disk, and samples out of the whole data pipeline, beside nnU-Net v2's?

    pip install '.[benchmarks]'    # without it, ours alone
    python benchmarks/data_pipeline.py [--ct CT] [--cases N] [--rounds N] [--samples N] [--noise_hu SD]
                                       [--config OVERLAY]

CT is a folder with image.nii.gz (HU) and label.nii.gz (FLARE21's ids); without it, phantoms. They are brought to square
slices of the patch's size, 512 x 512, of 0.74 to 0.9 mm a pixel, as CTs have, and prepared by nnU-Net's planner and
preprocessor and by ours, for the same spacing, patch, cut and batch. Then both draw samples in turn, in one process, on
one thread, from a warm page cache: ours by train.yaml's own DataLoader, theirs by nnU-Net's own data loader, with their
training transforms without deep supervision. A slice that is read ends in float32 and integers in memory, its files
opened for it, as both do in training. Enlarged images are smoother than a CT: noise_hu adds a scanner's noise.
Takes some minutes, most of them for nnU-Net's preparation, and 0.3 GB a case under $TMPDIR.
"""

from __future__ import annotations

import os

# before numpy and torch are imported, which look at it once
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import contextlib
import importlib
import io
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from scipy import ndimage

from cyclic_committee.scripts.phantoms.data_set import LAYOUTS, describe_nnunet, write_volume
from cyclic_committee.scripts.phantoms.phantom import make_phantom
from cyclic_committee.scripts.planning.preparation import prepare
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.runtime.config_files import find_config
from cyclic_committee.scripts.runtime.configuration import open_config
from cyclic_committee.scripts.transforms.resampling import resample_labels, resample_slices

OURS, THEIRS = "cyclic committee", "nnU-Net v2"
RECIPE = ("spacing_mm", "patch_size", "crop_size", "batch_size")  # the same for both
SPACINGS = (0.9, 1.1)  # of the cases, from the first to the last, times the recipe's
SLICE_PIXELS = 4  # as thick as so many pixels are wide: both planners then take the slices along z
FOREGROUND = 0.33  # share of a batch that is forced to show a class; nnU-Net's own figure, and SliceSampler's
WARM_UP = 240  # samples: nnU-Net's blur times two ways of filtering when it first meets a width, one draw in forty

# nnU-Net plans and preprocesses, the plan's figures replaced by the recipe's: {"spacing": [y, x], "patch_size": [y, x]}
PREPARE_THEIRS = """
import json, sys
from pathlib import Path
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
path, figures, processes = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
extract_fingerprints([1], num_processes=processes)
plan_experiments([1])
plans = json.loads(path.read_text())
plans["configurations"]["2d"].update(figures)
path.write_text(json.dumps(plans))
preprocess([1], configurations=["2d"], num_processes=[processes])
"""


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    slices: dict[str, int]  # of each case
    read: Callable[[str, int], tuple[np.ndarray, np.ndarray]]  # image (x, y) or (y, x) and label of a slice
    draw: Callable[[int, int], int]  # a seed and a number of batches -> samples drawn


@dataclass
class Speeds:
    """Things a second, one figure a round: by the clock, and of a core's time, whatever else it had to do."""

    wall: list[float] = field(default_factory=list)
    core: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], int]) -> None:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        done = work()
        self.wall.append(done / (time.perf_counter() - began_s))
        self.core.append(done / (time.process_time() - began_cpu_s))


def volumes(
    ct: str | None, cases: int, size: Sequence[int], noise_hu: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield HU int16 and label uint8, (x, y, slices) of this size in-plane; no two are the same."""
    for case in range(cases):
        if ct:
            image, ids = (nib.as_closest_canonical(nib.load(Path(ct, f"{name}.nii.gz"))) for name in ("image", "label"))
            flip = tuple(slice(None, None, -1 if case >> axis & 1 else 1) for axis in range(3))
            hu, label = image.get_fdata(dtype=np.float32)[flip], np.asarray(ids.dataobj).astype(np.uint8)[flip]
        else:
            phantom = make_phantom(case)
            hu, label = phantom.image_hu.astype(np.float32), phantom.label
        sides = [max(hu.shape[:2]) - n for n in hu.shape[:2]]  # a square, as scanners make it
        pad = [*((n // 2, n - n // 2) for n in sides), (0, 0)]
        slices = torch.from_numpy(np.pad(hu, pad, constant_values=hu.min())).permute(2, 0, 1)
        ids_padded = torch.from_numpy(np.pad(label, pad)).permute(2, 0, 1)
        hu = resample_slices(slices, size, order=3).numpy()
        if noise_hu:
            noise = np.random.default_rng(case).standard_normal(hu.shape, np.float32)
            noise = ndimage.gaussian_filter(noise, (0, 0.7, 0.7))  # a soft kernel: neighbours resemble each other
            hu = hu + noise * np.float32(noise_hu / noise.std())
        hu = hu.round().clip(-1024, 3071).astype(np.int16)
        yield hu.transpose(1, 2, 0), resample_labels(ids_padded, size).numpy().transpose(1, 2, 0)


def write_data_set(raw: Path, ct: str | None, cases: int, recipe: dict[str, Any], noise_hu: float) -> None:
    files = [LAYOUTS["nnunet"].files(case) for case in range(cases)]
    factors = np.linspace(*SPACINGS, cases) if cases > 1 else [1.0]
    for case, factor, (hu, label) in zip(
        files, factors, volumes(ct, cases, recipe["patch_size"], noise_hu), strict=True
    ):
        x, y = (mm * factor for mm in recipe["spacing_mm"])
        affine = np.diag([x, y, SLICE_PIXELS * max(recipe["spacing_mm"]), 1.0])
        write_volume(raw / case.image, hu, affine)
        write_volume(raw / case.label, label, affine)
    (raw / "dataset.json").write_text(json.dumps(describe_nnunet(files)))


def our_side(raw: Path, folder: Path, overlays: Sequence[str]) -> Side:
    parser = open_config("train.yaml", [prepare(raw, folder, overlays=overlays), *overlays], values={"fold": "all"})
    parser["num_workers"], parser["train#dataloader#pin_memory"] = 0, False
    cases = {case.name: case for case in parser.get_parsed_content("train#dataset").cases}
    loader, sampler = (parser.get_parsed_content(f"train#{name}") for name in ("dataloader", "sampler"))

    def read(name: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = cases[name].read(index)
        return image[0], label

    def draw(seed: int, batches: int) -> int:
        sampler.set_epoch(seed)
        sampler.iterations_per_epoch = batches
        return sum(len(batch["image"]) for batch in loader)

    return Side({name: case.shape[2] for name, case in cases.items()}, read, draw)


def nnunet(module: str) -> Any:
    return importlib.import_module(f"nnunetv2.{module}")


def their_side(raw: Path, preprocessed: Path, recipe: dict[str, Any], rotation_degrees: float) -> Side:
    places = {"nnUNet_raw": raw, "nnUNet_preprocessed": preprocessed, "nnUNet_results": preprocessed}
    environment = {**os.environ, **{name: str(place.parent) for name, place in places.items()}}
    patch, crop = recipe["patch_size"][::-1], recipe["crop_size"][::-1]  # y, x
    figures = json.dumps({"spacing": recipe["spacing_mm"][::-1], "patch_size": patch})
    plans_path = str(preprocessed / "nnUNetPlans.json")
    command = [sys.executable, "-c", PREPARE_THEIRS, plans_path, figures, str(os.cpu_count())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"nnU-Net couldn't prepare the data set:\n{done.stderr}")
    plans = nnunet("utilities.plans_handling.plans_handler").PlansManager(plans_path)
    folder = preprocessed / plans.get_configuration("2d").data_identifier
    dataset = nnunet("training.dataloading.nnunet_dataset").nnUNetDatasetBlosc2(str(folder))
    radians = math.radians(rotation_degrees)
    trainer = nnunet("training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
    loader = nnunet("training.dataloading.data_loader").nnUNetDataLoader(
        dataset,
        recipe["batch_size"],
        crop,
        patch,
        plans.get_label_manager(json.loads((raw / "dataset.json").read_text())),
        oversample_foreground_percent=FOREGROUND,
        transforms=trainer.get_training_transforms(patch, (-radians, radians), None, (0, 1), False),
    )
    cut = importlib.import_module("acvl_utils.cropping_and_padding.bounding_boxes").crop_and_pad_nd

    def read(name: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, label, _, _ = dataset.load_case(name)
        box = [[index, index + 1], *([0, n] for n in image.shape[2:])]
        # as their data loader does, but for the whole slice; the image is float32 already
        return cut(image, box, 0)[0, 0], cut(label, box, -1, cast_cropped_to=np.int16)[0, 0]

    def draw(seed: int, batches: int) -> int:
        for seed_library in (random.seed, np.random.seed, torch.manual_seed):
            seed_library(seed)
        return sum(len(next(loader)["data"]) for _ in range(batches))

    return Side({name: dataset.load_case(name)[0].shape[1] for name in dataset.identifiers}, read, draw)


def require_same_data(sides: Sequence[Side]) -> None:
    ours, theirs = sides
    if ours.slices != theirs.slices:
        raise SystemExit(f"The two prepared other data: {ours.slices} and {theirs.slices}.")
    for name, slices in ours.slices.items():
        (image, label), (their_image, their_label) = (side.read(name, slices // 2) for side in sides)
        likeness = np.corrcoef(image.T.ravel(), their_image.ravel())[0, 1]
        if likeness < 0.9 or np.mean(their_label == label.T) < 0.99:  # orders of resampling and clipping differ
            raise SystemExit(f"{name}: the two didn't read the same slice (correlation {likeness:.3f}).")


def compare(sides: dict[str, Side], *, rounds: int, samples: int, batch_size: int) -> dict[str, dict[str, Speeds]]:
    """Return the speeds of each side, of reading and of drawing."""
    speeds = {name: {"reading": Speeds(), "drawing": Speeds()} for name in sides}
    names, slices = zip(*next(iter(sides.values())).slices.items(), strict=True)
    batches, rng = max(1, samples // batch_size), np.random.default_rng(0)
    for side in sides.values():
        side.draw(rounds, WARM_UP // batch_size)
        for name, count in zip(names, slices, strict=True):
            for index in range(count):
                side.read(name, index)

    def read_all(side: Side, places: Sequence[tuple[str, int]]) -> int:
        for place in places:
            side.read(*place)
        return len(places)

    for turn in range(rounds):
        chosen = rng.integers(len(names), size=samples)
        places = [(names[case], int(rng.integers(slices[case]))) for case in chosen]
        order = list(sides.items())
        for name, side in order[:: 1 if turn % 2 == 0 else -1]:
            speeds[name]["reading"].measure(partial(read_all, side, places))
            speeds[name]["drawing"].measure(partial(side.draw, turn, batches))
    return speeds


def print_table(speeds: dict[str, dict[str, Speeds]]) -> None:
    print(f"\n{'median of the rounds (min-max)':34}" + "".join(f"{name:>24}" for name in speeds) + f"{'ratio':>8}")
    for title, what, clock in (
        ("slices read per second", "reading", "wall"),
        ("slices read per second and core", "reading", "core"),
        ("samples per second", "drawing", "wall"),
        ("samples per second and core", "drawing", "core"),
    ):
        found = [getattr(side[what], clock) for side in speeds.values()]
        digits = 0 if what == "reading" else 1
        cells = [f"{np.median(one):.{digits}f} ({min(one):.{digits}f}-{max(one):.{digits}f})" for one in found]
        ratio = f"{np.median(found[0]) / np.median(found[1]):8.2f}" if len(found) > 1 else ""
        print(f"{title:34}" + "".join(f"{cell:>24}" for cell in cells) + ratio)


def main(
    *,
    ct: str | None = None,
    cases: int = 4,
    rounds: int = 7,
    samples: int = 400,
    noise_hu: float = 10,
    config: str | None = None,
) -> None:
    torch.set_num_threads(1)
    train = ConfigParser()
    train.read_config([f"{bundle_root()}/configs/train.yaml", *([str(find_config(config))] if config else [])])
    recipe = {key: train[key] for key in RECIPE}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw, preprocessed = folder / "raw" / "Dataset001_CT", folder / "preprocessed" / "Dataset001_CT"
        print("1/3  Making the data set", flush=True)
        write_data_set(raw, ct, cases, recipe, noise_hu)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        overlays = [str(folder / "recipe.yaml"), *([config] if config else [])]
        print("2/3  Preparing it, for each of the two", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):
            sides = {OURS: our_side(raw, folder / "ours", overlays)}
        libraries = ["numpy", "torch", "monai", "nibabel"]
        if find_spec("nnunetv2"):
            rotation = open_config("train.yaml", [folder / "ours" / "plan.yaml", *overlays])["rotation_degrees"]
            sides[THEIRS] = their_side(raw, preprocessed, recipe, rotation)
            require_same_data(list(sides.values()))
            libraries += ["nnunetv2", "batchgeneratorsv2", "blosc2"]
        else:
            print("nnU-Net isn't installed, so nothing is compared: pip install nnunetv2==2.8.1")
        print("3/3  Measuring\n", flush=True)
        print(", ".join(f"{library} {version(library)}" for library in libraries))
        patch, crop = (" x ".join(map(str, recipe[key])) for key in ("patch_size", "crop_size"))
        print(f"patch {patch}, cut {crop}, batch {recipe['batch_size']}; {cases} cases, {rounds} rounds")
        print_table(compare(sides, rounds=rounds, samples=samples, batch_size=recipe["batch_size"]))


if __name__ == "__main__":
    fire.Fire(main)
