"""Does inference in bfloat16 cost quality?

    python benchmarks/precision.py [--ct CT] [--config OVERLAY] [--out FOLDER]

Trains a committee with the small variant on phantoms, as `cyclic-committee demo` does, and labels eight unseen ones in
float32 and in bfloat16. CT is a folder with image.nii.gz and label.nii.gz (FLARE21's ids): with it, the same for the
real CT, by a committee that `benchmarks/real_ct.py` trains on it. Prints the mean DSC of both, and by how much that of
a case, and that of an organ of a case, differ at most. A quarter of an hour on two cores, nearly all of it training.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import fire
from real_ct import main as learn_real_ct

from cyclic_committee.scripts.experiments.demo import make_room, run_demo
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.metrics.score_table import evaluate_folders
from cyclic_committee.scripts.phantoms.phantom import LABELS
from cyclic_committee.scripts.runtime.config_files import find_config

PRECISIONS = ("float32", "bfloat16")


def compare(what: str, trained: Path, images: Path, references: Path, overlays: list[str]) -> str:
    """Return a line with the scores of both precisions.

    Args:
        what: is labelled.
        trained: the folder with the trained bundle; label maps go there, too.
        images: their folder.
        references: the folder of label maps.
        overlays: the network was trained with.
    """
    scores: dict[str, dict[tuple[str, str], float]] = {}
    for precision in PRECISIONS:
        predictor = Predictor.from_config(bundle=trained / "bundle", overlays=overlays, precision=precision)
        labels = trained / precision
        for image in sorted(images.iterdir()):
            predictor.predict_file(image, labels)
        rows = evaluate_folders(labels, references, labels=LABELS)
        scores[precision] = {(row["case"], row["organ"]): row["dsc"] for row in rows}
    full, half = (scores[precision] for precision in PRECISIONS)
    apart = {key: half[key] - full[key] for key in full}
    cases = {case for case, _ in apart}
    of_cases = [fmean(d for (case, _), d in apart.items() if case == one) for one in cases]
    means = "".join(f"{fmean(of_one.values()):10.4f}" for of_one in (full, half))
    largest = "".join(f"{max(map(abs, of_all)):14.4f}" for of_all in (of_cases, list(apart.values())))
    return f"{f'{what} ({len(cases)})':22}{means}{largest}"


def main(*, ct: str | None = None, config: str | None = None, out: str = "precision") -> None:
    folder = Path(out).resolve()
    make_room(folder)
    given = [config] if config else []
    overlays = [str(find_config(name).resolve()) for name in ("variants/small.yaml", *given)]
    phantoms, real = folder / "phantoms", folder / "real_ct"
    run_demo(phantoms, overlays=given)
    unseen = phantoms / "unseen"
    lines = [compare("unseen phantoms", phantoms, unseen / "TrainingImg", unseen / "TrainingMask", overlays)]
    if ct:
        learn_real_ct(ct, config=config, out=str(real))
        schedule = str(real / "schedule.yaml")
        data = real / "data"
        lines.append(compare("real CT", real, data / "images", data / "labels", [overlays[0], schedule, *overlays[1:]]))
    print(f"\n{'mean DSC (cases)':22}{'float32':>10}{'bfloat16':>10}{'largest: case':>14}{'organ':>14}")
    print("\n".join(lines))


if __name__ == "__main__":
    fire.Fire(main)
