from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from cyclic_committee.scripts.visualize.worst_cases import data_url, draw_challenge, region, telling_slice

SPACING_MM = np.array([2.0, 1.0, 5.0])


def test_the_slice_is_the_one_with_the_most_wrong_pixels() -> None:
    reference, prediction = np.zeros((2, 8, 8, 5), bool)
    reference[2:6, 2:6, 1:4] = True
    prediction[2:6, 2:6, 1:3] = True
    prediction[0, 0, 4] = True
    assert telling_slice(reference, prediction) == 3
    fullest = reference.copy()
    fullest[:, :, 2] = True
    assert telling_slice(fullest, fullest) == 2


def test_what_is_shown_is_around_the_organs() -> None:
    shown = np.zeros((200, 400))
    shown[50:150, 100:110] = 1
    x, y = region({"reference": shown, "prediction": np.zeros((200, 400))}, SPACING_MM)
    assert (x, y) == (slice(37, 162), slice(34, 175))  # 25 mm more on each side, and 140 mm at least
    assert region({"reference": np.zeros((4, 4))}, SPACING_MM) == (slice(None), slice(None))


@pytest.mark.parametrize("with_opinions", [True, False])
def test_outlines_and_disagreement_are_seen_in_the_picture(tmp_path: Path, with_opinions: bool) -> None:
    masks = np.zeros((2, 100, 80), np.uint8)
    masks[0, 20:50, 20:50], masks[1, 24:54, 20:50] = 1, 1
    apart = np.zeros((100, 80), np.float32)
    apart[45:60, 20:50] = 0.6
    draw_challenge(
        np.full((100, 80), 50.0),
        {"reference": masks[0], "prediction": masks[1]},
        apart if with_opinions else None,
        organs={"liver": 1, "spleen": 3},
        organ="liver",
        window=(-160, 240),
        spacing_mm=SPACING_MM,
        path=tmp_path / "a.png",
    )
    picture = imread(tmp_path / "a.png")[..., :3]
    assert picture.shape[1] == 1400
    height = picture.shape[0] // 2
    coloured = np.ptp(picture, axis=2) > 0.3
    panes = [coloured[:height, :700], coloured[:height, 700:], coloured[height:-70, :700], coloured[height:-70, 700:]]
    assert [bool(pane.any()) for pane in panes] == [False, True, True, with_opinions]
    assert coloured[-70:].any()  # the key
    url = data_url(tmp_path / "a.png")
    kind, content = url.split(",")
    assert kind == "data:image/jpeg;base64"
    (tmp_path / "a.jpg").write_bytes(base64.b64decode(content))
    assert imread(tmp_path / "a.jpg").shape[1] == 700
