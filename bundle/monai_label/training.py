"""How is the committee trained on with finished labels, and when do new weights take the served ones' place?"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import device_list

from ..scripts.data.volumes import case_name
from ..scripts.inference.predictor import Predictor
from ..scripts.runtime.atomic_files import write_whole
from ..scripts.runtime.config_files import CODE
from ..scripts.runtime.errors import BadInput
from .guard.parameters import TrainingOptions, parse
from .rounds import Cases, mean_dsc, replace_file, split_cases

logger = logging.getLogger(__name__)
CHANGED = re.compile(r"::|[@%]#")  # by MONAI, in any string of a configuration


class CommitteeTraining(BundleTrainTask):
    """Train on, beside the served weights; they give way only to weights that validate at least as well.

    Each round is a folder, WORK/trainings/0001 and so on, with all that a training leaves, and `round.json`. The
    weights that were there when the server was first started stay in WORK/released/model.pt.

    Args:
        bundle: that is served, in its work folder.
        conf: of the server.
        work: the work folder.
        labels: label id -> name.
    """

    def __init__(self, bundle: Path, conf: Mapping[str, str], *, work: Path, labels: Mapping[str, str]) -> None:
        self.bundle, self.work, self.labels = bundle, work, labels
        self.validation: Cases = []
        super().__init__(str(bundle), dict(conf))

    def config(self) -> dict[str, Any]:
        """Return what a reader may choose, with the default of each."""
        defaults = parse(TrainingOptions, {}).model_dump(include={"max_epochs", "val_split"})
        return {"device": device_list(), **defaults}

    def stats(self) -> dict[str, Any]:
        """Return what came of each round."""
        rounds = sorted((self.work / "trainings").glob("*/round.json"))
        return {one.parent.name: json.loads(one.read_text(encoding="utf-8")) for one in rounds}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Run one round and return what came of it.

        Raises:
            BadInput: fewer than two finished labels; a case that can't be used.
        """
        options = parse(TrainingOptions, request).model_dump(exclude={"client_id"})
        self.round = self.next_round()
        options |= {"model": request["model"], "multi_gpu": False, "model_filename": "model.pt"}
        super().__call__(options, datastore)
        served, trained = self.bundle / "models" / "model.pt", self.round / "model.pt"
        before, after = (
            mean_dsc(self.predictor(weights), self.validation, self.labels) for weights in (served, trained)
        )
        replaced = after >= before
        if replaced:
            replace_file(served, trained)
        result = {
            "dsc_before": round(before, 4),
            "dsc_after": round(after, 4),
            "replaced": replaced,
            "training_cases": self.training_cases,
            "validation_cases": [case_name(case["image"]) for case in self.validation],
            "ended": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        write_whole(self.round / "round.json", json.dumps(result, indent=1))
        logger.info(f"round {self.round.name}: {result}")
        return result

    def next_round(self) -> Path:
        """Make the next round's folder."""
        trainings = self.work / "trainings"
        trainings.mkdir(exist_ok=True)
        numbers = [int(one.name) for one in trainings.iterdir() if one.name.isdecimal()]
        folder = trainings / f"{max(numbers, default=0) + 1:04d}"
        folder.mkdir()
        return folder

    def predictor(self, weights: Path) -> Predictor:
        """Return the served networks with one file's weights."""
        return Predictor.from_config(bundle=self.bundle, ckpt_path=weights)

    def _partition_datalist(
        self, datalist: Cases, request: Mapping[str, Any], shuffle: bool = False
    ) -> tuple[Cases, Cases]:
        require_literal(file for case in datalist for file in case.values())
        training, self.validation = split_cases(datalist, share=float(request["val_split"]))
        self.training_cases = [case_name(case["image"]) for case in training]
        return training, self.validation

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        overrides["model_path"] = str(self.round / "model.pt")
        overrides["output_dir"] = str(self.round)
        overrides["cache_dir"] = str(self.work / "slices")  # what is prepared serves all rounds
        return overrides


def require_literal(files: Iterable[str]) -> None:
    """Raise `BadInput` for a file whose path a configuration would take for something else than a path."""
    for file in files:
        if file.startswith(CODE) or CHANGED.search(file):
            raise BadInput(f"{file}: rename it, without ::, @# and %#, which a configuration takes for its own keys.")
