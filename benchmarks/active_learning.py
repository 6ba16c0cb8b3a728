"""Does labelling first the cases on which the committee disagrees save labels?

    python benchmarks/active_learning.py [--seeds 3] [--first_seed 0] [--rounds 4] [--ask 2] [--picture FILE]

For each seed a pool of phantoms is made, of which a share (`rare`) comes from a second scanner, with other numbers for
the same tissue and more noise; nobody says which. Four labelled ones of the first scanner are what the training begins
with. In each round the committee is trained anew on all labelled cases, and the labels of `ask` more are asked for:
those on which the voters disagree most (`opinions.case_disagreement`), or as many at random. Prints the mean DSC on
unseen phantoms, half of them of the second scanner, by the number of labels, and how many labels each way needs for the
DSC that random choice has at the end; draws it. With --rare 0 all phantoms are alike.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import fire
import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.bundle import ConfigWorkflow
from numpy.typing import NDArray
from tqdm import tqdm

from cyclic_committee.scripts.location import bundle_root, find_config
from cyclic_committee.scripts.metrics import dice
from cyclic_committee.scripts.opinions import case_disagreement
from cyclic_committee.scripts.phantom import LABELS, make_phantom
from cyclic_committee.scripts.phantom_data_set import write_volume
from cyclic_committee.scripts.predictor import Predictor

OVERLAYS = ("variants/small.yaml", str(Path(__file__).with_suffix(".yaml")))
WAYS = ("disagreement", "random")
FIRST = 4  # labels to begin with
UNSEEN = 12


@dataclass(frozen=True)
class Scan:
    """A phantom on disk."""

    image: Path
    label: Path
    rare: bool


def make_scans(folder: Path, *, cases: int, rare: float, seed: int) -> list[Scan]:
    """Write phantoms, the share `rare` of them as of a second scanner, at random places after the first few."""
    rng = np.random.default_rng(seed)
    of_second = set(rng.permutation(np.arange(FIRST, cases))[: round(rare * cases)].tolist())
    scans = []
    for case in range(cases):
        phantom = make_phantom(int(np.random.SeedSequence((seed, case)).generate_state(1)[0]))
        image = phantom.image_hu
        if case in of_second:
            noisy = 0.8 * image + 70 + 35 * rng.standard_normal(image.shape)  # still within what is clipped
            image = np.clip(np.rint(noisy), -1024, 3071).astype(np.int16)
        scan = Scan(folder / f"image_{case:03d}.nii.gz", folder / f"label_{case:03d}.nii.gz", case in of_second)
        write_volume(scan.image, image, phantom.affine)
        write_volume(scan.label, phantom.label, phantom.affine)
        scans.append(scan)
    return scans


def train(folder: Path, scans: Sequence[Scan], *, seed: int, configs: Sequence[str]) -> Predictor:
    """Train a committee on labelled scans from the beginning."""
    listed = folder / "labelled.json"
    listed.write_text(json.dumps({"training": [{"image": str(s.image), "label": str(s.label)} for s in scans]}))
    files = [str(find_config(file)) for file in ("train.yaml", *OVERLAYS, *configs)]
    values = {"dataset_dir": str(listed), "layout": "datalist", "output_dir": str(folder / "output"), "seed": seed}
    values |= {"cache_dir": str(folder / "prepared"), "model_path": str(folder / "model.pt")}
    workflow = ConfigWorkflow(files, workflow_type="train", **values)
    with contextlib.redirect_stdout(io.StringIO()):
        workflow.initialize()
        workflow.run()
    return Predictor.from_config(ckpt_path=folder / "model.pt", overlays=[*OVERLAYS, *configs])


def mean_dsc(predictor: Predictor, scan: Scan) -> float:
    found = predictor.predict(scan.image)[0].numpy()
    truth: NDArray[np.uint8] = np.asarray(nib.load(scan.label).dataobj)
    return fmean(dice(found == organ, truth == organ) for organ in LABELS)


def asked_for(
    predictor: Predictor, scans: Sequence[Scan], *, way: str, ask: int, rng: np.random.Generator
) -> list[Scan]:
    """Return the scans whose labels are asked for next."""
    if way == "random":
        return [scans[place] for place in rng.permutation(len(scans))[:ask]]
    return sorted(scans, key=lambda s: case_disagreement(predictor.predict_opinions(s.image)[1:-1]), reverse=True)[:ask]


def draw(labels: Sequence[int], scores: NDArray[np.float64], path: Path) -> None:
    """Draw the mean and the range over the seeds; scores: `(ways, seeds, rounds)`."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for way, of_way, colour in zip(WAYS, 100 * scores, ("#0072B2", "#767676"), strict=True):
        axes.plot(labels, of_way.mean(axis=0), color=colour, marker="o", label=f"asked by {way}")
        axes.fill_between(labels, of_way.min(axis=0), of_way.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="labelled cases", ylabel="DSC on unseen cases, %", xticks=list(labels))
    axes.set_title(f"mean and range of {scores.shape[1]} seeds", loc="left", fontsize=10)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    FigureCanvasAgg(figure).print_png(path)


