from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from cyclic_committee.scripts.metrics.dsc_nsd import dice
from cyclic_committee.scripts.phantoms.label_noise import (
    CORRUPTIONS,
    GROWTH_MM,
    LOSS_MM,
    WAVE_MM,
    WAY_OFF_MM,
    check_corruptions,
    choose_corruptions,
    corrupt_label,
    corrupt_somehow,
)
from cyclic_committee.scripts.phantoms.phantom import LABELS, make_phantom
from cyclic_committee.scripts.runtime.errors import BadInput

GEOMETRIC = ("dilation", "erosion", "elastic", "shift")
SPACING_MM = (3.0, 2.0, 5.0)
FINE = 0.25  # mm


@pytest.fixture(scope="module")
def label() -> np.ndarray:
    """A phantom's organs, of which two touch, far from the ends of the volume."""
    phantom = make_phantom(1).label
    first, second = (phantom == 1), (phantom == 2)
    assert (ndimage.binary_dilation(first) & second).any()
    return np.pad(phantom, 8)


def corrupted(
    label: np.ndarray, corruption: str, seed: int | Sequence[int] = 0, spacing_mm: Any = SPACING_MM
) -> np.ndarray:
    return corrupt_label(label, corruption=corruption, spacing_mm=spacing_mm, seed=seed)


