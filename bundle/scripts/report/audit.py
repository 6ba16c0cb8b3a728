"""The report's label audit: rankings and pictures of cases and slices."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from ..audit import label_audit
from ..audit.joint_audit import JointAudit, joint_audit
from ..audit.label_audit import SUSPECT, TOO_MANY, Suspect, write_audit
from ..audit.training_audit import told_of
from ..audit.usual_values import too_many
from ..runtime.errors import BadInput
from ..visualize.suspects import draw_suspects
from .runs import Run, read_runs
from .scores import fixed, percent
from .statistics import ALL_ORGANS, by_case
from .tables import Column, Table

SHOWN = 10  # on the page, cases or slices
LEARNED = 0.5  # DSC of label and committee; below, the committee isn't one to ask


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
    """Return what the committees of a run's folds thought of labels."""
    return joint_audit(run.folder, run.scores)


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
        + (TOO_MANY if too_many(suspects, len(rows)) else "")
        + "".join(f" Fold {fold}, {told}." for fold in run.scores if (told := told_of(run.folder / f"fold_{fold}")))
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
    label_audit.write_suspects(audit.cases, folder / f"suspects_{run.key}.txt")
    drawn = audit.cases[:count]
    draw_suspects(drawn, audit.slices, about=audit.about, folder=folder / f"suspects_{run.key}")
    return drawn
