from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from cyclic_committee.scripts.errors import BadInput
from cyclic_committee.scripts.metrics import (
    OrganScore,
    as_rows,
    check_tolerance,
    dice,
    organ_names,
    organ_scores,
    surface_dice,
)

CT_LABEL = Path(__file__).parents[1] / "../shared/data/ct_example/label.nii.gz"
ISOTROPIC = (1.0, 1.0, 1.0)
Spacing = tuple[float, float, float]


def empty(shape: tuple[int, int, int] = (6, 5, 4)) -> np.ndarray:
    return np.zeros(shape, dtype=bool)


def box(corner: tuple[int, int, int], size: tuple[int, int, int], shape: tuple[int, int, int]) -> np.ndarray:
    mask = empty(shape)
    mask[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = True
    return mask


def ball(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    grid = np.indices((24, 20, 12))
    scaled = [(x - c) / r for x, c, r in zip(grid, centre, radii, strict=True)]
    return np.sum(np.square(scaled), axis=0) <= 1


def reference_nsd() -> Callable[..., float]:
    package = pytest.importorskip("surface_distance")

    def nsd(prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing, tolerance_mm: float) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses old names of scipy
            distances = package.compute_surface_distances(reference, prediction, spacing_mm)
        return package.compute_surface_dice_at_tolerance(distances, tolerance_mm)

    return nsd


def test_two_empty_masks_agree_perfectly() -> None:
    assert dice(empty(), empty()) == 1
    assert surface_dice(empty(), empty(), spacing_mm=ISOTROPIC) == 1


def test_an_empty_mask_never_agrees_with_a_full_one() -> None:
    full = ~empty()
    for pair in ((full, empty()), (empty(), full)):
        assert dice(*pair) == 0
        assert surface_dice(*pair, spacing_mm=ISOTROPIC) == 0


def test_a_mask_agrees_perfectly_with_itself_even_where_it_fills_the_volume() -> None:
    for mask in (~empty(), box((2, 2, 1), (1, 1, 1), (6, 5, 4)), ball((11, 9, 5), (7, 5, 4))):
        assert dice(mask, mask) == 1
        assert surface_dice(mask, mask, spacing_mm=(0.7, 0.8, 2.5), tolerance_mm=0) == 1


def test_dice_counts_voxels() -> None:
    prediction, reference = box((0, 0, 0), (2, 2, 2), (6, 5, 4)), box((1, 0, 0), (3, 2, 2), (6, 5, 4))
    assert dice(prediction, reference) == 2 * 4 / (8 + 12)


@pytest.mark.parametrize(
    ("step", "spacing_mm", "tolerance_mm", "expected"),
    [
        # a voxel's surface has 8 elements of one area, at its corners: after a step along an axis 4 of them coincide
        # with elements of the other voxel, and the other 4 are as far away as the step is long
        ((0, 0, 1), (1.0, 1.0, 1.0), 1.0, 1.0),
        ((0, 0, 1), (1.0, 1.0, 1.0), 0.999, 0.5),
        ((0, 0, 1), (0.7, 0.7, 2.5), 1.0, 0.5),
        ((1, 0, 0), (0.7, 0.7, 2.5), 1.0, 1.0),
        ((1, 0, 0), (3.0, 1.0, 1.0), 1.0, 0.5),
        # two steps: no corner in common, 4 elements are one voxel away and 4 are two
        ((0, 2, 0), (1.0, 1.0, 1.0), 0.5, 0.0),
        ((0, 2, 0), (1.0, 1.0, 1.0), 1.0, 0.5),
        ((0, 2, 0), (1.0, 1.0, 1.0), 2.0, 1.0),
        # a step along the diagonal: 1 corner of 8 coincides, 3 are one voxel away, 3 the diagonal of a face, 1 that
        # of the voxel
        ((1, 1, 1), (1.0, 1.0, 1.0), 0.9, 1 / 8),
        ((1, 1, 1), (1.0, 1.0, 1.0), 1.0, 4 / 8),
        ((1, 1, 1), (1.0, 1.0, 1.0), 1.5, 7 / 8),
        ((1, 1, 1), (1.0, 1.0, 1.0), 1.75, 1.0),
    ],
)
def test_the_surface_dice_of_two_single_voxels_can_be_worked_out_by_hand(
    step: tuple[int, int, int], spacing_mm: Spacing, tolerance_mm: float, expected: float
) -> None:
    shape = (5, 5, 5)
    for corner in ((0, 0, 0), (1, 1, 1), (2, 2, 2)):  # at the border of the volume, too
        moved = tuple(c + s for c, s in zip(corner, step, strict=True))
        prediction, reference = box(moved, (1, 1, 1), shape), box(corner, (1, 1, 1), shape)
        nsd = surface_dice(prediction, reference, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
        assert nsd == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spacing", [0.1, 0.2, 0.25, 0.5, 1.0])
def test_a_distance_of_exactly_the_tolerance_is_within(spacing: float) -> None:
    steps = round(1 / spacing)
    prediction, reference = box((steps, 0, 0), (12, 1, 1), (24, 1, 1)), box((0, 0, 0), (12, 1, 1), (24, 1, 1))
    assert surface_dice(prediction, reference, spacing_mm=(spacing, 1, 1), tolerance_mm=1.0) == 1
    assert surface_dice(prediction, reference, spacing_mm=(spacing, 1, 1), tolerance_mm=0.999) < 1


def test_the_outside_of_the_volume_is_background() -> None:
    prediction, reference = box((0, 0, 0), (4, 3, 4), (6, 5, 4)), box((0, 1, 0), (6, 4, 4), (6, 5, 4))
    inside = [np.pad(mask, 5) for mask in (prediction, reference)]
    spacing_mm = (0.8, 0.9, 3.0)
    assert surface_dice(prediction, reference, spacing_mm=spacing_mm) == surface_dice(*inside, spacing_mm=spacing_mm)


def test_prediction_and_reference_can_be_exchanged() -> None:
    a, b = ball((11, 9, 5), (7, 5, 4)), ball((12, 9, 6), (8, 4, 4))
    there, back = surface_dice(a, b, spacing_mm=(0.8, 0.8, 2.5)), surface_dice(b, a, spacing_mm=(0.8, 0.8, 2.5))
    assert there == pytest.approx(back, abs=1e-12)


# Computed once with DeepMind's package (surface-distance 0.1, github.com/deepmind/surface-distance).
FROZEN = [
    (ball((11, 9, 5), (7, 5, 4)), ball((12, 9, 6), (8, 4, 4)), (0.8, 0.8, 2.5), 1.0, 0.826466536),
    (ball((11, 9, 5), (7, 5, 4)), ball((12, 9, 6), (8, 4, 4)), (0.8, 0.8, 2.5), 3.0, 1.000000000),
    (ball((11, 9, 5), (7, 5, 4)), ball((11, 10, 5), (7, 5, 4)), (0.9765625, 0.9765625, 5.0), 0.9, 0.649472919),
    (ball((0, 0, 0), (9, 8, 7)), ball((1, 0, 0), (9, 9, 6)), (1.0, 1.0, 1.0), 1.0, 0.993172798),
    (ball((23, 19, 11), (15, 12, 9)), ball((22, 19, 11), (15, 12, 9)), (0.7, 0.7, 1.25), 0.5, 0.916608223),
    (ball((6, 6, 6), (4, 4, 4)), ball((17, 14, 6), (4, 4, 4)), (0.7, 0.7, 1.25), 1.0, 0.000000000),
    (
        box((0, 0, 0), (24, 20, 6), (24, 20, 12)),
        box((0, 0, 0), (24, 20, 12), (24, 20, 12)),
        (0.7, 0.7, 2.5),
        1.0,
        0.659151344,
    ),
    (
        box((4, 4, 4), (10, 8, 5), (24, 20, 12)),
        box((5, 4, 4), (10, 8, 5), (24, 20, 12)),
        (3.0, 1.0, 1.0),
        1.0,
        0.906329092,
    ),
]


@pytest.mark.parametrize(("prediction", "reference", "spacing_mm", "tolerance_mm", "expected"), FROZEN)
def test_the_surface_dice_equals_values_computed_with_deepminds_package(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing, tolerance_mm: float, expected: float
) -> None:
    nsd = surface_dice(prediction, reference, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    assert nsd == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("seed", range(20))
def test_the_surface_dice_equals_deepminds_package_on_random_blobs(seed: int) -> None:
    nsd = reference_nsd()
    random = np.random.default_rng(seed)
    spacing_mm = tuple(random.choice([0.5, 0.6, 0.78125, 0.8, 1, 2.5, 3, 5], 3).tolist())
    tolerance_mm = float(random.choice([0.5, 1, 1, 2, 5]))
    field = ndimage.gaussian_filter(random.normal(size=random.integers(6, 30, 3)), 1.5)
    other = np.roll(field + 0.3 * field.std() * random.normal(size=field.shape), 1, axis=seed % 3)
    threshold = np.quantile(field, random.uniform(0.3, 0.9))
    prediction, reference = other > threshold, field > threshold  # blobs that touch the volume's border
    ours = surface_dice(prediction, reference, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    assert ours == pytest.approx(nsd(prediction, reference, spacing_mm, tolerance_mm), abs=1e-7)


@pytest.mark.parametrize(
    ("step", "spacing_mm", "tolerance_mm"),
    [
        ((1, 1, 0), (0.6, 0.8, 1.0), 1.0),
        ((1, 1, 0), tuple(np.float32([0.6, 0.8, 1.0])), 1.0),  # as headers hold it: sqrt(0.6² + 0.8²) is above 1
        ((3, 0, 0), (0.1, 0.1, 0.1), 0.3),  # 3 * 0.1 is above 0.3
        ((3, 0, 0), (0.7, 0.7, 0.7), 2.1),
        ((10, 0, 0), (0.1, 0.1, 0.1), 1.0),
        ((1, 1, 0), (3.0, 4.0, 5.0), 5.0),
    ],
)
def test_rounding_at_the_tolerance_is_that_of_deepminds_package(
    step: tuple[int, int, int], spacing_mm: Spacing, tolerance_mm: float
) -> None:
    nsd = reference_nsd()
    reference = box((5, 3, 2), (4, 17, 4), (24, 24, 12))
    prediction = np.roll(reference, step, axis=(0, 1, 2))
    ours = surface_dice(prediction, reference, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    assert ours == pytest.approx(nsd(prediction, reference, spacing_mm, tolerance_mm), abs=1e-7)


@pytest.mark.skipif(not CT_LABEL.exists(), reason="the example CT isn't here")
def test_the_surface_dice_equals_deepminds_package_on_real_organs() -> None:
    nsd = reference_nsd()
    labels = np.asarray(nib.load(CT_LABEL).dataobj)
    for label in (1, 2, 3, 4):
        reference = labels == label
        prediction = ndimage.median_filter(np.roll(reference, 1, axis=0), 3)
        ours = surface_dice(prediction, reference, spacing_mm=(0.75, 0.75, 2.5))
        assert ours == pytest.approx(nsd(prediction, reference, (0.75, 0.75, 2.5), 1.0), abs=1e-7)


def test_every_organ_is_scored_by_the_official_rules() -> None:
    labels = {1: "liver", 2: "kidney", 3: "spleen", 4: "pancreas"}
    reference, prediction = np.zeros((6, 5, 4), dtype=np.uint8), np.zeros((6, 5, 4), dtype=np.int64)
    reference[0:2], prediction[0:2] = 1, 1  # found
    reference[3, 0:2] = 2  # missed
    prediction[5, 3:] = 3  # invented
    prediction[4, 4, 3] = 9  # no organ
    assert organ_scores(prediction, reference, labels=labels, spacing_mm=ISOTROPIC) == [
        OrganScore(1, "liver", 1.0, 1.0),
        OrganScore(2, "kidney", 0.0, 0.0),
        OrganScore(3, "spleen", 0.0, 0.0),
        OrganScore(4, "pancreas", 1.0, 1.0),
    ]


def test_the_spacing_and_the_tolerance_reach_the_surface_dice() -> None:
    reference = box((1, 1, 1), (1, 1, 1), (4, 4, 4)).astype(np.uint8)
    prediction = np.roll(reference, 1, axis=2)
    for sizes, tolerance_mm, expected in (((1, 1, 1), 1.0, 1.0), ((1, 1, 3), 1.0, 0.5), ((1, 1, 3), 3.0, 1.0)):
        score = organ_scores(prediction, reference, labels={1: "a"}, spacing_mm=sizes, tolerance_mm=tolerance_mm)[0]
        assert score.nsd == pytest.approx(expected, abs=1e-6)
        assert score.dsc == 0


def test_scores_are_plain_numbers_that_json_can_hold() -> None:
    for pair in ((empty(), empty()), (~empty(), empty()), (ball((11, 9, 5), (7, 5, 4)), ball((12, 9, 6), (8, 4, 4)))):
        assert type(dice(*pair)) is float
        assert type(surface_dice(*pair, spacing_mm=ISOTROPIC)) is float


def test_a_row_is_a_score_with_its_case() -> None:
    rows = as_rows("train_000", [OrganScore(4, "pancreas", 0.5, 0.25)])
    assert rows == [{"case": "train_000", "label": 4, "organ": "pancreas", "dsc": 0.5, "nsd": 0.25}]


def test_label_ids_may_be_strings_as_in_json() -> None:
    assert organ_names({"1": "liver", "4": "pancreas"}) == {1: "liver", 4: "pancreas"}


@pytest.mark.parametrize(
    "labels", [{}, {0: "background"}, {"liver": 1}, ["liver"], None, {1: "kidney", 2: "kidney"}, {"1": "a", 1: "b"}]
)
def test_labels_that_make_no_sense_are_refused(labels: object) -> None:
    with pytest.raises(BadInput, match=r"^labels must"):
        organ_names(labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("tolerance_mm", [-1, float("nan"), float("inf"), 1000])
def test_a_tolerance_that_makes_no_sense_is_refused(tolerance_mm: float) -> None:
    with pytest.raises(BadInput, match="tolerance_mm must be"):
        check_tolerance(tolerance_mm)
    with pytest.raises(BadInput, match="tolerance_mm must be"):
        surface_dice(~empty(), ~empty(), spacing_mm=ISOTROPIC, tolerance_mm=tolerance_mm)


@pytest.mark.parametrize("spacing_mm", [(1, 1), (1, 1, 0), (1, 1, -3), (1, 1, float("nan")), 1.0])
def test_a_spacing_that_makes_no_sense_is_refused(spacing_mm: Spacing) -> None:
    with pytest.raises(BadInput, match="spacing_mm must be"):
        surface_dice(~empty(), ~empty(), spacing_mm=spacing_mm)


@pytest.mark.parametrize("shapes", [((6, 5, 4), (6, 5, 3)), ((6, 5), (6, 5)), ((1, 6, 5, 4), (1, 6, 5, 4))])
def test_masks_of_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    prediction, reference = (np.ones(shape, dtype=bool) for shape in shapes)
    with pytest.raises(BadInput, match="one shape"):
        dice(prediction, reference)
    with pytest.raises(BadInput, match="one shape"):
        surface_dice(prediction, reference, spacing_mm=ISOTROPIC)