def half_space(axis: int, *, spacing_mm: tuple[float, ...], size_mm: float = 96) -> np.ndarray:
    """Organ 1 in the lower half along an axis."""
    label = np.zeros([round(size_mm / step) for step in spacing_mm], np.uint8)
    label[tuple(slice(label.shape[axis] // 2) if other == axis else slice(None) for other in range(3))] = 1
    return label


def border_mm(label: np.ndarray, axis: int, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """How far organ 1 has moved its border along an axis, at each place."""
    return (np.count_nonzero(label, axis=axis) - label.shape[axis] // 2) * spacing_mm[axis]


def only_grown_into_background(wrong: np.ndarray, right: np.ndarray) -> None:
    np.testing.assert_array_equal(wrong[right > 0], right[right > 0])
    for organ in LABELS:
        assert np.count_nonzero(wrong == organ) > np.count_nonzero(right == organ)
        far_mm = ndimage.distance_transform_edt(right != organ, sampling=SPACING_MM)
        assert far_mm[wrong == organ].max() <= GROWTH_MM[1] + np.linalg.norm(SPACING_MM) / 2


def only_shrunk(wrong: np.ndarray, right: np.ndarray) -> None:
    assert set(np.unique(wrong[wrong != right])) == {0}
    for organ in LABELS:
        assert 0 < np.count_nonzero(wrong == organ) < np.count_nonzero(right == organ)
        depth_mm = ndimage.distance_transform_edt(right == organ, sampling=SPACING_MM)
        lost = (wrong != organ) & (right == organ)
        assert depth_mm[lost].max() <= LOSS_MM[1] + np.linalg.norm(SPACING_MM) / 2


def bent_at_the_borders(wrong: np.ndarray, right: np.ndarray) -> None:
    assert set(np.unique(wrong)) == set(np.unique(right))
    for organ in LABELS:
        after, before = wrong == organ, right == organ
        assert (after & ~before).any()
        assert (before & ~after).any()
        assert 0.6 < np.count_nonzero(after) / np.count_nonzero(before) < 1.6
    changed = wrong != right
    at_border = ndimage.morphological_gradient(right, size=3) > 0
    assert ndimage.distance_transform_edt(~at_border, sampling=SPACING_MM)[changed].max() < 4 * WAVE_MM[1]


def one_organ_gone(wrong: np.ndarray, right: np.ndarray) -> None:
    (gone,) = set(np.unique(right)) - set(np.unique(wrong))
    np.testing.assert_array_equal(wrong, np.where(right == gone, 0, right))


def two_organs_exchanged(wrong: np.ndarray, right: np.ndarray) -> None:
    first, second = set(np.unique(right[wrong != right]))
    assert 0 not in (first, second)
    np.testing.assert_array_equal(wrong == first, right == second)
    np.testing.assert_array_equal(wrong == second, right == first)
    others = ~np.isin(right, (first, second))
    np.testing.assert_array_equal(wrong[others], right[others])


def moved_as_a_whole(wrong: np.ndarray, right: np.ndarray) -> None:
    steps = np.argwhere(wrong).min(0) - np.argwhere(right).min(0)
    np.testing.assert_array_equal(wrong, np.roll(right, steps, axis=(0, 1, 2)))
    rounding_mm = np.linalg.norm(SPACING_MM) / 2
    way_mm = np.linalg.norm(steps * SPACING_MM)
    assert WAY_OFF_MM[0] - rounding_mm <= way_mm <= WAY_OFF_MM[1] + rounding_mm
    assert steps.any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("corruption", "check"),
    [
        ("dilation", only_grown_into_background),
        ("erosion", only_shrunk),
        ("elastic", bent_at_the_borders),
        ("missing_organ", one_organ_gone),
        ("swapped_organs", two_organs_exchanged),
        ("shift", moved_as_a_whole),
    ],
)
def test_a_way_does_what_its_name_says_and_no_more(
    label: np.ndarray, corruption: str, check: Callable[[np.ndarray, np.ndarray], None], seed: int
) -> None:
    before = label.copy()
    wrong = corrupted(label, corruption, seed)
    np.testing.assert_array_equal(label, before)
    assert wrong.shape == label.shape
    assert wrong.dtype == np.uint8
    assert not np.array_equal(wrong, label)
    check(wrong, label)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_seed_gives_the_same_corruption_always_and_others_give_others(label: np.ndarray, corruption: str) -> None:
    results = [corrupted(label, corruption, seed).tobytes() for seed in (*range(6), 0)]
    assert results[0] == results[-1]
    assert len(set(results)) >= 3


@pytest.mark.parametrize(
    ("corruption", "least", "most"),
    [
        ("dilation", 0.6, 0.92),
        ("erosion", 0.5, 0.9),
        ("elastic", 0.55, 0.9),
        ("shift", 0.55, 0.9),
        ("missing_organ", 0.75, 0.75),
        ("swapped_organs", 0.5, 0.5),
    ],
)
def test_a_corrupted_phantom_is_clearly_wrong_but_still_a_label(corruption: str, least: float, most: float) -> None:
    for seed in range(3):
        phantom = make_phantom(seed)
        wrong = corrupted(phantom.label, corruption, seed, np.diag(phantom.affine)[:3].tolist())
        assert least <= np.mean([dice(wrong == organ, phantom.label == organ) for organ in LABELS]) <= most


@pytest.mark.parametrize(("corruption", "sign", "limits_mm"), [("dilation", 1, GROWTH_MM), ("erosion", -1, LOSS_MM)])
@pytest.mark.parametrize("seed", range(4))
def test_growth_and_loss_are_millimetres_along_every_axis(
    corruption: str, sign: int, limits_mm: tuple[float, float], seed: int
) -> None:
    amounts_mm = []
    for axis in range(3):
        for coarse_mm in (1.0, 4.0):
            spacing_mm = tuple(FINE if other == axis else coarse_mm for other in range(3))
            wrong = corrupted(half_space(axis, spacing_mm=spacing_mm, size_mm=16), corruption, seed, spacing_mm)
            amounts_mm += np.unique(sign * border_mm(wrong, axis, spacing_mm)).tolist()
    assert limits_mm[0] - FINE <= min(amounts_mm) <= max(amounts_mm) <= limits_mm[1] + FINE
    assert len(set(amounts_mm)) == 1


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("step_mm", [0.75, 3.0])
def test_waves_are_millimetres_high_and_wide(axis: int, step_mm: float) -> None:
    spacing_mm = tuple(step_mm if other == axis else 2.0 for other in range(3))
    right = half_space(axis, spacing_mm=spacing_mm)
    borders = [border_mm(corrupted(right, "elastic", seed, spacing_mm), axis, spacing_mm) for seed in range(8)]
    heights_mm = np.sqrt(np.mean(np.square(borders), axis=(1, 2)))  # (seeds,)
    assert WAVE_MM[0] - 1 <= heights_mm.mean() <= WAVE_MM[1] + 1
    # neighbours 2 mm apart move alike, places farther apart than two wave lengths don't
    near, far = (np.corrcoef(np.ravel(borders), np.ravel(np.roll(borders, n, axis=1)))[0, 1] for n in (1, 24))
    assert near > 0.9
    assert far < 0.5


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.5, 0.5, 5.0), (4.0, 0.7, 0.7)])
def test_a_shift_is_millimetres_long(spacing_mm: tuple[float, float, float]) -> None:
    right = np.zeros([round(40 / step) for step in spacing_mm], np.uint8)
    middle = np.array(right.shape) // 2
    right[tuple(middle)] = 1
    for seed in range(20):
        (place,) = np.argwhere(corrupted(right, "shift", seed, spacing_mm))
        way_mm = np.linalg.norm((place - middle) * spacing_mm)
        rounding_mm = np.linalg.norm(spacing_mm) / 2
        assert WAY_OFF_MM[0] - rounding_mm <= way_mm <= WAY_OFF_MM[1] + rounding_mm


def test_a_shift_is_one_voxel_at_least() -> None:
    right = np.zeros((5, 5, 5), np.uint8)
    right[2, 2, 2] = 1
    for seed in range(10):
        (place,) = np.argwhere(corrupted(right, "shift", seed, (50.0, 50.0, 50.0)))
        assert np.abs(place - 2).sum() == 1


def test_a_shift_brings_background_in_and_loses_what_leaves() -> None:
    right = np.arange(1, 20 * 20 * 20 + 1).reshape(20, 20, 20) % 250 + 1
    for seed in range(10):
        wrong = corrupted(right.astype(np.uint8), "shift", seed, (2.0, 2.0, 2.0))
        inside = np.argwhere(wrong)
        low, high = inside.min(0), inside.max(0) + 1
        kept = tuple(slice(*ends) for ends in zip(low, high, strict=True))
        assert np.count_nonzero(wrong) == np.prod(high - low) < wrong.size
        assert all(start == 0 or end == 20 for start, end in zip(low, high, strict=True))
        steps = np.where(low > 0, low, high - 20)
        source = tuple(slice(*ends) for ends in zip(low - steps, high - steps, strict=True))
        np.testing.assert_array_equal(wrong[kept], right[source])


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 2, 1), (1, 9, 1), (3, 3, 3)])
def test_an_organ_never_erodes_away(size: tuple[int, int, int]) -> None:
    right = np.zeros((12, 12, 12), np.uint8)
    right[tuple(slice(2, 2 + n) for n in size)] = 1
    right[9:, 9:, 9:] = 2
    for seed in range(5):
        wrong = corrupted(right, "erosion", seed, (1.0, 1.0, 1.0))
        assert set(np.unique(wrong)) == {0, 1, 2}
    if size == (3, 3, 3):
        assert np.argwhere(wrong == 1).tolist() == [[3, 3, 3]]  # the deepest


