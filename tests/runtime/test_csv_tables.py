"""CSV files: what a spreadsheet would run is shown to it as text, and read back here as it was."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from cyclic_committee.scripts.data.exclusion import excluded_names
from cyclic_committee.scripts.metrics.score_table import read_csv, write_csv
from cyclic_committee.scripts.runtime.csv_tables import csv_text, plain_cell, safe_cell

NAMES = ["=HYPERLINK(A1)", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "'=1", "''-x", "=a,b\nc"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_a_formula_is_text(name: str) -> None:
    [[_], [cell]] = csv.reader(io.StringIO(csv_text(["case"], [[name]])))
    assert cell == f"'{name}"
    assert plain_cell(cell) == name


@pytest.mark.parametrize(
    "cell", ["-0.5", "+3", "1e-05", "-1E+5", "-.5", "case_0", "'quoted'", "", "a=b", -0.25, 3, None]
)
def test_numbers_and_plain_names_stay_as_they_are(cell: object) -> None:
    assert safe_cell(cell) == cell
    assert not isinstance(cell, str) or plain_cell(cell) == cell


def test_scores_of_such_cases_are_read_back(tmp_path: Path) -> None:
    rows = [{"case": name, "label": 1, "organ": "=liver", "dsc": 0.5, "nsd": 0.25} for name in NAMES]
    write_csv(rows, tmp_path / "scores.csv")  # type: ignore[arg-type]
    assert read_csv(tmp_path / "scores.csv") == rows
    assert "\n=" not in (tmp_path / "scores.csv").read_text()


def test_a_line_of_the_audits_cases_excludes_the_case_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(csv_text(["case", "distrust"], [["-2+3", "4.5"], ["plain", "3.5"]]))
    assert excluded_names(str(tmp_path / "list.csv")) == ["-2+3", "plain"]
