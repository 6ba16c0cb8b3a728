"""What does scoring a study cost beside labelling it, and does it order studies as all of their slices do?

    python benchmarks/study_scoring.py --bundle BUNDLE [--config OVERLAY] [--ct CT] [--cases N]

BUNDLE has weights, OVERLAY is the one that they were trained with, such as variants/small.yaml. CT is a folder with
image.nii.gz. Without it, phantoms.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import fire
from scipy.stats import spearmanr

from cyclic_committee.monai_label.scores import SLICES, volume_disagreement
from cyclic_committee.scripts.inference.disagreement import case_disagreement
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.phantoms.data_set import write_phantoms


def main(bundle: str, config: str | None = None, ct: str | None = None, cases: int = 16) -> None:
    predictor = Predictor.from_config(bundle=bundle, overlays=[config] if config else [], device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(folder, cases=cases, seed=5)
        images = [str(image) for image in sorted(Path(folder, "TrainingImg").iterdir())]
        few = [volume_disagreement(predictor, image) for image in images]
        every = [case_disagreement(predictor.predict_members(image)[1:-1]) for image in images]
        print(f"{len(images)} phantoms: rank correlation with all slices {spearmanr(few, every).statistic:.2f},")
        print(f"disagreement {min(every):.3f} to {max(every):.3f},", end=" ")
        print(f"largest difference {max(abs(a - b) for a, b in zip(few, every, strict=True)):.4f}")
        for image in [images[0], *([str(Path(ct, "image.nii.gz"))] if ct else [])]:
            slices = predictor.preprocessing({"image": image})["image"].shape[-1]
            ratio = median(seconds(predictor, image) for _ in range(5))
            print(f"{slices} slices, of which {SLICES} at most are scored: {ratio:.2f} of the time of labelling")


def seconds(predictor: Predictor, image: str) -> float:
    """Return the processor's time for scoring, over that for labelling."""
    times = [time.process_time()]
    for step in (lambda: volume_disagreement(predictor, image), lambda: predictor.predict(image)):
        step()
        times.append(time.process_time())
    return (times[1] - times[0]) / (times[2] - times[1])


if __name__ == "__main__":
    fire.Fire(main)
