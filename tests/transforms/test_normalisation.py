from __future__ import annotations

import pytest
import torch

from cyclic_committee.scripts.runtime.errors import BadInput
from cyclic_committee.scripts.transforms.normalisation import (
    ClipAndStandardise,
    StandardiseImage,
    fit_channels,
    nonzero_box,
)


def test_ct_is_clipped_and_standardised_by_the_data_sets_numbers() -> None:
    image = torch.tensor([-1000.0, -16.0, 100.0, 270.0, 3000.0])
    normalised = ClipAndStandardise(clip=[-16, 270], mean=100, sd=50).fit(image)(image)
    assert normalised.tolist() == pytest.approx([-2.32, -2.32, 0, 3.4, 3.4])


def test_settings_given_as_lists_or_tuples_look_the_same() -> None:
    assert repr(ClipAndStandardise([-16, 270], 1, 2)) == repr(ClipAndStandardise((-16.0, 270.0), 1, 2))


@pytest.mark.parametrize(
    ("clip", "sd", "message"), [([5, 5], 1, "clip must be"), ([1], 1, "clip must be"), ([0, 1], 0, "sd must be")]
)
def test_settings_that_cannot_be_are_refused(clip: list[float], sd: float, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ClipAndStandardise(clip, 0, sd)


def test_an_image_is_standardised_by_itself_whatever_part_is_asked_for() -> None:
    image = 100 + 30 * torch.randn(8, 9, 10)
    normalise = StandardiseImage().fit(image)
    assert normalise(image).mean() == pytest.approx(0, abs=1e-5)
    assert normalise(image).std(correction=0) == pytest.approx(1, abs=1e-5)
    assert torch.equal(normalise(image[:2]), normalise(image)[:2])


def test_a_masked_image_is_standardised_by_what_is_not_zero_and_zeros_stay() -> None:
    image = 100 + 30 * torch.randn(8, 9, 10)
    image[:4] = 0
    normalised = StandardiseImage(nonzero=True).fit(image)(image)
    assert (normalised[:4] == 0).all()
    assert normalised[4:].mean() == pytest.approx(0, abs=1e-5)
    assert normalised[4:].std(correction=0) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("nonzero", [False, True])
def test_an_empty_image_stays_finite(nonzero: bool) -> None:
    image = torch.zeros(3, 3, 3)
    assert torch.isfinite(StandardiseImage(nonzero=nonzero).fit(image)(image)).all()


def test_each_channel_has_its_own_normalisation_and_their_number_must_match() -> None:
    image = torch.stack([torch.full((2, 2, 2), 100.0), torch.arange(8.0).reshape(2, 2, 2)])
    ct, mr = fit_channels(image, [ClipAndStandardise([0, 50], 0, 10), StandardiseImage()], name="a.nii.gz")
    assert (ct(image[0]) == 5).all()
    assert mr(image[1]).mean() == pytest.approx(0, abs=1e-6)
    with pytest.raises(BadInput, match=r"a\.nii\.gz: has 2 channels, but the configuration normalises 1"):
        fit_channels(image, [StandardiseImage()], name="a.nii.gz")


def test_the_box_holds_what_any_channel_shows() -> None:
    image = torch.zeros(2, 6, 7, 8)
    image[0, 1, 2, 3] = -5
    image[1, 4, 3, 3] = 1e-3
    assert nonzero_box(image) == (slice(1, 5), slice(2, 4), slice(3, 4))
    assert nonzero_box(torch.zeros(1, 2, 3, 4)) == (slice(0, 2), slice(0, 3), slice(0, 4))