def main(
    *,
    seeds: int = 3,
    first_seed: int = 0,
    rounds: int = 4,
    ask: int = 2,
    pool: int = 36,
    rare: float = 1 / 6,
    picture: str | None = None,
    config: str | None = None,
) -> None:
    sys.path.insert(1, bundle_root())
    configs = [str(find_config(config).resolve())] if config else []
    logging.getLogger("monai").setLevel(logging.ERROR)  # it warns of configurations from several folders
    found = np.zeros((2, len(WAYS), seeds, rounds + 1))  # all unseen scans, and those of the second scanner
    second = np.zeros((len(WAYS), seeds, rounds + 1))  # labelled scans of the second scanner
    labels = [FIRST + ask * round_ for round_ in range(rounds + 1)]
    bar = tqdm(total=seeds * len(WAYS) * (rounds + 1), desc="rounds", disable=None)
    for place, seed in enumerate(range(first_seed, first_seed + seeds)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            scans = make_scans(folder / "pool", cases=pool, rare=rare, seed=seed)
            unseen = make_scans(folder / "unseen", cases=UNSEEN, rare=0.5 if rare else 0, seed=1000 + seed)
            first = train(folder, scans[:FIRST], seed=seed, configs=configs)  # both ways begin with it
            for number, way in enumerate(WAYS):
                rng = np.random.default_rng(seed)
                labelled = scans[:FIRST]
                for round_ in range(rounds + 1):
                    predictor = train(folder, labelled, seed=seed, configs=configs) if round_ else first
                    scores = [mean_dsc(predictor, scan) for scan in unseen]
                    rarest = [score for score, scan in zip(scores, unseen, strict=True) if scan.rare]
                    found[:, number, place, round_] = fmean(scores), fmean(rarest or scores)
                    second[number, place, round_] = sum(scan.rare for scan in labelled)
                    said = f"seed {seed}, {way}, {len(labelled)} labels: DSC {100 * fmean(scores):.1f} %"
                    tqdm.write(said, file=sys.stderr)
                    left = [scan for scan in scans if scan not in labelled]
                    if round_ < rounds:
                        labelled = labelled + asked_for(predictor, left, way=way, ask=ask, rng=rng)
                    bar.update()
    print(f"| labels | {' | '.join(f'{way}: DSC, % (second scanner), of it labelled' for way in WAYS)} |")
    for round_, number_ in enumerate(labels):
        cells = [
            f"{100 * found[0, w, :, round_].mean():.1f} ({100 * found[1, w, :, round_].mean():.1f}), "
            f"{second[w, :, round_].mean():.1f}"
            for w in range(len(WAYS))
        ]
        print(f"| {number_} | {' | '.join(cells)} |")
    for seed in range(seeds):
        goal = found[0, WAYS.index("random"), seed, -1]
        needed = [labels[int(np.argmax(of_way[seed] >= goal))] if (of_way[seed] >= goal).any() else None
                  for of_way in found[0]]  # fmt: skip
        words = ", ".join(f"{way} {n or f'more than {labels[-1]}'}" for way, n in zip(WAYS, needed, strict=True))
        print(f"seed {seed}: labels for a DSC of {100 * goal:.1f} %: {words}")
    if picture:
        draw(labels, found[0], Path(picture))


if __name__ == "__main__":
    fire.Fire(main)
