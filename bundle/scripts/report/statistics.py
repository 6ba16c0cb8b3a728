"""Means over cases and paired differences, with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

import numpy as np
from scipy.stats import bootstrap

from ..metrics.dsc_nsd import ScoreRow

Measure = Literal["dsc", "nsd"]
MEASURES: tuple[Measure, ...] = ("dsc", "nsd")
CONFIDENCE, RESAMPLES, SEED = 0.95, 9999, 0
ALL_ORGANS = "mean"  # of each case's organs


@dataclass(frozen=True)
class Estimate:
    """A mean over cases with its interval; without one if there is but one case."""

    mean: float
    interval: tuple[float, float] | None
    cases: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean with its 95 % bootstrap interval over cases (percentiles of 9999 resamples, a fixed seed).

    It tells how far the mean may lie off because these cases were at hand and not others of their kind. What another
    training would change isn't in it. With fewer than some ten cases it is too narrow.

    Args:
        values: one a case, one or more.
    """
    if len(values) < 2:
        return Estimate(values[0], None, 1)
    interval = bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(SEED),
    ).confidence_interval
    return Estimate(fmean(values), (float(interval.low), float(interval.high)), len(values))


def by_case(rows: Sequence[ScoreRow], organ: str, measure: Measure) -> dict[str, float]:
    """Return each case's score of an organ, or with `ALL_ORGANS` the mean of its organs, in percent."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        if organ in (row["organ"], ALL_ORGANS):
            scores.setdefault(row["case"], []).append(100 * row[measure])
    return {case: fmean(values) for case, values in scores.items()}


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation, None for one value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def average_of_folds(folds: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    """Return the paper's average row: the mean of the folds' means, and the mean of their standard deviations.

    So are the numbers of its Table 2: 0.92 of the liver is the mean of 0.7, 1.1, 0.7, 1.0 and 1.1. The deviation isn't
    that of all cases, which is larger where folds differ.
    """
    deviations = [sd for _, sd in folds if sd is not None]
    return fmean(mean for mean, _ in folds), fmean(deviations) if deviations else None


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> Estimate:
    """Return how much higher the second is over the cases that both have; paired, so each case against itself.

    Args:
        first, second: case -> score; one case or more is in both.
    """
    return estimate([second[case] - first[case] for case in sorted(first.keys() & second.keys())])
