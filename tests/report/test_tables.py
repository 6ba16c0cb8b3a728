from __future__ import annotations

from pathlib import Path

from cyclic_committee.scripts.report.tables import (
    Column,
    Table,
    as_csv,
    as_latex,
    mean_and_interval_column,
    mean_and_sd_column,
    write_tables,
)

TABLE = Table(
    "scores",
    "50 % & more_",
    (
        Column("", is_text=True),
        Column("cases"),
        mean_and_sd_column("DSC", group="liver"),
        mean_and_interval_column("NSD", group="liver"),
    ),
    (
        (("fold 0",), ("3",), ("98.5", "0.7"), ("93.0", "92.1", "94.0")),
        (("a, b",), ("1",), ("98.4", ""), ("", "", "")),
        (("average",), ("4",), ("98.4", "0.9"), ("93.0", "", "")),
    ),
    foot=1,
)


def test_each_part_of_a_cell_is_a_column_of_the_csv() -> None:
    assert as_csv(TABLE).splitlines() == [
        ",cases,liver DSC mean,liver DSC sd,liver NSD mean,liver NSD low,liver NSD high",
        "fold 0,3,98.5,0.7,93.0,92.1,94.0",
        '"a, b",1,98.4,,,,',
        "average,4,98.4,0.9,93.0,,",
    ]


def test_people_see_the_parts_together_and_what_is_unknown_not_at_all() -> None:
    assert TABLE.shown == [
        ["fold 0", "3", "98.5 ± 0.7", "93.0 (92.1 to 94.0)"],
        ["a, b", "1", "98.4", "–"],
        ["average", "4", "98.4 ± 0.9", "93.0"],
    ]
    assert TABLE.groups == [("", 2), ("liver", 2)]


def test_latex_has_booktabs_rules_and_no_bare_special_characters() -> None:
    assert as_latex(TABLE).splitlines() == [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        r"\caption{50 \% \& more\_}",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"\multicolumn{2}{c}{} & \multicolumn{2}{c}{liver} \\",
        r"\cmidrule(lr){3-4}",
        r" & cases & DSC & NSD \\",
        r"\midrule",
        r"fold 0 & 3 & 98.5 $\pm$ 0.7 & 93.0 (92.1 to 94.0) \\",
        r"a, b & 1 & 98.4 & -- \\",
        r"\midrule",
        r"average & 4 & 98.4 $\pm$ 0.9 & 93.0 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_both_files_are_written_whole(tmp_path: Path) -> None:
    write_tables([TABLE], tmp_path / "tables")
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["scores.csv", "scores.tex"]
    assert (tmp_path / "tables" / "scores.csv").read_text() == as_csv(TABLE)
