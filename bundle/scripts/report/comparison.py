"""Paired comparison of two runs, case by case."""

from __future__ import annotations

from collections.abc import Sequence

from .runs import Run
from .scores import FEW, fixed, name_of, organs_of, with_interval
from .statistics import MEASURES, Estimate, by_case, difference
from .tables import Cell, Column, Table, mean_and_interval_column


def comparison_table(first: Run, second: Run) -> Table | None:
    """Return how two runs differ on the cases that both have, paired, with words; None if there is no such case."""
    rows = []
    for organ in organs_of([first, second]):
        for measure in MEASURES:
            scores = [by_case(run.rows, organ, measure) for run in (first, second)]
            if scores[0].keys() & scores[1].keys():
                paired = difference(*scores)
                words = in_words(paired, name_of(organ), measure.upper(), names=(first.name, second.name))
                rows.append(
                    (
                        (name_of(organ),),
                        (measure.upper(),),
                        with_interval(paired, digits=2),
                        (str(paired.cases),),
                        (words,),
                    )
                )
    if not rows:
        return None
    return Table(
        f"difference_{second.key}_less_{first.key}",
        f"{second.name} less {first.name}, in points of %, over the cases that both have",
        (
            Column("", is_text=True),
            Column("score", is_text=True),
            mean_and_interval_column("difference"),
            Column("cases"),
            Column("in words", is_text=True),
        ),
        tuple(rows),
        note="Each case is compared with itself; the interval is a 95 % bootstrap over cases. Where nothing differs, "
        "about one interval in twenty leaves out 0 by chance. Another training of the same configuration would differ, "
        "too: by how much isn't in it." + (f" With fewer than {FEW} cases it is too narrow." if is_few(rows) else ""),
    )


def in_words(paired: Estimate, organ: str, measure: str, *, names: tuple[str, str]) -> str:
    """Return a sentence that says which of two runs is higher, and whether that is clear.

    What is clear is decided by the numbers as they are written: an interval that reaches 0.00 holds 0. Of few cases,
    whose interval is too narrow, nothing is called clear.

    Args:
        paired: the second less the first, in points of %.
        organ, measure: such as "liver" and "DSC".
        names: of the runs.
    """
    first, second = names
    cases = f"{paired.cases} cases"
    if paired.interval is None:
        return (
            f"{organ}: {second} less {first} is {points(paired.mean)} {measure} points in the only case that both have."
        )
    low, high = paired.interval
    if paired.mean == low == high == 0:
        return f"{organ}: the same {measure} in all {cases}."
    if paired.cases < FEW:
        return (
            f"{organ}: {second} less {first} is {points(paired.mean)} {measure} points in these {cases}, too few to "
            "tell how it is in others."
        )
    if float(points(low)) <= 0 <= float(points(high)):
        return (
            f"{organ}: no clear difference in {measure}. {second} less {first} is {points(paired.mean)} points; the "
            f"95 % interval holds 0 ({points(low)} to {points(high)}; {cases})."
        )
    word, sign = ("higher", 1) if paired.mean > 0 else ("lower", -1)
    ends = sorted((sign * low, sign * high))
    return (
        f"{organ}: {second} is {word} than {first} by {points(sign * paired.mean)} {measure} points "
        f"(95 % interval {points(ends[0])} to {points(ends[1])}; {cases})."
    )


def unlike(first: Run, second: Run) -> list[str]:
    """Return what a comparison of two runs must say besides: other data, cases or organs."""
    notes = []
    places = [run.settings["dataset_dir"] for run in (first, second)]
    if places[0] != places[1]:
        notes.append(
            f"{first.name} and {second.name} were run on different data sets ({places[0]} and {places[1]}). Cases of "
            "the same name are taken for the same."
        )
    for one, other in ((first, second), (second, first)):
        alone = sorted(one.folds.keys() - other.folds.keys())
        if alone:
            few = ", ".join(alone[:3]) + (" and others" if len(alone) > 3 else "")
            notes.append(f"{len(alone)} of the {len(one.folds)} cases of {one.name} aren't in {other.name}: {few}.")
        organs = [organ for organ in one.organs if organ not in other.organs]
        if organs:
            notes.append(f"Only {one.name} has {', '.join(organs)}: the means of organs are of different organs.")
    return notes


def is_few(rows: Sequence[tuple[Cell, ...]]) -> bool:
    """Return whether a comparison rests on few cases."""
    return any(int(row[3][0]) < FEW for row in rows)


def points(value: float) -> str:
    """Return a difference of scores as all tables have it."""
    return fixed(value, 2)
