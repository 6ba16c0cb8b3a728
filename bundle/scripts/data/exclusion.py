"""Exclusion of cases from training, by name or by a file of names."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.csv_tables import plain_cell
from ..runtime.errors import BadInput
from .case_files import Case
from .slice_store import case_names


def excluded_names(exclude: str | Sequence[Any] | None) -> list[str]:
    """Return the names of the cases that aren't trained on.

    Args:
        exclude: their names; or the path of a text file with a name a line, where what follows # or a comma doesn't
            count and neither does a first line "case": so the audit's `suspects.txt` and lines of its `cases.csv`.

    Raises:
        BadInput: no such file, one that is no text, or neither names nor a path.
    """
    if exclude is None:
        return []
    if isinstance(exclude, str):
        try:
            with Path(exclude).open(encoding="utf-8", newline="") as file:
                names = [plain_cell(row[0].split("#")[0].strip()) for row in csv.reader(file) if row]
        except (OSError, ValueError, csv.Error) as error:
            raise BadInput(
                f"exclude: {exclude} can't be read ({error}). Give a file with a case's name a line, or [name, name]."
            ) from error
        return [name for number, name in enumerate(names) if name and (number, name) != (0, "case")]
    if not isinstance(exclude, Sequence):
        raise BadInput(f"exclude: must be names of cases or a file, got {exclude!r}. Give it as [name, name].")
    return [str(name) for name in exclude]


def without_excluded(cases: Sequence[Case], names: Sequence[str], *, known: Sequence[Case]) -> list[Case]:
    """Return the cases but for those named, as the data set or as the audit names them.

    Args:
        cases: those to train on.
        names: to leave out.
        known: all cases of the data set: a name that is only here isn't trained on anyway.

    Raises:
        BadInput: a name of no case; nothing is left.
    """
    names_of: dict[str, set[str]] = {}  # by label file; the audit's names depend on which cases there are
    for group in (cases, known):
        for case, name in zip(group, case_names([case.item for case in group]), strict=True):
            names_of.setdefault(str(case.label), set()).update((case.name, name))
    unknown = sorted(set(names) - set().union(*names_of.values()))
    if unknown:
        raise BadInput(f"exclude: {unknown[0]} is no case of the data set. Correct the name or take it out.")
    left = [case for case in cases if not names_of[str(case.label)] & set(names)]
    if cases and not left:
        raise BadInput("exclude: no case is left to train on. Name fewer cases.")
    return left
