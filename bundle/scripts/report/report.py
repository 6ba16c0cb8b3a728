"""The report on one or several cross-validations, put together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from ..runtime.atomic_files import write_whole
from ..runtime.errors import BadInput
from ..visualize.suspects import picture_name
from ..visualize.worst_cases import data_url
from .audit import audit_run, audit_table, slice_table, write_suspects
from .comparison import comparison_table, unlike
from .costs import cost_table, size_table
from .figures import WIDTH_IN, Drawing, curves, violins
from .page import Graphic, Section, render
from .runs import Run, read_runs
from .scores import case_table, fixed, fold_table, percent, pooled_table
from .statistics import MEASURES
from .svg import write_figure
from .tables import write_tables
from .worst_cases import Challenge, challenge_table, draw_challenges

PAGE = "report.html"


def write_report(
    runs: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    timed_cases: int = 3,
    challenging: int = 1,
    suspects: int = 4,
) -> Path:
    """Write a page about cross-validations, finished or not, and return its file.

    The page holds all that it shows: the scores of all folds, with intervals; the cases on which each organ is
    hardest; the training; time, memory and size; the labels that the committees distrust; and for several runs how
    they differ. Beside it lie the same `tables` as CSV and LaTeX and the same `figures` as SVG and PNG, and of each
    run `suspects_<run>.txt`, which a training's `exclude` takes. What can't be told, since files are gone, is said on
    the page.

    Args:
        runs: folders of `cross_validation.cross_validate`.
        out: the folder for all that; by default `report` in the first run's. Files of the same names are replaced.
        timed_cases: cases of each run that are labelled once more, one by one, to measure time and memory; only once,
            later reports take the same numbers.
        challenging: cases of each organ that are drawn, twelve of a run at most. They are labelled once more, too.
        suspects: distrusted cases of each run that are drawn.

    Raises:
        BadInput: a folder that is no cross-validation, or without a fold that is done; the same one twice; a negative
            number; `out` is a file.
    """
    for name, number in (("timed_cases", timed_cases), ("challenging", challenging), ("suspects", suspects)):
        if not isinstance(number, int) or number < 0:
            raise BadInput(f"{name}: must be 0 or a whole number above it, got {number!r}. Give another number.")
    read = read_runs(runs)
    folder = read[0].folder / "report" if out is None else Path(out)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file. Choose a folder with --out.")
    figures = folder / "figures"
    sections = [
        score_section(read, figures),
        *comparison_sections(read),
        challenge_section(read, figures, count=challenging),
        training_section(read, figures),
        cost_section(read, cases=timed_cases),
        audit_section(read, folder, count=suspects),
    ]
    write_tables([table for section in sections for table in (*section.tables, *section.folded)], folder / "tables")
    page = render(
        sections,
        title=" and ".join(run.name for run in read) + ": cross-validation",
        lead=" ".join(map(about, read)),
        notes=[note for run in read for note in missing(run)],
    )
    write_whole(folder / PAGE, page)
    return folder / PAGE


def about(run: Run) -> str:
    """Return what a run is, in a sentence."""
    folds, all_folds = len(run.scores), len(run.scores) + len(run.missing)
    data_set = Path(run.settings["dataset_dir"]).name
    return (
        f"{run.name}: {len(run.folds)} cases of {data_set} in {folds} of {all_folds} folds, each case labelled by a "
        "committee that was trained without it."
    )


def missing(run: Run) -> list[str]:
    """Return what of a run isn't there."""
    notes = []
    if run.missing:
        which, whose = ("folds", "Their") if len(run.missing) > 1 else ("fold", "Its")
        folds = ", ".join(map(str, run.missing))
        notes.append(f"{run.name}: not done yet: {which} {folds}. {whose} cases are in no number of this page.")
    if run.problem:
        notes.append(f"{run.name}: its data set isn't to be had any more, so no cases are drawn ({run.problem})")
    return notes


def score_section(runs: Sequence[Run], figures: Path) -> Section:
    """Return the tables and the violins."""
    return Section(
        "Scores",
        text=[
            "DSC: twice what prediction and reference share, by the sum of both. NSD: the share of both surfaces that "
            "lies within 1 mm of the other, FLARE21's tolerance, unless the run's configuration has another."
        ],
        tables=[pooled_table(runs), *map(fold_table, runs)],
        graphics=[add_figure(violins(runs, measure), figures) for measure in MEASURES],
        folded=[*map(case_table, runs)],
    )


