"""Label audit over the folds of a cross-validation: the means of what each fold's committee distrusts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..handlers.loss_record import FILE, read_losses
from ..runtime.errors import BadInput
from .label_audit import Suspect, rank

Key = tuple[str, int | None]  # a case's label file, or its name where there is none, and a slice


@dataclass(frozen=True)
class JointAudit:
    """What the folds' committees thought of labels: each case was trained on in all folds but its own."""

    cases: list[Suspect] = field(default_factory=list)
    slices: list[Suspect] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)  # as `read_losses` has it, of all folds
    problems: list[str] = field(default_factory=list)


def joint_audit(folder: Path, folds: Iterable[int]) -> JointAudit:
    """Rank the cases, and their slices, by the mean of the distrust of all folds that were trained on them.

    Args:
        folder: of `cross_validation.cross_validate`.
        folds: those of it to read.
    """
    cases: list[dict[Key, Suspect]] = []
    slices: list[dict[Key, Suspect]] = []
    problems = []
    about: dict[str, Any] = {"cases": {}}
    for fold in folds:
        try:
            table, of_fold = read_losses(folder / f"fold_{fold}" / FILE)
        except BadInput as error:
            problems.append(f"The labels are judged without fold {fold}: {error}")
            continue
        about = {**of_fold, "cases": {**about["cases"], **of_fold["cases"]}}
        for by_slice, ranked in ((False, cases), (True, slices)):
            ranked.append(keyed(rank(table, labels=of_fold["labels"], by_slice=by_slice), of_fold["cases"]))
    return JointAudit(combine(cases), combine(slices), about, problems)


def keyed(ranked: Sequence[Suspect], files: Mapping[str, Any]) -> dict[Key, Suspect]:
    """Return one fold's ranking by label files: a case's name depends on the others in its fold."""
    return {(files.get(one.case, {}).get("label", one.case), one.slice): one for one in ranked}


def combine(folds: Sequence[Mapping[Key, Suspect]]) -> list[Suspect]:
    """Return one ranking of several folds': means, and all samples that were seen."""
    joint = []
    for key in dict.fromkeys(key for fold in folds for key in fold):
        ones = [fold[key] for fold in folds if key in fold]
        worst = max(ones, key=lambda one: one.distrust)
        joint.append(
            replace(
                worst,
                distrust=fmean(one.distrust for one in ones),
                dsc=fmean(one.dsc for one in ones),
                loss=fmean(one.loss for one in ones),
                dropped=fmean(one.dropped for one in ones),
                seen=sum(one.seen for one in ones),
            )
        )
    joint.sort(key=lambda one: (-one.distrust, one.case, one.slice or 0))
    return [replace(one, rank=place) for place, one in enumerate(joint, start=1)]
