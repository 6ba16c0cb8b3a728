from __future__ import annotations

import numpy as np
import pytest

from cyclic_committee.scripts.audit.usual_values import too_many, usual_value


@pytest.mark.parametrize("wrong_share", [0.0, 0.1, 0.25, 0.5, 0.6])
def test_the_usual_value_is_that_of_the_right_ones_however_many_are_wrong(wrong_share: float) -> None:
    values, deviations = [], []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        wrong = round(100 * wrong_share)
        mixed = np.concatenate([rng.normal(0.1, 0.01, 100 - wrong), rng.uniform(0.1, 0.9, wrong)])
        usual = usual_value(rng.permutation(mixed))
        values.append(usual.value)
        deviations.append(usual.deviation)
    assert np.median(values) == pytest.approx(0.1, abs=0.004)
    assert np.median(deviations) == pytest.approx(0.01, rel=0.3)


def test_a_median_of_all_is_moved_by_the_wrong_ones() -> None:
    rng = np.random.default_rng(0)
    mixed = np.concatenate([rng.normal(0.1, 0.01, 40), rng.uniform(0.3, 0.9, 60)])
    assert np.median(mixed) > 0.3
    assert usual_value(mixed).value == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(("values", "expected"), [([0.3], 0.3), ([0.5] * 4, 0.5), ([0.1, 0.11, 0.9], 0.11)])
def test_few_values_have_a_usual_one_too(values: list[float], expected: float) -> None:
    usual = usual_value(np.array(values))
    assert usual.value == pytest.approx(expected)
    assert usual.deviation >= 0


def test_more_than_six_in_ten_are_too_many_to_tell() -> None:
    assert not too_many(6, 10)
    assert too_many(7, 10)
