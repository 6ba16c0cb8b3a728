"""Tables as CSV, LaTeX and HTML with the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ..runtime.atomic_files import write_whole
from ..runtime.csv_tables import csv_text

Cell = tuple[str, ...]  # its parts, such as mean and deviation, as they are written everywhere
NOTHING = "–"
LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        NOTHING: "--",
    }
)


@dataclass(frozen=True)
class Column:
    """A table's column. Its parts are columns of their own in the CSV, and put together by the pattern elsewhere."""

    name: str
    group: str = ""  # what several neighbours have in common, such as an organ
    parts: tuple[str, ...] = ("",)
    pattern: str = "{}"
    is_text: bool = False  # else numbers: to the right, and never broken

    def show(self, cell: Cell) -> str:
        """Return a cell as people read it: its first part alone if the others are unknown."""
        if all(cell):
            return self.pattern.format(*cell)
        return cell[0] or NOTHING


@dataclass(frozen=True)
class Table:
    """Formatted cells: what is in the CSV is in the LaTeX and on the page, digit by digit."""

    name: str  # of its files
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    foot: int = 0  # rows at the end that sum up the others
    most: int | None = None  # rows that the page and LaTeX show

    @property
    def shown(self) -> list[list[str]]:
        """Return the rows as the page and LaTeX show them."""
        rows = self.rows[: self.most]
        return [[column.show(cell) for column, cell in zip(self.columns, row, strict=True)] for row in rows]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Return the columns' groups and how many columns each spans; nothing if there are none."""
        if not any(column.group for column in self.columns):
            return []
        return [(group, len(list(columns))) for group, columns in groupby(column.group for column in self.columns)]


def mean_and_sd_column(name: str, *, group: str = "") -> Column:
    """Return a column of means with their standard deviations."""
    return Column(name, group, ("mean", "sd"), "{} ± {}")


def mean_and_interval_column(name: str, *, group: str = "") -> Column:
    """Return a column of means with their intervals."""
    return Column(name, group, ("mean", "low", "high"), "{} ({} to {})")


def as_csv(table: Table) -> str:
    """Return all rows of a table, each part of a cell in a column of its own."""
    columns = [
        " ".join(filter(None, (column.group, column.name, part))) for column in table.columns for part in column.parts
    ]
    return csv_text(columns, [[part for cell in row for part in cell] for row in table.rows])


def as_latex(table: Table) -> str:
    """Return a table for LaTeX with the package booktabs."""
    lines = [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{escape(table.caption)}}}"]
    lines += [
        rf"\begin{{tabular}}{{{''.join('l' if column.is_text else 'r' for column in table.columns)}}}",
        r"\toprule",
    ]
    if table.groups:
        lines += [latex_row([rf"\multicolumn{{{n}}}{{c}}{{{escape(group)}}}" for group, n in table.groups])]
        first = 1
        for group, n in table.groups:
            lines += [rf"\cmidrule(lr){{{first}-{first + n - 1}}}"] if group else []
            first += n
    lines += [latex_row([escape(column.name) for column in table.columns]), r"\midrule"]
    rows = [latex_row([escape(text) for text in row]) for row in table.shown]
    foot = len(rows) - table.foot
    lines += [*rows[:foot], *([r"\midrule"] if table.foot else []), *rows[foot:]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def latex_row(cells: Sequence[str]) -> str:
    """Return a row of a tabular."""
    return " & ".join(cells) + r" \\"


def escape(text: str) -> str:
    """Return text as LaTeX shows it."""
    return text.translate(LATEX)


def write_tables(tables: Sequence[Table], folder: Path) -> None:
    """Write each table as `<name>.csv` and `<name>.tex`, each whole or not at all."""
    for table in tables:
        write_whole(folder / f"{table.name}.csv", as_csv(table))
        write_whole(folder / f"{table.name}.tex", as_latex(table))
