"""Does labelling first the cases on which the committee disagrees save labels?

    python benchmarks/active_learning.py [--kind prone] [--seeds 3] [--first_seed 20] [--picture FILE]

For each seed a pool of phantoms is made, of which a share (`rare`) is of another kind; nobody says which. `prone`:
patients who lie face down, turned by half a circle as if they lay on their back. `scanner`: a second scanner, with
other numbers for the same tissue and more noise. The training begins with four labelled ones of the usual kind. In each
round the committee is trained anew on all labelled cases, and the labels of `ask` more are asked for:
those on which the members disagree most (`disagreement.case_disagreement`), or as many at random. Prints the mean DSC
on unseen phantoms, half of them of the rare kind, by the number of labels, and how many labels each way needs for the
DSC that random choice has at the end; draws it. With --rare 0 all phantoms are alike.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import fire
import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.bundle import ConfigWorkflow
from numpy.typing import NDArray

from cyclic_committee.scripts.inference.disagreement import case_disagreement
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.metrics.dsc_nsd import dice
from cyclic_committee.scripts.phantoms.data_set import write_volume
from cyclic_committee.scripts.phantoms.phantom import LABELS, Phantom, make_phantom
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.runtime.config_files import find_config

OVERLAYS = ("variants/small.yaml", str(Path(__file__).with_suffix(".yaml")))
WAYS = {"disagreement": "by disagreement", "random": "at random"}  # as drawn
FIRST = 4  # labels to begin with
UNSEEN = 12


@dataclass(frozen=True)
class Scan:
    """A phantom on disk."""

    image: Path
    label: Path
    rare: bool


def prone(phantom: Phantom, _: np.random.Generator) -> Phantom:
    """Return a phantom turned about the body's axis by half a circle."""
    return replace(phantom, image_hu=phantom.image_hu[::-1, ::-1], label=phantom.label[::-1, ::-1])


def scanner(phantom: Phantom, rng: np.random.Generator) -> Phantom:
    """Return a phantom as a second scanner sees it: its values are still within what is clipped."""
    noisy = 0.8 * phantom.image_hu + 70 + 35 * rng.standard_normal(phantom.image_hu.shape)
    return replace(phantom, image_hu=np.clip(np.rint(noisy), -1024, 3071).astype(np.int16))


KINDS = {"prone": prone, "scanner": scanner}


def make_scans(folder: Path, *, cases: int, kind: str, rare: float, seed: int) -> list[Scan]:
    """Write phantoms, the share `rare` of them of another kind, at random places after the first few."""
    rng = np.random.default_rng(seed)
    of_kind = set(rng.permutation(np.arange(FIRST, cases))[: round(rare * cases)].tolist())
    scans = []
    for case in range(cases):
        phantom = make_phantom(int(np.random.SeedSequence((seed, case)).generate_state(1)[0]))
        if case in of_kind:
            phantom = KINDS[kind](phantom, rng)
        scan = Scan(folder / f"image_{case:03d}.nii.gz", folder / f"label_{case:03d}.nii.gz", case in of_kind)
        write_volume(scan.image, phantom.image_hu, phantom.affine)
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
    return sorted(scans, key=lambda s: case_disagreement(predictor.predict_members(s.image)[1:-1]), reverse=True)[:ask]


