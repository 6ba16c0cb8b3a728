from __future__ import annotations

import pytest
from test_scores import FIRST, run

from cyclic_committee.scripts.report.comparison import comparison_table, in_words, unlike
from cyclic_committee.scripts.report.statistics import Estimate


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            Estimate(1.2, (0.3, 2.1), 48),
            "pancreas: B is higher than A by 1.20 DSC points (95 % interval 0.30 to 2.10; 48 cases).",
        ),
        (
            Estimate(-1.2, (-2.1, -0.3), 48),
            "pancreas: B is lower than A by 1.20 DSC points (95 % interval 0.30 to 2.10; 48 cases).",
        ),
        (
            Estimate(0.4, (-0.2, 1.0), 48),
            "pancreas: no clear difference in DSC. B less A is 0.40 points; the 95 % interval holds 0 "
            "(-0.20 to 1.00; 48 cases).",
        ),
        (
            Estimate(0.4, (0.004, 1.0), 48),  # it reads as 0.00, and then so does the sentence
            "pancreas: no clear difference in DSC. B less A is 0.40 points; the 95 % interval holds 0 "
            "(0.00 to 1.00; 48 cases).",
        ),
        (
            Estimate(1.2, (0.3, 2.1), 9),
            "pancreas: B less A is 1.20 DSC points in these 9 cases, too few to tell how it is in others.",
        ),
        (Estimate(0.0, (0.0, 0.0), 48), "pancreas: the same DSC in all 48 cases."),
        (Estimate(-3.0, None, 1), "pancreas: B less A is -3.00 DSC points in the only case that both have."),
    ],
)
def test_differences_are_said_in_words_that_can_not_be_misread(found: Estimate, words: str) -> None:
    assert in_words(found, "pancreas", "DSC", names=("A", "B")) == words


def test_runs_are_compared_on_the_cases_that_both_have() -> None:
    better = {case: dsc + 0.1 for rows in FIRST.scores.values() for case, dsc in ((r["case"], r["dsc"]) for r in rows)}
    del better["e"]
    table = comparison_table(FIRST, run("B", {0: {**better, "z": 0.1}}))
    assert table is not None
    liver = table.shown[0]
    assert liver[:4] == ["liver", "DSC", "10.00 (10.00 to 10.00)", "4"]
    assert liver[4] == "liver: B less A is 10.00 DSC points in these 4 cases, too few to tell how it is in others."
    assert comparison_table(FIRST, run("B", {0: {"z": 0.1}})) is None


def test_other_data_cases_and_organs_are_said() -> None:
    assert unlike(FIRST, FIRST) == []
    notes = unlike(FIRST, run("B", {0: dict.fromkeys("abxyzw", 0.5)}, organ="lung", data="/data/mr"))
    assert notes == [
        "A and B were run on different data sets (/data/ct and /data/mr). Cases of the same name are taken for the "
        "same.",
        "3 of the 5 cases of A aren't in B: c, d, e.",
        "Only A has liver: the means of organs are of different organs.",
        "4 of the 6 cases of B aren't in A: w, x, y and others.",
        "Only B has lung: the means of organs are of different organs.",
    ]