def test_between_two_organs_the_nearer_one_grows() -> None:
    right = np.zeros((20, 4, 4), np.uint8)
    right[:8], right[12:] = 1, 2
    for seed in range(10):
        wrong = corrupted(right, "dilation", seed, (2.0, 2.0, 2.0))
        assert wrong[8:12, 0, 0].tolist() in ([1, 0, 0, 2], [1, 1, 2, 2])


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("value", [0, 3])
def test_a_volume_of_one_value_is_no_trouble(corruption: str, value: int) -> None:
    right = np.full((6, 5, 1), value, np.uint8)
    wrong = corrupted(right, corruption)
    assert set(np.unique(wrong)) <= {0, value}
    if value == 0 or corruption != "shift":
        np.testing.assert_array_equal(wrong, right)


@pytest.mark.parametrize("first", ["swapped_organs", "missing_organ"])
def test_a_way_that_needs_two_organs_gives_way_to_another(first: str) -> None:
    right = np.zeros((12, 12, 12), np.uint8)
    right[3:9, 3:9, 3:9] = 4
    others = set()
    for seed in range(12):
        wrong, corruption = corrupt_somehow(
            right, first=first, corruptions=tuple(CORRUPTIONS), spacing_mm=(3.0, 3.0, 3.0), seed=seed
        )
        np.testing.assert_array_equal(
            wrong, corrupt_label(right, corruption=corruption, spacing_mm=(3.0, 3.0, 3.0), seed=seed)
        )
        assert not np.array_equal(wrong, right)
        assert wrong.any()
        others.add(corruption)
    assert others <= set(GEOMETRIC)
    assert len(others) > 1


