"""How much did the members disagree on each image, and with which weights?"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..scripts.inference.disagreement import case_disagreement
from ..scripts.inference.predictor import Predictor
from ..scripts.runtime.atomic_files import write_whole
from ..scripts.runtime.config_files import read_object
from ..scripts.runtime.errors import BadInput

SERVED_S = 3600  # an image that somebody got less than that ago comes last
SLICES = 32  # of a volume that are looked at, evenly spread: enough for an order, and a study list is done sooner


class Scores:
    """A file of its own: the server and the process that scores would overwrite each other's in MONAI Label's.

    Args:
        path: of the file, JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, dict[str, Any]]:
        """Return image id -> `disagreement` in [0, 1] (None: it can't be scored) and `weights`, their stamp."""
        try:
            found = read_object(self.path) if self.path.is_file() else {}
        except BadInput:  # damaged: all is scored anew
            return {}
        return {image_id: score for image_id, score in found.items() if is_score(score)}

    def put(self, image_id: str, disagreement: float | None, weights: str) -> None:
        """Write one image's score."""
        with FileLock(f"{self.path}.lock"):
            scores = {**self.read(), image_id: {"disagreement": disagreement, "weights": weights}}
            write_whole(self.path, json.dumps(scores, indent=1))


def is_score(score: Any) -> bool:
    """Return whether something is a score of an image, as `Scores.put` writes it."""
    if not isinstance(score, dict) or not isinstance(score.get("weights"), str):
        return False
    value = score.get("disagreement")
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1)


def stamp(weights: Path) -> str:
    """Return what tells a file of weights from another one."""
    stat = weights.stat()
    return f"{stat.st_mtime_ns}-{stat.st_size}"


def volume_disagreement(predictor: Predictor, image: str) -> float:
    """Return how much the members disagree on a volume's file, in [0, 1]: see `disagreement.case_disagreement`.

    Up to 32 slices are looked at, in one pass.

    Raises:
        BadInput: see `Predictor.predict_members`.
    """
    prepared = predictor.preprocessing({"image": image})["image"]  # (channels, x, y, z)
    step = math.ceil(prepared.shape[-1] / SLICES)
    return case_disagreement(predictor.member_predictions(prepared[..., step // 2 :: step])[1:-1])


def most_disputed(
    images: Sequence[str], scores: Mapping[str, float | None], served_s: Mapping[str, float], *, now_s: float
) -> str | None:
    """Return the next image to label: not lately served, then the largest score; without scores any.

    Args:
        images: those that have no label.
        scores: image -> disagreement in [0, 1]; an image without one comes after all others, None likewise.
        served_s: image -> when it was last given to somebody.
        now_s: the time.
    """
    if not images:
        return None
    shuffled = random.sample(list(images), len(images))

    def worth(image_id: str) -> tuple[bool, float]:
        score = scores.get(image_id)
        return now_s - served_s.get(image_id, 0.0) >= SERVED_S, -1.0 if score is None else score

    return max(shuffled, key=worth)
