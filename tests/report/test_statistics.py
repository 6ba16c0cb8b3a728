from __future__ import annotations

from statistics import fmean, stdev

import numpy as np
import pytest

from cyclic_committee.scripts.metrics.dsc_nsd import ScoreRow
from cyclic_committee.scripts.report.statistics import (
    ALL_ORGANS,
    average_of_folds,
    by_case,
    difference,
    estimate,
    mean_and_sd,
)

PAPER = {  # Table 2 of the paper: each fold's DSC of the liver and of the spleen, and the average row
    "liver": ([(98.5, 0.7), (98.4, 1.1), (98.5, 0.7), (98.4, 1.0), (98.4, 1.1)], (98.4, 0.92)),
    "spleen": ([(98.1, 1.5), (98.0, 1.7), (97.9, 2.5), (96.7, 11.7), (97.8, 2.0)], (97.7, 3.88)),
}


@pytest.mark.parametrize("organ", PAPER)
def test_the_average_row_is_the_papers(organ: str) -> None:
    folds, (mean, sd) = PAPER[organ]
    found = average_of_folds(folds)
    assert found == (pytest.approx(mean, abs=0.05), pytest.approx(sd, abs=0.005))


def test_deviations_are_those_of_samples_and_unknown_for_one_case() -> None:
    assert mean_and_sd([1.0, 2.0, 4.0]) == (fmean([1, 2, 4]), stdev([1, 2, 4]))
    assert mean_and_sd([3.0]) == (3.0, None)
    assert average_of_folds([(1.0, None), (3.0, 2.0)]) == (2.0, 2.0)
    assert average_of_folds([(1.0, None)]) == (1.0, None)


def test_the_interval_is_that_of_a_mean_over_cases() -> None:
    values = np.random.default_rng(3).normal(80, 10, 400).tolist()
    found = estimate(values)
    assert found.interval is not None
    low, high = found.interval
    half = 1.96 * stdev(values) / 20
    assert (found.mean - low, high - found.mean) == (pytest.approx(half, rel=0.08), pytest.approx(half, rel=0.08))
    assert estimate(values) == found  # the seed is fixed
    assert estimate([5.0]).interval is None
    assert estimate([5.0, 5.0]).interval == (5.0, 5.0)


def test_a_difference_is_paired() -> None:
    random = np.random.default_rng(1)
    first = {f"case {k}": value for k, value in enumerate(random.normal(80, 10, 30).tolist())}
    second = {case: value + 1 + random.normal(0, 0.1) for case, value in first.items()}
    found = difference(first, {**second, "another": 0.0})
    assert found.cases == 30
    assert found.interval is not None
    assert 0.9 < found.interval[0] < found.mean < found.interval[1] < 1.1  # cases differ by 10, pairs by 0.1


def test_a_cases_mean_is_over_its_organs() -> None:
    rows: list[ScoreRow] = [
        {"case": "a", "label": 1, "organ": "liver", "dsc": 0.9, "nsd": 0.5},
        {"case": "a", "label": 2, "organ": "spleen", "dsc": 0.7, "nsd": 0.1},
        {"case": "b", "label": 1, "organ": "liver", "dsc": 0.6, "nsd": 0.2},
    ]
    assert by_case(rows, ALL_ORGANS, "dsc") == {"a": pytest.approx(80), "b": pytest.approx(60)}
    assert by_case(rows, "spleen", "nsd") == {"a": pytest.approx(10)}
