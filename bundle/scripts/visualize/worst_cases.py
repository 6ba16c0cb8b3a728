"""Pictures of the cases with the lowest scores."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.image import imread, imsave
from matplotlib.lines import Line2D

from .slice_drawing import DAYLIGHT, ON_CT, dark_page, draw_contour, extent_mm, save_png, show_slice

MARGIN_MM, LEAST_MM = 25, 140  # around the organs; of a picture's side
HEAT, HOTTEST = "inferno", 0.5  # of the disagreement: more is shown alike
JPEG_QUALITY = 80


def telling_slice(reference: np.ndarray, prediction: np.ndarray) -> int:
    """Return the slice with the most pixels that only one of two masks `(x, y, z)` has; without any, the fullest."""
    wrong = np.count_nonzero(reference != prediction, axis=(0, 1))
    return int((wrong if wrong.any() else np.count_nonzero(reference, axis=(0, 1))).argmax())


def region(maps: Mapping[str, np.ndarray], spacing_mm: np.ndarray) -> tuple[slice, slice]:
    """Return the part of a slice `(x, y)` around all organs; where there are none, the whole slice."""
    shown = np.logical_or.reduce([voxels > 0 for voxels in maps.values()])
    if not shown.any():
        return slice(None), slice(None)
    box = []
    for axis, step in enumerate(spacing_mm[:2].tolist()):
        places = np.flatnonzero(shown.any(axis=1 - axis))
        margin = max(MARGIN_MM, (LEAST_MM - (places[-1] - places[0]) * step) / 2) / step
        box.append(slice(max(0, int(places[0] - margin)), int(places[-1] + margin) + 1))
    return box[0], box[1]


def draw_challenge(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    apart: np.ndarray | None,
    *,
    organs: Mapping[str, int],
    organ: str,
    window: tuple[float, float],
    spacing_mm: np.ndarray,
    path: Path,
) -> None:
    """Draw a slice plain, with the reference's outlines, with the prediction's, and with the members' disagreement.

    Args:
        image: `(x, y)`.
        maps: label ids `(x, y)` of "reference" and "prediction".
        apart: disagreement in [0, 1], `(x, y)`; None: it isn't drawn.
        organs: names and label ids.
        organ: the one in question; the others have thinner outlines.
        window: grey values of black and white.
        spacing_mm: of both axes.
        path: of the PNG.
    """
    figure, grid = dark_page(2, size_mm=np.multiply(image.shape, spacing_mm[:2]), title=0.65, between=0.65, key=0.9)
    panes: dict[str, Axes] = dict(zip(("image", *maps, "disagreement"), grid.flat, strict=True))
    for name, axes in panes.items():
        if name == "disagreement" and apart is None:
            axes.set_axis_off()
            continue
        show_slice(axes, image, spacing_mm, window=window, fontsize=19)
        axes.set_title(name, loc="left", color=DAYLIGHT, fontsize=26, pad=8)
    colours = {name: ON_CT[number % len(ON_CT)] for number, name in enumerate(organs)}
    seen = [name for name, label in organs.items() if any((voxels == label).any() for voxels in maps.values())]
    for name, voxels in maps.items():
        for one in seen:
            width = 4.0 if one == organ else 2.0
            draw_contour(panes[name], voxels == organs[one], spacing_mm, colour=colours[one], width=width)
    if apart is not None:
        show_heat(panes["disagreement"], apart, spacing_mm)
    key = [Line2D([], [], color=colours[name], linewidth=5, label=name) for name in seen]
    if key:
        figure.legend(
            handles=key, loc="lower center", ncols=min(4, len(key)), frameon=False, labelcolor=DAYLIGHT, fontsize=24
        )
    save_png(figure, path)


def show_heat(axes: Axes, apart: np.ndarray, spacing_mm: np.ndarray) -> None:
    """Lay a disagreement in [0, 1] over a slice; what is near 0 is transparent."""
    share = np.clip(apart / HOTTEST, 0, 1)
    heat = colormaps[HEAT](0.25 + 0.75 * share)
    heat[..., 3] = np.clip(4 * share, 0, 0.9)
    x_mm, y_mm = extent_mm(apart, spacing_mm)
    axes.imshow(heat.transpose(1, 0, 2), origin="lower", extent=(*x_mm, *y_mm), interpolation="nearest")


def data_url(path: Path) -> str:
    """Return a picture of this module's or the audit's as a JPEG of half its size that a page holds itself."""
    picture = imread(path)[..., :3]
    height, width = (size // 2 * 2 for size in picture.shape[:2])
    half = picture[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    content = io.BytesIO()
    imsave(content, half, format="jpeg", pil_kwargs={"quality": JPEG_QUALITY, "optimize": True})
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
