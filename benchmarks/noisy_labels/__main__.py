"""What do wrong labels cost, and who wins it back?

    python benchmarks/noisy_labels [--minutes 60] [--folder FOLDER] [--settings biased_50_1600,...] [--arms ARM,...]
    python benchmarks/noisy_labels --table

Phantoms are made, half or a quarter of which have wrong labels, and small committees are trained on them by the
product's own configurations, an arm each; 24 other phantoms with right labels are labelled by the ensemble and by its
first member. Each training's scores are a line of `results.jsonl` beside this file, or of --results: what is there
isn't trained again. --minutes: no training is begun after that time. --table prints what is there: each arm's
difference to the plain ensemble (`every_sample`) in mean DSC, with 95 % intervals of a bootstrap over seeds and cases,
p by Holm's method over the arms, and the share that it wins back of what right labels would have given.

Headroom comes first: of a setting only `every_sample` with wrong and with right labels is trained, on the seeds 0 and
1, and the other arms, with seeds of their own, if right labels give 5 points of DSC or more. What was chosen in the
product was chosen on the seeds 0 and 1. A setting is a kind of noise, biased (eroded organs, a missing organ) or mixed
(all six ways), the percentage of the cases with wrong labels, and the iterations. About seven minutes a training of
1600 iterations on one core.
"""

from __future__ import annotations

import csv
import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # such small networks are no faster with more; before torch is imported

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import fire
import nibabel as nib
import numpy as np

from cyclic_committee.scripts.phantoms.phantom import LABELS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
SETTING = str(HERE / "setting.yaml")
CASES = (32, 24)  # trained on, and tested with
ITERATIONS_PER_EPOCH = 40  # as setting.yaml has it
LEAST_HEADROOM = 5.0  # points of DSC
CHOOSING, REPORTING = (0, 1), (10, 11, 12, 13, 14)
NOISE = {"mixed": None, "biased": ["erosion", "missing_organ"]}  # None: all six ways
RIGHT, PLAIN = "true_labels", "every_sample"
# arm -> overlays, and how many times as long it is trained
ARMS: dict[str, tuple[list[str], int]] = {
    PLAIN: (["variants/every_sample.yaml"], 1),
    RIGHT: (["variants/every_sample.yaml"], 1),
    "audited": (["variants/audited.yaml"], 1),
    "audited_true_labels": (["variants/audited.yaml"], 1),
    "wrong_left_out": (["variants/every_sample.yaml"], 1),
    "paper": ([], 1),
    "small_loss": (["variants/small_loss.yaml"], 1),
    "random_subset": (["variants/random_subset.yaml"], 1),
    "one_network": ([str(HERE / "one_network.yaml")], 3),
}


@dataclass(frozen=True)
class Setting:
    """What is trained on, and for how long."""

    noise: str
    share: float
    iterations: int

    @property
    def name(self) -> str:
        """Its name in the results, such as biased_50_1600."""
        return f"{self.noise}_{round(100 * self.share)}_{self.iterations}"

    @classmethod
    def of(cls, name: str) -> Setting:
        """Return the setting of this name."""
        noise, percent, iterations = name.split("_")
        return cls(noise, int(percent) / 100, int(iterations))


SETTINGS = ("biased_50_1600", "biased_50_4800", "mixed_50_1600", "mixed_50_4800", "biased_25_1600", "mixed_25_1600")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return what was measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def next_jobs(
    settings: Sequence[str], seeds: Sequence[int], arms: Sequence[str], results: Path
) -> Iterator[tuple[Setting, int, str]]:
    """Yield what is to be trained, looking at the results after each: headroom first, then all arms."""
    for name in settings:
        setting = Setting.of(name)
        for seed in CHOOSING:
            for arm in (PLAIN, RIGHT):
                yield setting, seed, arm
        if (found := headroom(read_results(results), name)) < LEAST_HEADROOM:
            print(f"{name}: {found:.1f} points of headroom, which is too little to show anything.")
            continue
        for seed in seeds:
            for arm in arms:
                yield setting, seed, arm


def headroom(results: Sequence[dict[str, Any]], setting: str, seeds: Sequence[int] = CHOOSING) -> float:
    """Return how much higher right labels are than wrong ones in mean DSC, in points."""
    found = {arm: [mean_dsc(one) for one in results if key(one)[::2] == (setting, arm)] for arm in (PLAIN, RIGHT)}
    return fmean(found[RIGHT]) - fmean(found[PLAIN]) if all(found.values()) else 0.0


def key(result: dict[str, Any]) -> tuple[str, int, str]:
    """Return what tells a result from others."""
    return result["setting"], result["seed"], result["arm"]


def mean_dsc(result: dict[str, Any], who: str = "ensemble") -> float:
    """Return the mean DSC over cases and organs, in points."""
    return fmean(100 * score[0] for organs in result[who].values() for score in organs.values())


