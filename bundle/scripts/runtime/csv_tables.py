"""CSV files: written as text that a spreadsheet shows and doesn't run, and read back as it was."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what begins so is a formula to spreadsheets
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV; text that would be a formula begins with ', as spreadsheets write it themselves.

    Source: OWASP, "CSV Injection".
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([safe_cell(cell) for cell in row] for row in (columns, *rows))
    return text.getvalue()


def safe_cell(cell: Any) -> Any:
    """Return a cell that no spreadsheet runs: a name such as =1+1 gets a ' before it; numbers stay."""
    if not isinstance(cell, str) or NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}" if cell.lstrip("'").startswith(FORMULA) else cell


def plain_cell(cell: str) -> str:
    """Return the text that `safe_cell` was given."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def read_csv_rows(path: Path) -> list[Mapping[str, str]]:
    """Return the rows of a file that `csv_text` wrote, by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: plain_cell(cell or "") for name, cell in row.items()} for row in csv.DictReader(file)]
