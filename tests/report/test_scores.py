from __future__ import annotations

from pathlib import Path

from cyclic_committee.scripts.metrics.dsc_nsd import ScoreRow
from cyclic_committee.scripts.report.runs import Run
from cyclic_committee.scripts.report.scores import (
    case_table,
    fixed,
    fold_table,
    pooled_table,
)


def run(name: str, scores: dict[int, dict[str, float]], *, organ: str = "liver", data: str = "/data/ct") -> Run:
    """Return a run with one organ: fold -> case -> DSC; the NSD is half of it."""
    rows: dict[int, list[ScoreRow]] = {
        fold: [{"case": c, "label": 1, "organ": organ, "dsc": dsc, "nsd": dsc / 2} for c, dsc in of_fold.items()]
        for fold, of_fold in scores.items()
    }
    return Run(name, name, Path(name), {"dataset_dir": data, "overlays": []}, rows, {})


FIRST = run("A", {0: {"a": 0.9, "b": 0.8}, 1: {"c": 0.5, "d": 0.7, "e": 0.6}})


def test_the_fold_table_has_a_row_a_fold_and_the_papers_average() -> None:
    rows = fold_table(FIRST).shown
    assert [row[:4] for row in rows] == [
        ["fold 0", "2", "85.0 ± 7.1", "42.5 ± 3.5"],
        ["fold 1", "3", "60.0 ± 10.0", "30.0 ± 5.0"],
        ["average", "5", "72.5 ± 8.5", "36.2 ± 4.3"],
    ]
    assert fold_table(run("A", {2: {"a": 0.9}})).shown[0][2] == "90.0"  # one case has no deviation


def test_the_pooled_table_has_the_runs_side_by_side() -> None:
    table = pooled_table([FIRST, run("B", {0: {"a": 0.4}})])
    assert table.groups == [("", 1), ("A", 3), ("B", 3)]
    liver = table.shown[0]
    assert liver[:2] == ["liver", "5"]
    assert liver[2].startswith("70.0 (5")
    assert liver[4:] == ["1", "40.0", "20.0"]  # one case has no interval
    assert "With fewer than 10 cases it is too narrow." in table.note
    alone = pooled_table([FIRST, run("B", {0: {"a": 0.4}}, organ="spleen")])
    assert alone.shown[1][1:4] == ["0", "–", "–"]


def test_the_case_table_has_a_line_a_case() -> None:
    assert [row[:4] for row in case_table(FIRST).shown][1:3] == [["b", "0", "80.0", "40.0"], ["c", "1", "50.0", "25.0"]]


def test_zero_has_no_sign() -> None:
    assert (fixed(-0.001, 2), fixed(-0.01, 2), fixed(12.349, 1)) == ("0.00", "-0.01", "12.3")