def make_data(root: Path, setting: Setting, seed: int, cases: Sequence[int]) -> Path:
    """Return the folder of a setting's phantoms, made if it isn't there; those to test with are `test_<seed>`."""
    from cyclic_committee.scripts.phantoms.data_set import CORRUPTION, write_phantoms
    from cyclic_committee.scripts.phantoms.label_noise import CORRUPTIONS

    folder = root / f"data_{setting.noise}_{round(100 * setting.share)}_{seed}"
    if not (folder / CORRUPTION).is_file():
        ways = NOISE[setting.noise] or list(CORRUPTIONS)
        write_phantoms(folder, cases=cases[0], seed=seed, corrupt=setting.share, corruptions=ways)
    images = [f"train_{case:03d}" for case in range(cases[0])]
    listed = [{"image": f"TrainingImg/{name}_0000.nii.gz", "label": f"clean_labels/{name}.nii.gz"} for name in images]
    labels = {str(number): name for number, name in LABELS.items()}
    (folder / "right.json").write_text(json.dumps({"labels": labels, "training": listed}))
    tests = root / f"test_{seed}"
    if not (tests / "done").is_file():
        write_phantoms(tests, cases=cases[1], seed=seed + 1000)
        (tests / "done").touch()
    return folder


def wrong_cases(data: Path) -> dict[str, str]:
    """Return the cases with wrong labels, and in which way they are."""
    with (data / "corruption.csv").open(newline="") as file:
        return {row["case"]: row["way"] for row in csv.DictReader(file) if row["way"]}


