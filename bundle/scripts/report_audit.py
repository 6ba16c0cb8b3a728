"""Which labels do the committees of all folds distrust?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from .audit_pictures import draw_suspects
from .errors import BadInput
from .label_audit import HEADER, SUSPECT, Suspect, rank, write_audit
from .loss_record import FILE, read_losses
from .report_runs import Run, read_runs
from .report_scores import fixed, percent
from .report_statistics import ALL_ORGANS, by_case
from .report_tables import Column, Table
from .unfinished import write_whole

Key = tuple[str, int | None]  # a case's label file, or its name where there is none, and a slice

SHOWN = 10  # on the page, cases or slices
LEARNED = 0.5  # DSC of label and committee; below, the committee isn't one to ask


@dataclass(frozen=True)
class JointAudit:
    """What the folds' committees thought of labels: each case was trained on in all folds but its own."""

    cases: list[Suspect] = field(default_factory=list)
    slices: list[Suspect] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)  # as `read_losses` has it, of all folds
    problems: list[str] = field(default_factory=list)


def audit_folds(run: str | Path, *, out: str | Path | None = None, top: int = 20) -> list[Suspect]:
    """Do with all folds of a cross-validation what `label_audit.audit` does with a training.

    Raises:
        BadInput: see `read_runs` and `label_audit.audit`; no fold has a record of losses.
    """
    audit = audit_run(read_runs([run])[0])
    if not audit.cases:
        raise BadInput(audit.problems[0])
    folder = Path(run) / "audit" if out is None else Path(out)
    write_audit(audit.cases, audit.slices, about=audit.about, folder=folder, top=top)
    return audit.cases


def audit_run(run: Run) -> JointAudit:
    """Rank the cases, and their slices, by the mean of the distrust of all folds that were trained on them."""
    cases: list[dict[Key, Suspect]] = []
    slices: list[dict[Key, Suspect]] = []
    problems = []
    about: dict[str, Any] = {"cases": {}}
    for fold in run.scores:
        try:
            table, of_fold = read_losses(run.folder / f"fold_{fold}" / FILE)
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


def audit_table(run: Run, audit: JointAudit) -> Table:
    """Return the ranking of the cases; beside it how they were labelled unseen."""
    unseen = by_case(run.rows, ALL_ORGANS, "dsc")
    rows = [
        (
            str(one.rank),
            one.case,
            fixed(one.distrust, 1),
            one.label,
            percent(100 * one.dsc),
            fixed(one.loss, 3),
            percent(100 * one.dropped),
            str(one.seen),
            percent(unseen[one.case]) if one.case in unseen else "",
        )
        for one in audit.cases
    ]
    names = ("", "case", "distrust", "most of all", "DSC, %", "loss", "dropped, %", "samples", "DSC unseen, %")
    learned = median(one.dsc for one in audit.cases)
    suspects = sum(one.distrust >= SUSPECT for one in audit.cases)
    return Table(
        f"audit_{run.key}",
        f"{run.name}: training cases by how much the committees distrusted their labels",
        tuple(Column(name, is_text=name in ("case", "most of all")) for name in names),
        tuple(tuple((text,) for text in row) for row in rows),
        note=f"{suspects} of {len(rows)} cases have a distrust of {SUSPECT:g} or more, in typical deviations from the "
        "usual. Each case was trained on in all folds but its own; distrust, DSC of label and committee, loss and "
        "share dropped are the means over these folds. A high distrust may be a wrong label, or a rare anatomy: look "
        "at the picture before a label is left out."
        + (
            f" In the median case the DSC of label and committee is {percent(100 * learned)} %: the committees have "
            "learned too little for this ranking to be trusted."
            if learned < LEARNED
            else ""
        ),
        most=SHOWN,
    )


def slice_table(run: Run, audit: JointAudit) -> Table:
    """Return the ranking of the slices."""
    rows = [
        (
            str(one.rank),
            one.case,
            str(one.slice),
            fixed(one.distrust, 1),
            one.label,
            percent(100 * one.dsc),
            str(one.seen),
        )
        for one in audit.slices
    ]
    names = ("", "case", "slice", "distrust", "most of all", "DSC, %", "samples")
    return Table(
        f"audit_slices_{run.key}",
        f"{run.name}: slices by how much the committees distrusted their labels",
        tuple(Column(name, is_text=name in ("case", "most of all")) for name in names),
        tuple(tuple((text,) for text in row) for row in rows),
        note=f"Slices are counted from 0 along the last axis of {audit.about['orientation']}, as they were trained on.",
        most=SHOWN,
    )


def write_suspects(run: Run, audit: JointAudit, *, count: int, folder: Path) -> list[Suspect]:
    """Write `suspects_<run>.txt`, which a training's `exclude` takes, and draw the first cases; return those drawn.

    Raises:
        BadInput: files that aren't there any more, after the list was written; see `draw_suspects`.
    """
    lines = [f"{one.case}  # {one.distrust:.1f}, {one.label}" for one in audit.cases if one.distrust >= SUSPECT]
    write_whole(folder / f"suspects_{run.key}.txt", "\n".join([HEADER, *lines, ""]))
    drawn = audit.cases[:count]
    draw_suspects(drawn, audit.slices, about=audit.about, folder=folder / f"suspects_{run.key}")
    return drawn