def draw(labels: Sequence[int], scores: NDArray[np.float64], path: Path, *, title: str) -> None:
    """Draw the mean and the range over the seeds; scores: `(ways, seeds, rounds)`."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for name, of_way, colour in zip(WAYS.values(), 100 * scores, ("#0072B2", "#767676"), strict=True):
        axes.plot(labels, of_way.mean(axis=0), color=colour, marker="o", label=name)
        axes.fill_between(labels, of_way.min(axis=0), of_way.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="labelled cases", ylabel="DSC on unseen cases, %", xticks=list(labels))
    axes.set_title(f"{title}: mean and range of {scores.shape[1]} seeds", loc="left", fontsize=10)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    FigureCanvasAgg(figure).print_png(path)


def ask_in_rounds(
    folder: Path, *, seed: int, rounds: int, ask: int, pool: int, kind: str, rare: float, configs: Sequence[str]
) -> NDArray[np.float64]:
    """Return, `(3, ways, rounds + 1)`: DSC of all unseen scans, of the rare kind's, labelled ones of it."""
    scans = make_scans(folder / "pool", cases=pool, kind=kind, rare=rare, seed=seed)
    unseen = make_scans(folder / "unseen", cases=UNSEEN, kind=kind, rare=0.5 if rare else 0, seed=1000 + seed)
    first = train(folder, scans[:FIRST], seed=seed, configs=configs)  # both ways begin with it
    labelled = dict.fromkeys(WAYS, scans[:FIRST])
    rng = np.random.default_rng([seed, 1])  # others than those that chose the rare kind's places
    found = np.zeros((3, len(WAYS), rounds + 1))
    for round_, (number, way) in itertools.product(range(rounds + 1), enumerate(WAYS)):
        predictor = train(folder, labelled[way], seed=seed, configs=configs) if round_ else first
        scores = [mean_dsc(predictor, scan) for scan in unseen]
        rarest = [score for score, scan in zip(scores, unseen, strict=True) if scan.rare] or scores
        found[:, number, round_] = fmean(scores), fmean(rarest), sum(scan.rare for scan in labelled[way])
        said = ", ".join(f"{value:.3f}" for value in found[:, number, round_])
        print(f"seed {seed}, {way}, {len(labelled[way])} labels: {said}", file=sys.stderr, flush=True)
        if round_ < rounds:
            left = [scan for scan in scans if scan not in labelled[way]]
            labelled[way] = labelled[way] + asked_for(predictor, left, way=way, ask=ask, rng=rng)
    return found


def report(labels: Sequence[int], found: NDArray[np.float64]) -> None:
    """Print the means over the seeds, and each seed's labels for a goal; found: `(seeds, 3, ways, rounds)`."""
    print(f"| labels | {' | '.join(f'{way}: DSC, % (rare kind), of it labelled' for way in WAYS)} |")
    for round_, number in enumerate(labels):
        means = found[..., round_].mean(axis=0)  # (3, ways)
        cells = [f"{100 * of_all:.1f} ({100 * of_rare:.1f}), {of_it:.1f}" for of_all, of_rare, of_it in means.T]
        print(f"| {number} | {' | '.join(cells)} |")
    for place, of_seed in enumerate(found[:, 0]):  # (ways, rounds)
        goal = of_seed[list(WAYS).index("random"), -1]
        needed = [next((n for n, dsc in zip(labels, of_way, strict=True) if dsc >= goal), None) for of_way in of_seed]
        words = ", ".join(f"{way} {n or f'more than {labels[-1]}'}" for way, n in zip(WAYS, needed, strict=True))
        print(f"seed number {place}: labels for a DSC of {100 * goal:.1f} %: {words}")


def main(
    *,
    seeds: int = 3,
    first_seed: int = 20,
    rounds: int = 3,
    ask: int = 2,
    pool: int = 36,
    kind: str = "prone",
    rare: float = 1 / 6,
    picture: str | None = None,
    config: str | None = None,
) -> None:
    sys.path.insert(1, bundle_root())
    configs = [str(find_config(config).resolve())] if config else []
    logging.getLogger("monai").setLevel(logging.ERROR)  # it warns of configurations from several folders
    settings = {"rounds": rounds, "ask": ask, "pool": pool, "kind": kind, "rare": rare, "configs": configs}
    found = []
    for seed in range(first_seed, first_seed + seeds):
        with tempfile.TemporaryDirectory() as name:
            found.append(ask_in_rounds(Path(name), seed=seed, **settings))
    labels = [FIRST + ask * round_ for round_ in range(rounds + 1)]
    report(labels, np.stack(found))
    if picture:
        draw(labels, np.stack([of_seed[0] for of_seed in found], axis=1), Path(picture), title=kind)


if __name__ == "__main__":
    fire.Fire(main)