def train(root: Path, setting: Setting, seed: int, arm: str, cases: Sequence[int]) -> dict[str, Any]:
    """Train an arm, or go on with it, and return its line of the results."""
    from cyclic_committee.scripts.experiments.bundle_run import run_bundle
    from cyclic_committee.scripts.runtime.bundle_paths import bundle_root

    data = make_data(root, setting, seed, cases)
    overlays, times = ARMS[arm]
    run = root / "runs" / setting.name / f"{arm}_{seed}"
    values: dict[str, Any] = {"dataset_dir": data, "output_dir": run, "model_path": run / "model.pt", "seed": seed}
    values |= {"fold": "none", "cache_dir": data / "prepared"}
    values |= {"max_epochs": times * setting.iterations // ITERATIONS_PER_EPOCH}
    if arm.endswith("true_labels"):
        values |= {"dataset_dir": data / "right.json"}
    if arm == "wrong_left_out":
        values |= {"exclude": json.dumps(sorted(wrong_cases(data)))}
    if (run / "checkpoint.pt").is_file():
        values |= {"resume": "true"}
    began_s = time.monotonic()
    if not (run / "model.pt").is_file():
        run_bundle(Path(bundle_root()), "training", ["train.yaml", SETTING, *overlays], **values)
    result: dict[str, Any] = {"setting": setting.name, "seed": seed, "arm": arm}
    result |= {"seconds": round(time.monotonic() - began_s), "wrong": wrong_cases(data)}
    own_overlays = [one for one in overlays if one.startswith("/")]
    for who, members in (("ensemble", None), ("member", [0])):
        result[who] = scores(root / f"test_{seed}", run / "model.pt", [SETTING, *own_overlays], members=members)
    if (run / "left_out.csv").is_file():
        with (run / "left_out.csv").open(newline="") as file:
            result["judged"] = {row["case"]: [row["left_out"], margin(row)] for row in csv.DictReader(file)}
    return result


def margin(row: dict[str, str]) -> float:
    """Return how far a case's DSC lies below the usual one, 1 being where it is left out."""
    usual, dsc, least = float(row["usual_dsc"]), float(row["dsc"]), float(row["least_dsc"])
    return round((usual - dsc) / (usual - least), 4)


def scores(tests: Path, weights: Path, overlays: Sequence[str], *, members: list[int] | None) -> dict[str, Any]:
    """Return case -> organ -> DSC and NSD of the test cases."""
    from cyclic_committee.scripts.inference.predictor import Predictor
    from cyclic_committee.scripts.metrics.dsc_nsd import organ_scores

    predictor = Predictor.from_config(overlays=overlays, ckpt_path=weights, ensemble_members=members)
    found = {}
    for image in sorted((tests / "TrainingImg").glob("*.nii.gz")):
        name = image.name.removesuffix("_0000.nii.gz")
        reference: Any = nib.load(tests / "TrainingMask" / f"{name}.nii.gz")
        label_map = predictor.predict(image).numpy()[0]
        x, y, z = nib.affines.voxel_sizes(reference.affine).tolist()
        rows = organ_scores(
            label_map, np.asarray(reference.dataobj), labels=LABELS, spacing_mm=(x, y, z), tolerance_mm=1.0
        )
        found[name] = {row.organ: [round(row.dsc, 4), round(row.nsd, 4)] for row in rows}
    return found


def differences(results: Sequence[dict[str, Any]], setting: str, arm: str, who: str, score: int) -> dict[int, Any]:
    """Return, a seed each, how much higher an arm's cases score than the plain ensemble's, `(cases,)` in points."""
    by_seed: dict[int, dict[str, Any]] = {}
    for one in results:
        if one["setting"] == setting and one["seed"] in REPORTING:
            by_seed.setdefault(one["seed"], {})[one["arm"]] = one
    found = {}
    for seed, arms in by_seed.items():
        if arm in arms and PLAIN in arms:
            both = [
                [fmean(100 * scored[score] for scored in organs.values()) for organs in one[who].values()]
                for one in (arms[arm], arms[PLAIN])
            ]
            found[seed] = np.subtract(*both)
    return found


def bootstrap(parts: Sequence[np.ndarray], *, seed: int = 0, draws: int = 9999) -> np.ndarray:
    """Return means of draws over seeds and, within each drawn seed, over cases: `(draws,)`."""
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        chosen = rng.integers(len(parts), size=len(parts))
        means[draw] = np.mean([np.mean(rng.choice(parts[k], len(parts[k]))) for k in chosen])
    return means


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Return p values adjusted for being several, by Holm's method."""
    adjusted, least = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = least
    return adjusted


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """Print what was measured, a table a setting."""
    for setting in dict.fromkeys(one["setting"] for one in results):
        print(f"\n{setting}: {headroom(results, setting):.1f} points of headroom on the seeds {CHOOSING}")
        parts = {arm: list(differences(results, setting, arm, "ensemble", 0).values()) for arm in ARMS}
        parts = {arm: some for arm, some in parts.items() if some and arm != PLAIN}
        drawn = {arm: bootstrap(some) for arm, some in parts.items()}
        adjusted = holm({arm: 2 * min(np.mean(means <= 0), np.mean(means >= 0)) for arm, means in drawn.items()})
        if not parts:
            continue
        print("| arm | seeds | DSC, ensemble | DSC, member | NSD, ensemble | p | won back |")
        print("|---|---|---|---|---|---|---|")
        for arm, means in drawn.items():
            low, high = np.percentile(means, [2.5, 97.5])
            others = [
                float(np.mean([np.mean(part) for part in differences(results, setting, arm, who, score).values()]))
                for who, score in (("member", 0), ("ensemble", 1))
            ]
            gained = np.mean([np.mean(part) for part in parts[arm]])
            back = gained / np.mean([np.mean(part) for part in parts[RIGHT]]) if RIGHT in parts else np.nan
            print(
                f"| {arm} | {len(parts[arm])} | {gained:+.2f} [{low:+.2f}, {high:+.2f}] | {others[0]:+.2f} | "
                f"{others[1]:+.2f} | {adjusted[arm]:.3f} | {back:.0%} |"
            )
        print_detection([one for one in results if one["setting"] == setting and "judged" in one])


def print_detection(results: Sequence[dict[str, Any]]) -> None:
    """Print what the audits inside trainings named."""
    from sklearn.metrics import roc_auc_score

    for arm in ("audited", "audited_true_labels"):
        some = [one for one in results if one["arm"] == arm]
        if not some:
            continue
        wrong_of = [one["wrong"] if arm == "audited" else {} for one in some]
        pairs = [
            (one, case, case in wrong) for one, wrong in zip(some, wrong_of, strict=True) for case in one["judged"]
        ]
        wrong, right = ([(one, case) for one, case, is_wrong in pairs if is_wrong == kind] for kind in (True, False))
        named = [sum(one["judged"][case][0] == "yes" for one, case in group) for group in (wrong, right)]
        line = f"{arm}: {named[0]} of {len(wrong)} wrong cases left out, {named[1]} of {len(right)} right ones"
        if wrong:
            margins = [one["judged"][case][1] for one, case in [*wrong, *right]]
            line += f", AUC {roc_auc_score([True] * len(wrong) + [False] * len(right), margins):.3f}"
            ways = sorted({one["wrong"][case] for one, case in wrong})
            of_way = {way: [one["judged"][c][0] == "yes" for one, c in wrong if one["wrong"][c] == way] for way in ways}
            line += "; " + ", ".join(f"{way} {sum(yes)} of {len(yes)}" for way, yes in of_way.items())
        print(line)


def main(
    *,
    minutes: float = 60.0,
    folder: str | None = None,
    settings: str | Sequence[str] = SETTINGS,
    seeds: int | Sequence[int] = REPORTING,
    arms: str | Sequence[str] = tuple(ARMS),
    cases: Sequence[int] = CASES,
    results: str = str(RESULTS),
    table: bool = False,
) -> None:
    lines = Path(results)
    if not table:
        until_s = time.monotonic() + 60 * minutes
        chosen, of_arms = ([one] if isinstance(one, str) else list(one) for one in (settings, arms))
        of_seeds = [seeds] if isinstance(seeds, int) else list(seeds)
        with tempfile.TemporaryDirectory() as name:
            root = Path(folder or name).resolve()
            for setting, seed, arm in next_jobs(chosen, of_seeds, of_arms, lines):
                if (setting.name, seed, arm) in map(key, read_results(lines)):
                    continue
                if time.monotonic() > until_s:
                    print("The time is up. Start again to go on.")
                    break
                result = train(root, setting, seed, arm, cases)
                with lines.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                took = f"{result['seconds']} s"
                print(f"{setting.name} seed {seed} {arm}: DSC {mean_dsc(result):.2f}, {took}", flush=True)
    print_table(read_results(lines))


if __name__ == "__main__":
    fire.Fire(main)
