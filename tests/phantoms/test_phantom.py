from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from cyclic_committee.scripts.phantoms.phantom import LABELS, Phantom, make_phantom

SEEDS = range(5)
ID_OF = {name: label for label, name in LABELS.items()}


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed) for seed in SEEDS]


def hu_of(phantom: Phantom, organ: str) -> np.ndarray:
    """The organ without its outermost voxels, which are partly something else."""
    inside = ndimage.binary_erosion(phantom.label == ID_OF[organ])
    return phantom.image_hu[inside]


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Of two histograms: 0 for none in common, 1 for the same."""
    edges = np.arange(-1050, 1000, 10)
    shares = [np.histogram(hu, edges)[0] / hu.size for hu in (first, second)]
    return float(np.minimum(*shares).sum())


def centre_mm(phantom: Phantom, organ: str) -> np.ndarray:
    return (phantom.affine @ [*np.argwhere(phantom.label == ID_OF[organ]).mean(0), 1])[:3]


def test_the_same_seed_gives_the_same_voxels(phantoms: list[Phantom]) -> None:
    again = make_phantom(SEEDS[0])
    np.testing.assert_array_equal(again.image_hu, phantoms[0].image_hu)
    np.testing.assert_array_equal(again.label, phantoms[0].label)
    np.testing.assert_array_equal(again.affine, phantoms[0].affine)


def test_different_seeds_give_different_cases(phantoms: list[Phantom]) -> None:
    assert len({phantom.image_hu.tobytes() for phantom in phantoms}) == len(phantoms)
    assert len({phantom.label.tobytes() for phantom in phantoms}) == len(phantoms)
    assert len({phantom.label.shape for phantom in phantoms}) > 1


@pytest.mark.parametrize(("organ", "least"), [("liver", 5000), ("kidney", 2000), ("spleen", 600), ("pancreas", 150)])
def test_every_organ_is_in_every_case(phantoms: list[Phantom], organ: str, least: int) -> None:
    assert min(np.count_nonzero(phantom.label == ID_OF[organ]) for phantom in phantoms) >= least


@pytest.mark.parametrize(("organ", "pieces"), [("liver", 1), ("kidney", 2), ("spleen", 1), ("pancreas", 1)])
def test_an_organ_has_no_debris(phantoms: list[Phantom], organ: str, pieces: int) -> None:
    assert {ndimage.label(phantom.label == ID_OF[organ])[1] for phantom in phantoms} == {pieces}


def test_the_arrays_are_what_a_nifti_of_flare21_holds(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert phantom.image_hu.dtype == np.int16
        assert phantom.label.dtype == np.uint8
        assert phantom.image_hu.shape == phantom.label.shape
        assert set(np.unique(phantom.label)) == {0, *LABELS}
        assert phantom.image_hu.min() >= -1024


def test_the_grid_has_the_size_of_a_small_abdominal_ct(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        x, y, z = phantom.label.shape
        assert 104 <= x <= 124
        assert 84 <= y <= 100
        assert 26 <= z <= 36


def test_the_spacing_is_anisotropic_and_varies(phantoms: list[Phantom]) -> None:
    spacings = np.array([np.diag(phantom.affine)[:3] for phantom in phantoms])
    np.testing.assert_array_equal(spacings[:, 0], spacings[:, 1])
    assert np.all((spacings[:, 0] >= 2.7) & (spacings[:, 0] <= 3.3))
    assert np.all((spacings[:, 2] >= 4) & (spacings[:, 2] <= 6))
    assert np.unique(spacings, axis=0).shape[0] == len(phantoms)
    for phantom in phantoms:
        np.testing.assert_array_equal(phantom.affine[:3, :3], np.diag(np.diag(phantom.affine)[:3]))


@pytest.mark.parametrize(
    ("axis", "less", "more"),
    [
        pytest.param(0, "spleen", "liver", id="liver on the right of the spleen"),
        pytest.param(1, "kidney", "pancreas", id="pancreas in front of the kidneys"),
        pytest.param(2, "kidney", "liver", id="liver above the kidneys"),
        pytest.param(2, "pancreas", "spleen", id="spleen above the pancreas"),
    ],
)
def test_organs_lie_as_in_a_patient(phantoms: list[Phantom], axis: int, less: str, more: str) -> None:
    for phantom in phantoms:
        assert nib.aff2axcodes(phantom.affine) == ("R", "A", "S")
        assert centre_mm(phantom, less)[axis] + 5 < centre_mm(phantom, more)[axis]


def test_a_kidney_lies_on_each_side(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        middle = phantom.label.shape[0] // 2
        kidneys = [np.count_nonzero(half == ID_OF["kidney"]) for half in np.split(phantom.label, [middle])]
        assert min(kidneys) > 0.25 * sum(kidneys)


def test_slices_without_organs_lie_at_both_ends(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert not phantom.label[..., 0].any()
        assert not phantom.label[..., -1].any()


@pytest.mark.parametrize(
    ("organ", "low_hu", "high_hu"),
    [("liver", 60, 180), ("kidney", 80, 260), ("spleen", 60, 200), ("pancreas", 40, 150)],
)
def test_an_organ_is_as_bright_as_in_a_ct(phantoms: list[Phantom], organ: str, low_hu: int, high_hu: int) -> None:
    for phantom in phantoms:
        assert low_hu < hu_of(phantom, organ).mean() < high_hu


def test_a_ct_has_air_fat_soft_tissue_and_bone(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        shares = [
            np.mean((phantom.image_hu >= low) & (phantom.image_hu < high))
            for low, high in [(-1024, -700), (-160, -50), (0, 180), (250, 1500)]
        ]
        assert min(shares) > 0.003
        assert np.median(phantom.image_hu[0]) < -950


@pytest.mark.parametrize(("first", "second"), [("liver", "spleen"), ("liver", "pancreas"), ("spleen", "kidney")])
def test_brightness_alone_does_not_tell_organs_apart(phantoms: list[Phantom], first: str, second: str) -> None:
    pooled = [np.concatenate([hu_of(phantom, organ) for phantom in phantoms]) for organ in (first, second)]
    assert overlap(*pooled) > 0.3


@pytest.mark.parametrize("organ", ["liver", "spleen", "pancreas"])
def test_brightness_alone_does_not_tell_an_organ_from_bowel_and_muscle(phantoms: list[Phantom], organ: str) -> None:
    for phantom in phantoms:
        low, high = np.quantile(hu_of(phantom, organ), (0.1, 0.9))
        alike = (phantom.image_hu > low) & (phantom.image_hu < high) & (phantom.label == 0)
        assert np.count_nonzero(alike) > np.count_nonzero(phantom.label == ID_OF[organ]) / 8


def test_neighbours_touch_in_some_cases(phantoms: list[Phantom]) -> None:
    pairs = [("liver", "kidney"), ("spleen", "kidney"), ("pancreas", "kidney"), ("pancreas", "spleen")]
    touching = {
        (first, second)
        for first, second in pairs
        for phantom in phantoms
        if (ndimage.binary_dilation(phantom.label == ID_OF[first]) & (phantom.label == ID_OF[second])).any()
    }
    assert ("liver", "kidney") in touching
    assert len(touching) >= 3
