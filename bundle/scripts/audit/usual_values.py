"""What is usual among values of which some are those of wrong labels: the densest part of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DENSEST = 0.4  # of the values: as many must be alike, so that up to 60 % may be wrong
LEAST_HELD = 5  # values, where there are few: two that are alike by chance say nothing
MOST_WRONG = 0.6  # of the cases: if more are named, the usual may be what is wrong
Numbers = NDArray[np.float64]


class Usual(NamedTuple):
    """The usual value and the typical deviation from it, which is that of a normal distribution."""

    value: float
    deviation: float


def usual_value(values: Numbers) -> Usual:
    """Return the median of the shortest interval that holds 40 % of some values, and the deviation of what lies below.

    Wrong labels differ more from what a committee sees than right ones, in many ways, while right ones are alike. So a
    median of all is moved by them, and that of the densest part isn't. Values above it may be those of wrong labels, so
    the deviation is taken from those below: 1.4826 times their median distance. Source of the shortest interval's use
    for a mode: Venter (1967); 1.4826 makes a median distance the deviation of a normal distribution.

    Args:
        values: one or more; of less than 13 the interval holds 5, or all.
    """
    ordered = np.sort(values)
    held = min(max(LEAST_HELD, int(np.ceil(DENSEST * len(ordered)))), len(ordered))
    lengths = ordered[held - 1 :] - ordered[: len(ordered) - held + 1]
    first = int(lengths.argmin())
    value = float(np.median(ordered[first : first + held]))
    return Usual(value, 1.4826 * float(np.median(value - ordered[ordered <= value])))


def median_value(values: Numbers) -> Usual:
    """Return the median of some values, and the deviation of all: for slices, whose usual values are spread widely."""
    value = float(np.median(values))
    return Usual(value, 1.4826 * float(np.median(np.abs(values - value))))


def too_many(named: int, cases: int) -> bool:
    """Return whether so many cases are named that nobody can tell which ones are right."""
    return named > MOST_WRONG * cases
