"""How fast are DSC and NSD, beside DeepMind's surface-distance and MONAI?

    pip install '.[benchmarks]'    # without it, ours and MONAI
    python benchmarks/evaluation.py [--ct CT] [--rounds N] [--tolerance_mm MM]

CT is a folder with label.nii.gz (FLARE21's ids); without it, a phantom. Its label map is enlarged to 512 x 512 x 119
voxels of 0.8 x 0.8 x 2.5 mm, by the nearest neighbour. The prediction is the same map a voxel further along x, its
liver eroded by a voxel, with a block of kidney added far from any. Then all score the four organs in turn, in one
process, from the two maps in memory: a mask per organ is part of everyone's work. Ours and DeepMind's run on one
thread; MONAI's has PyTorch's as it comes. The arrays are C-ordered, which suits the others better than the order of
NIfTI files. Takes half a minute a round at most, nearly all of it the others'.
"""

from __future__ import annotations

import importlib
import os
import time
import warnings
from collections.abc import Callable
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
from monai.metrics import compute_dice, compute_surface_dice
from scipy import ndimage

from cyclic_committee.scripts.metrics.dsc_nsd import organ_scores
from cyclic_committee.scripts.phantoms.phantom import LABELS, make_phantom

OURS, DEEPMIND, MONAI = "cyclic committee", "DeepMind", "MONAI"
SHAPE, SPACING_MM = (512, 512, 119), (0.8, 0.8, 2.5)
LIVER, KIDNEY = 1, 2
BLOCK = (slice(30, 60), slice(40, 70), slice(20, 40))


@dataclass
class Seconds:
    """A figure a round: by the clock, and of all cores' time, whatever else they had to do."""

    wall: list[float] = field(default_factory=list)
    core: list[float] = field(default_factory=list)


Scores = list[tuple[float, float]]  # DSC and NSD of each organ
Score = Callable[[np.ndarray, np.ndarray], Scores]


def label_map(ct: str | None) -> np.ndarray:
    """Return a label map of SHAPE, uint8."""
    if ct:
        volume: Any = nib.as_closest_canonical(nib.load(Path(ct, "label.nii.gz")))
        ids = np.asarray(volume.dataobj)
    else:
        ids = make_phantom(0).label
    ids = np.where(np.isin(ids, list(LABELS)), ids, 0).astype(np.uint8)
    nearest = [((np.arange(size) + 0.5) * old / size).astype(int) for size, old in zip(SHAPE, ids.shape, strict=True)]
    return np.ascontiguousarray(ids[np.ix_(*nearest)])


def perturbed(reference: np.ndarray) -> np.ndarray:
    prediction = np.roll(reference, 1, axis=0)
    liver = prediction == LIVER
    prediction[liver & ~ndimage.binary_erosion(liver)] = 0
    prediction[BLOCK] = KIDNEY
    return prediction


def our_scores(prediction: np.ndarray, reference: np.ndarray, *, tolerance_mm: float) -> Scores:
    scores = organ_scores(prediction, reference, labels=LABELS, spacing_mm=SPACING_MM, tolerance_mm=tolerance_mm)
    return [(score.dsc, score.nsd) for score in scores]


def deepmind_scores(prediction: np.ndarray, reference: np.ndarray, *, tolerance_mm: float) -> Scores:
    package = importlib.import_module("surface_distance")
    scores = []
    for label in LABELS:
        masks = reference == label, prediction == label
        distances = package.compute_surface_distances(*masks, SPACING_MM)
        nsd = package.compute_surface_dice_at_tolerance(distances, tolerance_mm)
        scores.append((float(package.compute_dice_coefficient(*masks)), float(nsd)))
    return scores


