"""Scores images, some of which can't be; for another environment's tests: `label_scoring.py FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests

from cyclic_committee.monai_label import disagreement
from cyclic_committee.monai_label.scores import Scores
from cyclic_committee.scripts.runtime.errors import BadInput

FAILURES = {"bad": BadInput("holds colours"), "odd": RuntimeError("?"), "unreached": requests.ConnectionError("silent")}


def score(predictor: Any, image: str) -> float:
    """Return a score, unless the image stands for a failure."""
    if image in FAILURES:
        raise FAILURES[image]
    return 0.5


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "models").mkdir()
    (folder / "models" / "model.pt").touch()
    disagreement.volume_disagreement = score
    disagreement.Predictor = SimpleNamespace(from_config=lambda **_: None)
    store: Any = SimpleNamespace(get_unlabeled_images=lambda: [*FAILURES, "good"], get_image_uri=str)
    scoring = disagreement.DisagreementScoring(folder, Scores(folder / "scores.json"))
    print(json.dumps([scoring({}, store), scoring.waiting(store)]))
