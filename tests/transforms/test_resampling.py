from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from cyclic_committee.scripts.transforms.resampling import resample_labels, resample_slices, resampled_size


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("size", [(20, 31), (9, 40), (12, 10)])
def test_two_matrix_products_equal_the_spline_of_scipy(order: int, size: tuple[int, int]) -> None:
    slices = torch.randn(3, 2, 13, 17)
    ours = resample_slices(slices, size, order=order)
    for sample in range(3):
        for channel in range(2):
            plane = slices[sample, channel].double().numpy()
            factors = [new / old for new, old in zip(size, plane.shape, strict=True)]
            expected = ndimage.zoom(plane, factors, order=order, mode="nearest", grid_mode=True)
            assert np.abs(ours[sample, channel].numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("order", [1, 3])
def test_slices_of_any_layout_and_kind_are_resampled_alike(order: int) -> None:
    slices = torch.randn(4, 70, 60)
    expected = resample_slices(slices, (61, 88), order=order)
    lying = resample_slices(slices.mT.contiguous().mT, (61, 88), order=order)
    assert lying.stride() == (61 * 88, 1, 61)  # x stays in one piece
    assert torch.allclose(lying, expected, atol=1e-6)
    assert torch.allclose(resample_slices(slices.double(), (61, 88), order=order).float(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(20, 31), (9, 40), (12, 10), (13, 30)])
def test_labels_take_the_class_whose_linear_mask_is_at_least_a_half(size: tuple[int, int]) -> None:
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 2, 5, 255], (3, 13, 17)).astype(np.uint8))
    expected = torch.zeros((3, *size), dtype=torch.uint8)
    sure = torch.ones((3, *size), dtype=torch.bool)
    for value in (0, 2, 5, 255):
        mask = resample_slices((labels == value).double(), size, order=1)
        expected[mask >= 0.5] = value
        sure &= (mask - 0.5).abs() > 1e-6  # a tie is a matter of rounding
    assert torch.equal(resample_labels(labels, size)[sure], expected[sure])
    assert sure.float().mean() > 0.8


def test_the_same_size_comes_back_untouched() -> None:
    slices = torch.randn(2, 5, 6)
    assert resample_slices(slices, [5, 6], order=3) is slices


def test_the_field_of_view_stays() -> None:
    ramp = torch.arange(32.0)[None, :, None].expand(1, 32, 8)
    finer = resample_slices(ramp, [64, 8], order=1)[0, :, 0]
    centres = (torch.arange(64) + 0.5) / 2 - 0.5  # the new pixels' centres in old pixels
    assert torch.allclose(finer[2:-2], centres[2:-2], atol=1e-4)


def test_a_size_follows_from_the_spacings() -> None:
    assert resampled_size([122, 101], [3.0, 3.0], [1.5, 6.0]) == [244, 50]
    assert resampled_size([1, 4], [1.0, 1.0], [9.0, 1.0]) == [1, 4]


def test_labels_stay_labels_and_keep_their_area() -> None:
    labels = torch.zeros(2, 24, 24, dtype=torch.uint8)
    labels[0, 4:16, 4:16] = 1
    labels[0, 8:12, 8:20] = 4
    finer = resample_labels(labels, [48, 48])
    assert finer.dtype == torch.uint8
    assert set(finer.unique().tolist()) == {0, 1, 4}
    for value in (1, 4):
        assert (finer == value).sum().item() == pytest.approx(4 * (labels == value).sum().item(), rel=0.05)
    assert finer[1].max() == 0