def test_a_way_that_fits_is_kept(label: np.ndarray) -> None:
    for corruption in CORRUPTIONS:
        wrong, done = corrupt_somehow(
            label, first=corruption, corruptions=tuple(CORRUPTIONS), spacing_mm=SPACING_MM, seed=(5, 2)
        )
        assert done == corruption
        np.testing.assert_array_equal(wrong, corrupted(label, corruption, (5, 2)))


@pytest.mark.parametrize(
    ("organs", "corruptions"),
    [((), tuple(CORRUPTIONS)), ((1,), ("swapped_organs",)), ((2,), ("missing_organ", "swapped_organs"))],
)
def test_a_label_that_no_way_fits_stays_and_is_said_to_be_unchanged(
    organs: tuple[int, ...], corruptions: tuple[str, ...]
) -> None:
    right = np.zeros((8, 8, 8), np.uint8)
    for organ in organs:
        right[organ : organ + 3] = organ
    for first in corruptions:
        wrong, corruption = corrupt_somehow(right, first=first, corruptions=corruptions, spacing_mm=SPACING_MM, seed=0)
        assert corruption == ""
        np.testing.assert_array_equal(wrong, right)


@pytest.mark.parametrize(
    ("share", "cases", "count"),
    [
        (0, 10, 0),
        (1, 10, 10),
        (0.3, 10, 3),
        (0.25, 10, 3),  # a half is rounded up,
        (0.35, 10, 4),  # always
        (0.145, 100, 15),  # 0.145 * 100 is 14.499999999999998 in binary
        (0.24, 10, 2),
        (0.04, 10, 0),
        (0.5, 1, 1),
        (0.5, 0, 0),
    ],
)
def test_the_share_is_exact(share: float, cases: int, count: int) -> None:
    names = [f"case_{number}" for number in range(cases)]
    for seed in range(3):
        chosen = choose_corruptions(names, share=share, seed=seed)
        assert len(chosen) == count
        assert set(chosen) <= set(names)
        assert set(chosen.values()) <= set(CORRUPTIONS)


@pytest.mark.parametrize(
    ("cases", "corruptions"), [(12, tuple(CORRUPTIONS)), (20, tuple(CORRUPTIONS)), (7, ("shift", "erosion"))]
)
def test_ways_are_spread_evenly(cases: int, corruptions: tuple[str, ...]) -> None:
    names = [f"case_{number}" for number in range(cases)]
    for seed in range(5):
        counts = Counter(choose_corruptions(names, share=1, corruptions=corruptions, seed=seed).values())
        assert set(counts) == set(corruptions)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_the_choice_depends_on_the_seed_and_not_on_any_order() -> None:
    names = [f"case_{number}" for number in range(30)]
    chosen = choose_corruptions(names, share=0.4, seed=3)
    again = choose_corruptions(names[::-1], share=0.4, corruptions=tuple(CORRUPTIONS)[::-1], seed=3)
    assert list(chosen.items()) == list(again.items())
    others = [choose_corruptions(names, share=0.4, seed=seed) for seed in range(4, 8)]
    assert all(set(other) != set(chosen) for other in others)
    firsts = {choose_corruptions(["a"], share=1, seed=seed)["a"] for seed in range(30)}
    assert len(firsts) > 3  # which corruption a case gets is drawn, too


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), True, "half", None])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(BadInput, match=r"^share: must be in \[0, 1\], got"):
        choose_corruptions(["a", "b"], share=share, seed=0)


@pytest.mark.parametrize("corruptions", [("shift", "blur"), "blur", (), ("shift", "shift"), True, None, (["shift"],)])
def test_ways_that_are_none_are_refused(corruptions: Any) -> None:
    with pytest.raises(BadInput, match=r"^corruptions: must be one or more of dilation, .*shift, each once, got"):
        check_corruptions(corruptions)
    with pytest.raises(BadInput, match=r"^corruptions: "):
        choose_corruptions(["a", "b"], share=0.5, corruptions=corruptions, seed=0)


def test_one_way_may_be_given_by_its_name() -> None:
    assert check_corruptions("shift") == ("shift",)
    assert choose_corruptions(["a", "b"], share=1, corruptions="shift", seed=0) == {"a": "shift", "b": "shift"}
