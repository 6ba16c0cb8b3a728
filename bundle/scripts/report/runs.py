"""Reading the folder of a cross-validation."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.cases import find_cases
from ..data.layouts import read_data_set
from ..data.volumes import case_name
from ..experiments.cross_validation import SETTINGS, folds_of, overlays_of
from ..handlers.history import read_history
from ..metrics.score_table import ScoreRow, read_csv
from ..runtime.config_files import read_object
from ..runtime.errors import BadInput

History = list[dict[str, float]]
KINDS = {"dataset_dir": str, "layout": str, "data_root": str | None, "values": dict, "overlays": list}  # of settings


@dataclass(frozen=True)
class Run:
    """A cross-validation, finished or not."""

    name: str  # among the runs of a report
    key: str  # the same in files' names
    folder: Path
    settings: dict[str, Any]  # what it was begun with
    scores: dict[int, list[ScoreRow]]  # of each fold that is done
    histories: dict[int, History]  # of each fold that has ended an epoch
    missing: tuple[int, ...] = ()  # folds that aren't done
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each scored case: image, label
    problem: str = ""  # why there are no files

    @property
    def rows(self) -> list[ScoreRow]:
        """Return the scores of all folds that are done."""
        return [row for fold in sorted(self.scores) for row in self.scores[fold]]

    @property
    def organs(self) -> dict[str, int]:
        """Return the organs that were scored, in their order, and their label ids."""
        return {row["organ"]: row["label"] for row in self.rows}

    @property
    def folds(self) -> dict[str, int]:
        """Return each scored case's fold."""
        return {row["case"]: fold for fold, rows in sorted(self.scores.items()) for row in rows}

    @property
    def overlays(self) -> list[str]:
        """Return the files of the overlays that it was trained with."""
        return [str(self.folder / "bundle" / "configs" / name) for name in overlays_of(self.settings)]


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Return the cross-validations in folders.

    Raises:
        BadInput: none, the same twice, a folder that is no cross-validation, one without a fold that is done.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if not paths:
        raise BadInput("runs: there is none. Give the folder of a cross-validation, or several.")
    if len(set(paths)) < len(paths):
        raise BadInput(f"runs: {max(paths, key=paths.count)} is given twice. Give each once.")
    names = short_names(paths)
    keys = [re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.") for name in names]
    if "" in keys or len(set(keys)) < len(keys):
        keys = [f"run_{number}" for number in range(1, len(keys) + 1)]
    return [read_run(path, name=name, key=key) for path, name, key in zip(paths, names, keys, strict=True)]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return names that tell folders apart: as many of their last parts as that needs."""
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    return ["/".join(path.parts[-parts:]) for path in paths]


def read_run(folder: Path, *, name: str, key: str) -> Run:
    """Return the cross-validation in a folder; see `read_runs`."""
    path = folder / SETTINGS
    if not path.is_file():
        raise BadInput(f"{folder}: is no cross-validation. Give the folder that one was written to.")
    try:
        settings = read_object(path)
        score_files = {
            int(file.parent.name.removeprefix("fold_")): file for file in folder.glob("fold_[0-9]*/scores.csv")
        }
        scores = {fold: read_csv(file) for fold, file in sorted(score_files.items())}
        lost = {"dataset_dir", "layout", "values", "overlays"} - set(settings)
        if lost:
            raise LookupError(f"{SETTINGS} has no {', '.join(sorted(lost))}")
        for setting, kind in KINDS.items():
            if not isinstance(settings.get(setting), kind):
                raise TypeError(f"{SETTINGS}: {setting} is {json.dumps(settings.get(setting))[:80]}")
    except (ValueError, LookupError, TypeError) as error:
        raise BadInput(
            f"{folder}: can't be read ({error!r}). Give a folder that cross-validate has written."
        ) from error
    if not any(scores.values()):
        raise BadInput(f"{folder}: no fold is done yet. Go on with cross-validate until one is.")
    scores = distinct(scores)
    missing, files, problem = find_files(settings, scores)
    histories = {fold: read_history(folder / f"fold_{fold}" / "history.json") for fold in {*scores, *missing}}
    histories = {fold: histories[fold] for fold in sorted(histories) if histories[fold]}
    return Run(name, key, folder, settings, scores, histories, missing=missing, files=files, problem=problem)


def distinct(scores: dict[int, list[ScoreRow]]) -> dict[int, list[ScoreRow]]:
    """Return scores in which cases of the same name in several folds bear the fold's number, too."""
    count = Counter(case for rows in scores.values() for case in {row["case"] for row in rows})
    return {
        fold: [{**row, "case": f"{row['case']} (fold {fold})"} if count[row["case"]] > 1 else row for row in rows]
        for fold, rows in scores.items()
    }


def find_files(
    settings: dict[str, Any], scores: dict[int, list[ScoreRow]]
) -> tuple[tuple[int, ...], dict[str, dict[str, Any]], str]:
    """Return the folds that are missing, each scored case's files, and why they can't be known if they can't."""
    place = {key: settings[key] for key in ("layout", "data_root") if key in settings}
    try:
        known = folds_of(read_data_set(settings["dataset_dir"], **place), settings["dataset_dir"])
    except BadInput as error:
        return tuple(sorted(set(range(max(scores))) - set(scores))), {}, str(error)
    files: dict[str, dict[str, Any]] = {}
    for fold, rows in scores.items():
        cases = {row["case"] for row in rows}
        for item in find_cases(settings["dataset_dir"], part="validation", folds=len(known), fold=fold, **place):
            label = Path(item["label"])
            stem = case_name(label)
            for name in (stem, f"{label.parent.name}/{stem}"):  # as the scores have them, see `OrganScores`
                files |= {case: item for case in (name, f"{name} (fold {fold})") if case in cases}
    return tuple(sorted(set(known) - set(scores))), files, ""