def comparison_sections(runs: Sequence[Run]) -> list[Section]:
    """Return how each two runs differ."""
    sections = []
    for first, second in combinations(runs, 2):
        table = comparison_table(first, second)
        notes = unlike(first, second)
        if table is None:
            notes = [*notes, "No case is in both, so nothing can be compared."]
        sections.append(
            Section(
                f"{second.name} beside {first.name}",
                sentences=[row[-1][0] for row in table.rows] if table else [],
                folded=[table] if table else [],
                problems=notes,
            )
        )
    return sections


def challenge_section(runs: Sequence[Run], figures: Path, *, count: int) -> Section:
    """Return the cases with the lowest scores, drawn."""
    tables, graphics, problems = [], [], []
    for run in runs:
        ones, of_run = draw_challenges(run, count=count, folder=figures)
        problems += of_run
        tables += [challenge_table(run, ones)] if ones else []
        graphics += [
            Graphic(describe(run, one, alone=len(runs) == 1), url=data_url(figures / one.file))
            for one in ones
            if one.file
        ]
    return Section(
        "Most challenging cases",
        text=[
            "Of each organ the case with the lowest DSC, at the slice with the most pixels that only the reference or "
            "only the prediction has. CTs are shown from -160 to 240 HU. Where the members disagree it "
            "glows: yellow is half of the most that is possible, or more."
        ],
        tables=tables,
        graphics=graphics,
        problems=problems,
    )


def describe(run: Run, one: Challenge, *, alone: bool) -> str:
    """Return a picture's caption."""
    scores = f"DSC {percent(100 * one.row['dsc'])} %, NSD {percent(100 * one.row['nsd'])} %"
    name = "" if alone else f"{run.name}, "
    return f"{name}{one.row['organ']}: {one.row['case']}, {scores}, slice {one.slice} of {one.slices}"


def training_section(runs: Sequence[Run], figures: Path) -> Section:
    """Return the curves of the training."""
    graphics = []
    for run in runs:
        for drawing in curves(run):
            shown = add_figure(drawing, figures)
            graphics.append(Graphic(f"{run.name}: {shown.caption}" if len(runs) > 1 else shown.caption, svg=shown.svg))
    problems = [f"{run.name}: no training has left a history." for run in runs if not run.histories]
    text = ["Thin lines are folds, thick ones their means."] if graphics else []
    return Section("Training", text=text, graphics=graphics, problems=problems)


def cost_section(runs: Sequence[Run], *, cases: int) -> Section:
    """Return what labelling costs, and how large the networks are."""
    costs, untimed = cost_table(runs, cases=cases)
    size, unknown = size_table(runs)
    text = [] if costs or untimed else ["What labelling a case takes wasn't measured."]
    return Section(
        "Running cost", text=text, tables=[table for table in (costs, size) if table], problems=[*untimed, *unknown]
    )


def audit_section(runs: Sequence[Run], folder: Path, *, count: int) -> Section:
    """Return the cases whose labels the committees distrust."""
    tables, folded, graphics, problems = [], [], [], []
    for run in runs:
        audit = audit_run(run)
        problems += audit.problems
        if not audit.cases:
            continue
        tables.append(audit_table(run, audit))
        folded.append(slice_table(run, audit))
        try:
            for one in write_suspects(run, audit, count=count, folder=folder):
                path = folder / f"suspects_{run.key}" / picture_name(one)
                name = "" if len(runs) == 1 else f"{run.name}: "
                caption = f"{name}{one.rank}. {one.case}: distrust {fixed(one.distrust, 1)}, most of all {one.label}"
                graphics.append(Graphic(caption, url=data_url(path)))
        except BadInput as error:
            problems.append(f"No suspects are drawn: {error}")
    return Section(
        "Labels that the committees distrust", tables=tables, graphics=graphics, folded=folded, problems=problems
    )


def add_figure(drawing: Drawing, folder: Path) -> Graphic:
    """Write a figure's files and return it for the page."""
    svg = write_figure(drawing.figure, drawing.name, folder, titles=drawing.titles, label=drawing.caption)
    return Graphic(drawing.caption, svg=svg, is_wide=drawing.figure.get_figwidth() > WIDTH_IN)
