from __future__ import annotations

import numpy as np
import pytest

from cyclic_committee.scripts.visualize.slice_drawing import extent_mm, grey_window, ras_spacing, to_ras


def test_spacing_follows_the_axes_that_are_turned() -> None:
    affine = np.array([[0, 0, -3.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    assert ras_spacing(affine).tolist() == [3.0, 1.0, 2.0]
    assert to_ras(np.zeros((4, 5, 6)), affine).shape == (6, 4, 5)


def test_a_ct_has_the_window_of_soft_tissue_and_other_images_their_own() -> None:
    assert grey_window(np.array([-1000.0, 3000])) == (-160, 240)
    low, high = grey_window(np.linspace(0, 1000, 1001))
    assert (low, high) == (pytest.approx(10), pytest.approx(990))
    low, high = grey_window(np.zeros(5))
    assert low < high


def test_a_slice_reaches_half_a_pixel_beyond_its_centres() -> None:
    assert extent_mm(np.zeros((4, 3)), np.array([2.0, 1.0, 5.0])) == ((-1.0, 7.0), (-0.5, 2.5))