def monai_scores(prediction: np.ndarray, reference: np.ndarray, *, tolerance_mm: float) -> Scores:
    masks = [
        torch.stack([torch.from_numpy(ids == label) for label in LABELS])[None] for ids in (prediction, reference)
    ]  # (1, organs, x, y, z) each
    dsc = compute_dice(*masks, include_background=True)
    nsd = compute_surface_dice(
        *masks, [tolerance_mm] * len(LABELS), include_background=True, spacing=SPACING_MM, use_subvoxels=True
    )
    return list(zip(dsc[0].tolist(), nsd[0].tolist(), strict=True))


def compare(
    sides: dict[str, Score], prediction: np.ndarray, reference: np.ndarray, *, rounds: int
) -> tuple[dict[str, Seconds], dict[str, Scores]]:
    """Return each side's seconds and its scores."""
    seconds = {name: Seconds() for name in sides}
    scores: dict[str, Scores] = {}
    for score in sides.values():  # libraries import and build tables when they are first asked
        score(prediction[::8, ::8, ::4], reference[::8, ::8, ::4])
    for turn in range(rounds):
        for name, score in list(sides.items())[:: 1 if turn % 2 == 0 else -1]:
            began_s, began_core_s = time.perf_counter(), time.process_time()
            scores[name] = score(prediction, reference)
            seconds[name].wall.append(time.perf_counter() - began_s)
            seconds[name].core.append(time.process_time() - began_core_s)
    return seconds, scores


def print_tables(seconds: dict[str, Seconds], scores: dict[str, Scores]) -> None:
    columns = [*seconds, *(f"ours / {name}" for name in seconds if name != OURS)]
    print(f"\n{'median of the rounds (min-max)':32}" + "".join(f"{column:>24}" for column in columns))
    for title, clock in (("seconds", "wall"), ("seconds of all cores", "core")):
        figures = {name: getattr(of_side, clock) for name, of_side in seconds.items()}
        cells = [f"{np.median(one):.3f} ({min(one):.3f}-{max(one):.3f})" for one in figures.values()]
        cells += [f"{np.median(figures[OURS]) / np.median(one):.4f}" for name, one in figures.items() if name != OURS]
        print(f"{title:32}" + "".join(f"{cell:>24}" for cell in cells))
    print(f"\n{'DSC and NSD':32}" + "".join(f"{name:>24}" for name in scores))
    for index, organ in enumerate(LABELS.values()):
        cells = [f"{dsc:.6f} {nsd:.6f}" for dsc, nsd in (of_side[index] for of_side in scores.values())]
        print(f"{organ:32}" + "".join(f"{cell:>24}" for cell in cells))
    differences = (np.abs(np.subtract(of_side, scores[OURS])).max() for of_side in scores.values())
    print(f"{'largest difference to ours':32}" + "".join(f"{difference:24.1e}" for difference in differences))


def main(*, ct: str | None = None, rounds: int = 5, tolerance_mm: float = 1.0) -> None:
    warnings.simplefilter("ignore")  # surface-distance uses old names of scipy
    sides: dict[str, Score] = {OURS: partial(our_scores, tolerance_mm=tolerance_mm)}
    libraries = ["numpy", "scipy", "torch", "monai"]
    if find_spec("surface_distance"):
        sides[DEEPMIND] = partial(deepmind_scores, tolerance_mm=tolerance_mm)
        libraries.append("surface-distance")
    else:
        print("DeepMind's package isn't installed, so it isn't compared: pip install surface-distance==0.1")
    sides[MONAI] = partial(monai_scores, tolerance_mm=tolerance_mm)
    reference = label_map(ct)
    prediction = perturbed(reference)
    print(", ".join(f"{library} {version(library)}" for library in libraries))
    shape, spacing = (" x ".join(map(str, sizes)) for sizes in (SHAPE, SPACING_MM))
    print(f"{shape} voxels of {spacing} mm, tolerance {tolerance_mm} mm; {rounds} rounds, {os.cpu_count()} cores")
    print_tables(*compare(sides, prediction, reference, rounds=rounds))


if __name__ == "__main__":
    fire.Fire(main)
