"""Metric of whole cases for a validator: DSC and NSD of each organ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from monai.data.utils import affine_to_spacing
from monai.utils import string_list_all_gather

from ..data.volumes import case_name
from ..runtime.errors import BadInput
from .dsc_nsd import OrganScore, ScoreRow, as_rows, check_tolerance, organ_names, organ_scores


class OrganScores(Metric):
    """DSC and NSD of every organ and case, for the evaluators of MONAI.

    The metric's value is the mean DSC over all organs and cases. Besides, `engine.state.metrics` receives
    `dsc_<organ>`, `nsd_<organ>`, `dsc_mean` and `nsd_mean`, and `engine.state.metric_details[<name>]` the list of
    `ScoreRow`s, sorted by case. With several processes, each scores its own cases and all receive the scores of all;
    a case that several processes have scored counts once.

    MONAI's own surface Dice handler isn't used: it passes no spacing, and has NaN where FLARE21 has 1.

    Args:
        labels: label id -> organ name, such as {1: "liver"}; the ids may be strings.
        tolerance_mm: of the NSD; FLARE21 uses 1 mm for every organ.
    """

    def __init__(self, *, labels: Mapping[int, str] | Mapping[str, str], tolerance_mm: float = 1.0) -> None:
        check_tolerance(tolerance_mm)
        self.labels = organ_names(labels)
        self.tolerance_mm = tolerance_mm
        super().__init__()

    def reset(self) -> None:
        """Forget all scores."""
        self._scores: dict[str, list[OrganScore]] = {}  # file of the reference -> scores of its organs

    def update(self, output: list[dict[str, torch.Tensor]]) -> None:
        """Score the items of a decollated batch.

        Each item holds `pred` and `label`, both (1, x, y, z) on the reference's own grid; `label` is the MetaTensor
        that `LoadImaged` made: its affine gives the spacing, its file the case's name. Raises `BadInput`.
        """
        for item in output:
            file, spacing_mm = _origin(item["label"])
            prediction, reference = item["pred"], item["label"]
            if prediction.shape != reference.shape or reference.ndim != 4 or len(reference) != 1:
                raise BadInput(
                    f"{file}: case {case_name(file)} has a pred of the shape {tuple(prediction.shape)} and a label of "
                    f"{tuple(reference.shape)}. Both must be (1, x, y, z), argmax taken, on the reference's own grid."
                )
            self._scores[file] = organ_scores(
                prediction[0].detach().cpu().numpy(),
                reference[0].detach().cpu().numpy(),
                labels=self.labels,
                spacing_mm=spacing_mm,
                tolerance_mm=self.tolerance_mm,
            )

    def compute(self) -> float:
        """Return the mean DSC over all organs and cases. Raises `NotComputableError` if there is no case."""
        return _mean(self.rows(), "dsc")

    def rows(self) -> list[ScoreRow]:
        """Return the scores of all processes, sorted by case. Raises `NotComputableError` if there is none."""
        # as JSON: a process without a case sends "{}", and nothing has to be pickled
        parts = [json.loads(part) for part in string_list_all_gather([json.dumps(self._scores)])]
        scores = {file: [OrganScore(*score) for score in organs] for part in parts for file, organs in part.items()}
        if not scores:
            raise NotComputableError("OrganScores must have at least one case before it can be computed.")
        names = _case_names(scores)  # file -> name
        files = sorted(scores, key=lambda file: names[file])
        return [row for file in files for row in as_rows(names[file], scores[file])]

    def completed(self, engine: Engine, name: str) -> None:
        """Put the mean DSC, the means per organ and the rows into the engine's state."""
        rows = self.rows()
        metrics = {name: _mean(rows, "dsc"), "dsc_mean": _mean(rows, "dsc"), "nsd_mean": _mean(rows, "nsd")}
        for organ in self.labels.values():
            of_organ = [row for row in rows if row["organ"] == organ]
            metrics |= {f"dsc_{organ}": _mean(of_organ, "dsc"), f"nsd_{organ}": _mean(of_organ, "nsd")}
        engine.state.metrics.update(metrics)
        engine.state.metric_details[name] = rows  # type: ignore[attr-defined]


def _mean(rows: Iterable[ScoreRow], score: Literal["dsc", "nsd"]) -> float:
    return fmean(row[score] for row in rows)


def _origin(label: torch.Tensor) -> tuple[str, tuple[float, float, float]]:
    """Return the reference's file and its spacing in mm."""
    file = getattr(label, "meta", {}).get("filename_or_obj")
    if not file:
        raise BadInput("label must be a MetaTensor that knows its file: load the reference with LoadImaged.")
    # in float32, as NIfTI headers hold it: the rounding errors of an oblique affine must not push slices of 1 mm
    # out of a tolerance of 1 mm
    x, y, z = (float(np.float32(size)) for size in affine_to_spacing(label.affine))  # type: ignore[attr-defined]
    return str(file), (x, y, z)


def _case_names(files: Iterable[str]) -> dict[str, str]:
    """Return file -> its name without .nii or .nii.gz; files of one name in several folders take the folder's along."""
    stems = {file: case_name(file) for file in files}
    count = Counter(stems.values())
    return {file: stem if count[stem] == 1 else f"{Path(file).parent.name}/{stem}" for file, stem in stems.items()}
