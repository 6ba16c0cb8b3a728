from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
from conftest import CT_EXAMPLE
from monai.metrics.utils import get_code_to_measure_table
from scipy import ndimage

from cyclic_committee.scripts.metrics.dsc_nsd import (
    OrganScore,
    as_rows,
    check_tolerance,
    crop_to_foreground,
    dice,
    organ_names,
    organ_scores,
    surface_dice,
)
from cyclic_committee.scripts.runtime.errors import BadInput

CT_LABEL = CT_EXAMPLE / "label.nii.gz"
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


def plain_surface_dice(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing, tolerance_mm: float
) -> float:
    """Compare every element of one surface with every one of the other, in float64."""
    areas, kernel = (table.numpy() for table in get_code_to_measure_table(list(spacing_mm), device="cpu"))
    codes = []
    for mask in (prediction, reference):
        padded = np.pad(mask, 1).astype(int)
        codes.append(ndimage.correlate(padded, kernel.reshape(2, 2, 2).astype(int), mode="constant"))
    places = [np.argwhere((code > 0) & (code < 255)) for code in codes]
    steps = places[0][:, None] - places[1][None]
    within = np.sqrt(((steps * np.asarray(spacing_mm, dtype=np.float64)) ** 2).sum(axis=-1)) <= tolerance_mm
    near = [within.any(axis=1), within.any(axis=0)]
    weights = [areas[code[tuple(place.T)]].astype(float) for code, place in zip(codes, places, strict=True)]
    return float(sum(w[n].sum() for w, n in zip(weights, near, strict=True)) / sum(w.sum() for w in weights))


