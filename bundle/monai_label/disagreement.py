"""Which case is most worth labelling next?"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from ..scripts.inference.predictor import Predictor
from ..scripts.runtime.errors import find_bad_input
from .scores import Scores, most_disputed, stamp, volume_disagreement

logger = logging.getLogger(__name__)
NAME = "disagreement"


class DisagreementScoring(ScoringMethod):
    """Score the unlabelled images that these weights haven't scored yet.

    Args:
        bundle: whose members are asked.
        scores: where the scores go.
    """

    def __init__(self, bundle: Path, scores: Scores) -> None:
        super().__init__("How much the members of the committee disagree, 0 to 1")
        self.bundle, self.scores = bundle, scores
        self.weights = bundle / "models" / "model.pt"

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, float | None]:
        """Score what is to be scored, and return image id -> disagreement of these."""
        weights, found = stamp(self.weights), dict[str, float | None]()
        images = self.waiting(datastore)
        if images:
            predictor = Predictor.from_config(bundle=self.bundle)
        for image_id in images:
            try:
                found[image_id] = volume_disagreement(predictor, datastore.get_image_uri(image_id))
            except (requests.RequestException, OSError) as error:  # the archive or the disk, now: it stays waiting
                logger.warning(f"{image_id}: not scored now ({error})")
                continue
            except Exception as error:  # this image: the others are scored
                logger.warning(f"{image_id}: can't be scored ({find_bad_input(error) or error!r})")
                found[image_id] = None
            self.scores.put(image_id, found[image_id], weights)
        return found

    def waiting(self, datastore: Datastore) -> list[str]:
        """Return the unlabelled images that have no score of these weights."""
        weights, scores = stamp(self.weights), self.scores.read()
        return [
            image_id
            for image_id in sorted(datastore.get_unlabeled_images())
            if scores.get(image_id, {}).get("weights") != weights
        ]


class MostDisputed(Strategy):
    """The unlabelled image on which the members disagree most; at random as long as there are no scores.

    Args:
        scores: of `DisagreementScoring`.
    """

    def __init__(self, scores: Scores) -> None:
        super().__init__("The unlabelled case on which the members of the committee disagree most")
        self.scores = scores

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return the image's id and its score, or None if all are labelled."""
        scores = {image_id: one["disagreement"] for image_id, one in self.scores.read().items()}
        images = datastore.get_unlabeled_images()
        served_s = {image_id: served(datastore, image_id) for image_id in images}
        image_id = most_disputed(images, scores, served_s, now_s=time.time())
        return None if image_id is None else {"id": image_id, NAME: scores.get(image_id)}


def served(datastore: Datastore, image_id: str) -> float:
    """Return when an image was last given to somebody, in s; 0: never, or not even fetched from the archive."""
    try:
        last = datastore.get_image_info(image_id)["strategy"][NAME]["ts"]
        return float(last)
    except Exception:
        return 0.0
