"""The report's tables of scores."""

from __future__ import annotations

from collections.abc import Sequence

from .runs import Run
from .statistics import ALL_ORGANS, MEASURES, Estimate, average_of_folds, by_case, estimate, mean_and_sd
from .tables import Cell, Column, Table, mean_and_interval_column, mean_and_sd_column

FEW = 10  # cases: bootstrap intervals are too narrow below


def organs_of(runs: Sequence[Run]) -> list[str]:
    """Return all runs' organs in their order, and at the end what stands for their mean."""
    return [*dict.fromkeys(organ for run in runs for organ in run.organs), ALL_ORGANS]


def fold_table(run: Run) -> Table:
    """Return a run's scores as the paper's Table 2 has them: a row a fold, and their average."""
    organs = organs_of([run])
    rows, by_fold = [], []
    for fold, scores in sorted(run.scores.items()):
        of_organs = [
            mean_and_sd(list(by_case(scores, organ, measure).values())) for organ in organs for measure in MEASURES
        ]
        by_fold.append(of_organs)
        rows.append(((f"fold {fold}",), (str(len({row["case"] for row in scores})),), *map(with_sd, of_organs)))
    average = [average_of_folds(of_one) for of_one in zip(*by_fold, strict=True)]
    rows.append((("average",), (str(len(run.folds)),), *map(with_sd, average)))
    return Table(
        f"folds_{run.key}",
        f"{run.name}: DSC and NSD in %, mean ± standard deviation over the cases of each fold",
        (
            Column("", is_text=True),
            Column("cases"),
            *(mean_and_sd_column(measure.upper(), group=name_of(organ)) for organ in organs for measure in MEASURES),
        ),
        tuple(rows),
        note="The average row is the paper's: the mean of the folds' means ± the mean of the folds' deviations.",
        foot=1,
    )


def pooled_table(runs: Sequence[Run]) -> Table:
    """Return the mean over all cases of each organ with its interval, the runs side by side."""
    rows = []
    for organ in organs_of(runs):
        row: list[Cell] = [(name_of(organ),)]
        for run in runs:
            scores = [list(by_case(run.rows, organ, measure).values()) for measure in MEASURES]
            row.append((str(len(scores[0])),))
            row += [with_interval(estimate(values)) if values else ("", "", "") for values in scores]
        rows.append(tuple(row))
    columns = [Column("", is_text=True)]
    for run in runs:
        group = run.name if len(runs) > 1 else ""
        columns.append(Column("cases", group))
        columns += [mean_and_interval_column(f"{measure.upper()}, %", group=group) for measure in MEASURES]
    few = any(len(run.folds) < FEW for run in runs)
    return Table(
        "scores",
        "Mean over all cases, with its 95 % interval",
        tuple(columns),
        tuple(rows),
        note="The interval is a bootstrap over cases: how far the mean may lie off because these cases were at hand "
        "and not others of their kind. What another training would change isn't in it."
        + (f" With fewer than {FEW} cases it is too narrow." if few else ""),
        foot=1,
    )


def case_table(run: Run) -> Table:
    """Return the scores of each case."""
    organs = organs_of([run])
    scores = [by_case(run.rows, organ, measure) for organ in organs for measure in MEASURES]
    rows = [
        ((case,), (str(fold),), *(((percent(of_one[case]) if case in of_one else ""),) for of_one in scores))
        for case, fold in sorted(run.folds.items())
    ]
    return Table(
        f"cases_{run.key}",
        f"{run.name}: DSC and NSD of each case, in %",
        (
            Column("case", is_text=True),
            Column("fold"),
            *(Column(measure.upper(), name_of(organ)) for organ in organs for measure in MEASURES),
        ),
        tuple(rows),
    )


def name_of(organ: str) -> str:
    """Return what an organ, or `ALL_ORGANS`, is called in tables."""
    return "mean of organs" if organ == ALL_ORGANS else organ


def with_sd(score: tuple[float, float | None]) -> Cell:
    """Return a mean and its deviation as a cell."""
    mean, sd = score
    return percent(mean), "" if sd is None else percent(sd)


def with_interval(of_mean: Estimate, *, digits: int = 1) -> Cell:
    """Return a mean and its interval as a cell."""
    return tuple(
        fixed(value, digits) if value is not None else ""
        for value in (of_mean.mean, *(of_mean.interval or (None, None)))
    )


def percent(value: float) -> str:
    """Return a score in percent as all tables have it."""
    return fixed(value, 1)


def fixed(value: float, digits: int) -> str:
    """Return a number with so many decimals, and never -0."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text
