from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

from cyclic_committee.scripts.transforms.filtering import Band, blur, lower_resolution


def noisy(*size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=size).astype(np.float32))


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (48, 60), (49, 60), (130, 100), (7, 3)])
def test_a_band_is_the_matrix_of_its_places_and_weights(rows: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    middle = np.linspace(0, columns - 1, rows).astype(int)[:, None]
    places = (middle + rng.integers(-2, 3, (rows, 4))).clip(0, columns - 1)
    weights = rng.normal(size=places.shape)
    expected = np.zeros((rows, columns))
    for row in range(rows):
        for place, weight in zip(places[row], weights[row], strict=True):
            expected[row, place] += weight  # a place may be named twice
    band = Band.of(places, weights)
    np.testing.assert_allclose(band.dense(columns).numpy(), expected, atol=1e-6)
    lines, out = noisy(columns, 9), torch.empty(rows, 9)
    band.times(lines, out=out)
    np.testing.assert_allclose(out.numpy(), expected @ lines.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [(70, 33), (50, 50), (3, 120), (1, 4)])
@pytest.mark.parametrize("width", [0.5, 0.77, 1.0])
def test_blurring_is_scipys(size: tuple[int, int], width: float) -> None:
    image = noisy(2, *size)
    expected = ndimage.gaussian_filter(image.double().numpy(), (0, width, width))
    np.testing.assert_allclose(blur(image, width).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(67, 67), (101, 53), (512, 602)])
@pytest.mark.parametrize("zoom", [0.5, 0.733, 0.999, 1.0])
def test_low_resolution_is_the_nearest_pixel_and_bicubic_back(size: tuple[int, int], zoom: float) -> None:
    image = noisy(2, *size)
    small = [round(n * zoom) for n in size]
    lines = []
    for n, m in zip(size, small, strict=True):
        exact = (np.arange(m) + 0.5) * n / m  # of two pixels that are as near, the upper one
        lines.append(np.floor(exact + 1e-9).astype(int))
    low = image[:, lines[0]][:, :, lines[1]]
    expected = interpolate(low[None].double(), size, mode="bicubic", align_corners=False)[0]
    np.testing.assert_allclose(lower_resolution(image, zoom).numpy(), expected.numpy(), atol=1e-5)