def random_blobs(seed: int, *, sizes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return two masks that resemble each other, touch the border, and lie in memory in one of several orders."""
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.normal(size=random.integers(*sizes, 3)), random.uniform(0.5, 2))
    other = np.roll(field + 0.3 * field.std() * random.normal(size=field.shape), seed % 4, axis=seed % 3)
    threshold = np.quantile(field, random.uniform(0.3, 0.95))
    prediction, reference = other > threshold, field > threshold
    prediction.flat[seed % prediction.size] = reference.flat[-1] = True  # neither is empty
    ways: list[Callable[[np.ndarray], np.ndarray]] = [
        np.ascontiguousarray,
        np.asfortranarray,
        lambda mask: np.ascontiguousarray(mask.transpose(1, 2, 0)).transpose(2, 0, 1),
        lambda mask: np.repeat(mask, 2, axis=1)[:, ::2],
        lambda mask: np.asfortranarray(mask[::-1, :, ::-1])[::-1, :, ::-1],
    ]
    return ways[seed % 5](prediction), ways[seed // 5 % 5](reference)


SPACINGS_MM = [0.3, 0.5, 0.6, 0.78125, 0.8, 1, 2, 2.5, 3, 5, 8]
SEEDS = [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 60))]
TOLERANCES_MM = [0, 0.5, 1, 1, 2, 3, 4, 5, 7, 10, 15, 20]


def random_settings(seed: int) -> tuple[Spacing, float]:
    random = np.random.default_rng(seed + 1000)
    x, y, z = random.choice(SPACINGS_MM, 3).tolist()
    return (x, y, z), float(random.choice(TOLERANCES_MM))


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


@pytest.mark.parametrize("seed", SEEDS)
def test_the_surface_dice_equals_deepminds_package_on_random_blobs(seed: int) -> None:
    nsd = reference_nsd()
    prediction, reference = random_blobs(seed, sizes=(3, 30))
    spacing_mm, tolerance_mm = random_settings(seed)
    ours = surface_dice(prediction, reference, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    assert ours == pytest.approx(nsd(prediction, reference, spacing_mm, tolerance_mm), abs=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_surface_dice_equals_that_of_all_pairs_of_elements(seed: int) -> None:
    prediction, reference = random_blobs(seed, sizes=(1, 9))
    spacing_mm, tolerance_mm = random_settings(seed)
    ours = surface_dice(prediction, reference, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    assert ours == pytest.approx(plain_surface_dice(prediction, reference, spacing_mm, tolerance_mm), abs=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("tolerance_mm", [2.0, 7.0, 20.0])
def test_parts_that_lie_apart_are_near_from_the_tolerance_on(axis: int, tolerance_mm: float) -> None:
    gap_mm = 2.0 * np.arange(1, 12)  # between two voxels so many voxels of 2 mm apart, along any axis
    for voxels, nearest_mm in enumerate(gap_mm, start=2):
        shape = [1, 1, 1]
        shape[axis] = voxels + 1
        prediction, reference = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        prediction.flat[0] = reference.flat[-1] = True
        nsd = surface_dice(prediction, reference, spacing_mm=(2.0, 2.0, 2.0), tolerance_mm=tolerance_mm)
        # 4 corners of each voxel face the other voxel, 4 are a voxel further away
        expected = 0.5 * (nearest_mm <= tolerance_mm) + 0.5 * (nearest_mm + 2 <= tolerance_mm)
        assert nsd == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("step", "spacing_mm", "tolerance_mm"),
    [
        ((1, 1, 0), (0.6, 0.8, 1.0), 1.0),
        ((1, 1, 0), tuple(np.float32([0.6, 0.8, 1.0])), 1.0),  # as headers hold it: sqrt(0.6² + 0.8²) is above 1
        ((3, 0, 0), (0.1, 0.1, 0.1), 0.3),  # 3 * 0.1 is above 0.3
        ((3, 0, 0), (0.7, 0.7, 0.7), 2.1),
        ((10, 0, 0), (0.1, 0.1, 0.1), 1.0),
        ((1, 1, 0), (3.0, 4.0, 5.0), 5.0),
        ((3, 4, 0), (0.7, 0.7, 0.7), 3.5),
        ((2, 3, 6), (0.9, 0.9, 0.9), 6.3),
        ((6, 3, 2), tuple(np.float32([0.9, 0.9, 0.9])), 6.3),
        ((6, 0, 0), (1.1, 0.3, 0.3), 6.6),
        ((0, 0, 4), (0.8, 0.8, 4.9), 19.6),
    ],
)
def test_rounding_at_the_tolerance_is_that_of_deepminds_package(
    step: tuple[int, int, int], spacing_mm: Spacing, tolerance_mm: float
) -> None:
    nsd = reference_nsd()
    reference = box((5, 3, 2), (4, 17, 4), (24, 24, 12))
    prediction = np.roll(reference, step, axis=(0, 1, 2))
    for order in ("C", "F"):
        masks = [np.asarray(mask, order=order) for mask in (prediction, reference)]
        ours = surface_dice(*masks, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
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


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_organs_scores_are_those_of_its_masks(kind: type, order: Literal["C", "F"]) -> None:
    random = np.random.default_rng(3)
    reference = ndimage.zoom(random.integers(0, 4, (4, 3, 3)), 5, order=0)  # organs that touch each other
    prediction = np.where(random.random(reference.shape) < 0.1, 0, np.roll(reference, 1, axis=1))
    labels = {3: "a", 1: "b", 200: "c"}
    scores = organ_scores(
        np.asarray(prediction, dtype=kind, order=order),
        reference.astype(np.uint8),
        labels=labels,
        spacing_mm=(0.8, 0.9, 2.5),
        tolerance_mm=2.0,
    )
    assert [(score.label, score.organ) for score in scores] == list(labels.items())
    for score in scores:
        masks = prediction == score.label, reference == score.label
        assert score.dsc == dice(*masks)
        assert score.nsd == surface_dice(*masks, spacing_mm=(0.8, 0.9, 2.5), tolerance_mm=2.0)
    assert 0 < scores[0].nsd < 1


def test_label_maps_are_left_as_they_are() -> None:
    prediction, reference = np.full((4, 4, 4), 1, dtype=np.uint8), np.full((4, 4, 4), 2, dtype=np.uint8)
    for ids in (prediction, reference):
        ids.setflags(write=False)
    scores = organ_scores(prediction, reference, labels={1: "a", 2: "b"}, spacing_mm=ISOTROPIC)
    assert [(score.dsc, score.nsd) for score in scores] == [(0, 0), (0, 0)]


def test_label_maps_of_other_shapes_are_refused() -> None:
    with pytest.raises(BadInput, match="one shape"):
        organ_scores(np.ones((4, 4, 4), int), np.ones((4, 4, 3), int), labels={1: "a"}, spacing_mm=ISOTROPIC)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], (0, 0, 0)),
        ([(2, 3, 1)], (1, 1, 1)),
        ([(0, 0, 0), (5, 4, 3)], (6, 5, 4)),
        ([(1, 0, 2), (3, 4, 2)], (3, 5, 1)),
    ],
)
def test_volumes_are_cut_to_what_either_of_them_holds(found: list[Any], expected: tuple[int, ...]) -> None:
    prediction, reference = np.zeros((2, 6, 5, 4), dtype=np.uint8)
    for number, place in enumerate(found):
        (prediction, reference)[number % 2][place] = 7
    cut = crop_to_foreground(prediction, reference)
    assert [volume.shape for volume in cut] == [expected, expected]
    assert [volume.sum() for volume in cut] == [prediction.sum(), reference.sum()]


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
