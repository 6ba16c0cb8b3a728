"""Drawing a slice with radiological orientation, window and contours."""

from __future__ import annotations

import contextlib
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..runtime.atomic_files import put_in_place, unfinished_path
from ..runtime.errors import BadInput

logger = logging.getLogger(__name__)
# After Okabe and Ito, safe for the colour-blind: dark blue would vanish on CT.
ON_CT = ("#56B4E9", "#E69F00", "#FF7FC8", "#F0E442", "#00C08B", "#FF7F3F")
NIGHT, DAYLIGHT = "#101010", "#F2F2F2"
LEVEL_HU, WIDTH_HU = 40, 400  # soft tissue
AIR_HU = -500  # an image that reaches below is a CT
PAGE_IN, DPI = 14.0, 100  # inches, so 1400 pixels
OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


@contextlib.contextmanager
def goes_on(what: str) -> Iterator[None]:
    """Make a warning of whatever goes wrong: a picture that can't be drawn ends no training."""
    try:
        yield
    except Exception as error:
        logger.warning(f"{what} can't be drawn ({error}). All else goes on.")


def read_grey(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return an image's first channel, `(x, y, z)` float32, and its affine.

    Raises:
        BadInput: nibabel can't read it.
    """
    try:
        file: Any = nib.load(path)
        array = file.get_fdata(dtype=np.float32, caching="unchanged")
    except (OSError, EOFError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise BadInput(f"{path} can't be drawn ({error}): give a NIfTI file, or switch the pictures off") from error
    return (array[..., 0] if array.ndim == 4 else array), file.affine


def to_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Turn (x, y, z) so that the axes run towards the patient's right, anterior and superior."""
    turned: np.ndarray = nib.orientations.apply_orientation(array, nib.orientations.io_orientation(affine))
    return turned


def ras_spacing(affine: np.ndarray) -> np.ndarray:
    """Return the spacing of `to_ras(array, affine)` along its three axes, in mm."""
    spacing_mm = np.empty(3)
    spacing_mm[nib.orientations.io_orientation(affine)[:, 0].astype(int)] = nib.affines.voxel_sizes(affine)
    return spacing_mm


def grey_window(image: np.ndarray) -> tuple[float, float]:
    """Return the grey values of black and white: soft tissue for CT, else the 1st and the 99th percentile."""
    if image.min() < AIR_HU:
        return LEVEL_HU - WIDTH_HU / 2, LEVEL_HU + WIDTH_HU / 2
    low, high = np.percentile(image, (1, 99))
    return float(low), float(max(high, low + 1e-6))


def dark_page(
    rows: int, *, size_mm: np.ndarray, title: float = 1.3, between: float = 0.6, key: float = 0.9
) -> tuple[Figure, np.ndarray]:
    """Return a dark figure with two columns of axes `(rows, 2)`, each as wide to high as a slice's `size_mm`.

    Args:
        rows: how many.
        size_mm: of a slice, along x and y.
        title: inches above the first row.
        between: inches between rows.
        key: inches below the last one.
    """
    side, gap = 0.25, 0.12  # inches
    width = (PAGE_IN - 2 * side - gap) / 2
    height = min(width * size_mm[1] / size_mm[0], 1.2 * width)
    total = title + rows * height + (rows - 1) * between + key
    figure = Figure(figsize=(PAGE_IN, total), dpi=DPI, facecolor=NIGHT)
    grid = figure.subplots(
        rows,
        2,
        squeeze=False,
        gridspec_kw={
            "left": side / PAGE_IN,
            "right": 1 - side / PAGE_IN,
            "bottom": key / total,
            "top": 1 - title / total,
            "wspace": gap / width,
            "hspace": between / height,
        },
    )
    return figure, grid


def finish_page(figure: Figure, *, title: str, key: Sequence[Line2D]) -> None:
    """Write a title above a dark page, and a key of its lines below."""
    size = min(22, 90 / max(1, len(key)))  # or many names would not fit
    top = 1 - 0.4 / figure.get_figheight()
    figure.text(0.25 / PAGE_IN, top, title, color=DAYLIGHT, fontsize=24, fontweight="bold", va="center")
    figure.legend(handles=key, loc="lower center", ncols=len(key), frameon=False, labelcolor=DAYLIGHT, fontsize=size)


def show_slice(
    axes: Axes,
    image: np.ndarray,
    spacing_mm: np.ndarray,
    *,
    window: tuple[float, float],
    orientation: str = "RAS",
    fontsize: float = 12,
) -> None:
    """Show a slice `(x, y)` in millimetres, the end of its first axis on the left: the patient's right, as in clinics.

    Letters at the borders say what lies there.
    """
    x_mm, y_mm = extent_mm(image, spacing_mm)
    low, high = window
    axes.imshow(
        image.T, cmap="gray", vmin=low, vmax=high, origin="lower", extent=(*x_mm, *y_mm), interpolation="bilinear"
    )
    axes.set_xlim(x_mm[1], x_mm[0])
    axes.autoscale(enable=False)  # or outlines would move the limits
    axes.set_axis_off()
    text: dict[str, Any] = {"transform": axes.transAxes, "color": DAYLIGHT, "fontsize": fontsize}
    axes.text(0.015, 0.5, orientation[0], ha="left", va="center", **text)
    axes.text(0.985, 0.5, OPPOSITE[orientation[0]], ha="right", va="center", **text)
    axes.text(0.5, 0.985, orientation[1], ha="center", va="top", **text)


def extent_mm(image: np.ndarray, spacing_mm: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return from where to where a slice `(x, y)` reaches along both axes, in mm; the first pixel's centre is 0."""
    x_mm, y_mm = ((-0.5 * step, (n - 0.5) * step) for n, step in zip(image.shape, spacing_mm.tolist(), strict=False))
    return x_mm, y_mm


def draw_contour(axes: Axes, mask: np.ndarray, spacing_mm: np.ndarray, *, colour: str, width: float) -> None:
    """Draw a mask's contour `(x, y)` over `show_slice`; nothing for an empty one."""
    if mask.any():
        padded = np.pad(mask, 1).astype(np.float32)  # a mask that touches the border is outlined there, too
        x_mm, y_mm = (np.arange(-1, n + 1) * step for n, step in zip(mask.shape, spacing_mm, strict=False))
        axes.contour(x_mm, y_mm, padded.T, levels=[0.5], colors=[colour], linewidths=width)


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(path)
    FigureCanvasAgg(figure).print_png(unfinished)
    put_in_place(unfinished, path)
