"""What did the training do, and where is the prediction wrong, at a glance?"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .errors import BadInput
from .volumes import case_name

# After Okabe and Ito, safe for the colour-blind: dark blue would vanish on CT, yellow on paper.
ON_CT = ("#56B4E9", "#E69F00", "#FF7FC8", "#F0E442", "#00C08B", "#FF7F3F")
ON_PAPER = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
NIGHT, DAYLIGHT = "#101010", "#F2F2F2"
LEVEL_HU, WIDTH_HU = 40, 400  # soft tissue
AIR_HU = -500  # an image that reaches below is a CT
PAGE_IN, DPI = 14.0, 100  # inches, so 1400 pixels


def draw_curves(history: Sequence[Mapping[str, float]], path: str | os.PathLike[str]) -> None:
    """Draw losses, choices and validation DSC against epochs; a panel without values is left out.

    history: one dict an epoch with "epoch" and any of "loss/member_0", "kept/member_0" (share),
    "agreement/members_0_1" (share), "validation/dsc_liver"; an epoch may lack a key, and NaN leaves a gap.
    """
    panels: list[tuple[str, dict[str, str], tuple[float, float] | None]] = [
        ("Training loss", {"loss/": "-"}, None),
        ("Share kept (solid), agreement (dashed)", {"kept/": "-", "agreement/": "--"}, (0.0, 1.03)),
        ("Validation DSC", {"validation/dsc_": "-"}, None),
    ]
    drawn = [panel for panel in panels if any(key.startswith(tuple(panel[1])) for row in history for key in row)]
    figure = Figure(figsize=(PAGE_IN, 5.0), dpi=DPI, layout="constrained")
    for position, (title, styles, limits) in enumerate(drawn, start=1):
        axes = figure.add_subplot(1, len(drawn), position)
        for prefix, style in styles.items():
            _draw_lines(axes, history, prefix, style=style)
        _finish_panel(axes, title=title, limits=limits)
    if not drawn:
        figure.text(0.5, 0.5, "nothing has been recorded yet", ha="center", va="center", fontsize=14, color="#555555")
    _save(figure, path)


def _draw_lines(axes: Axes, history: Sequence[Mapping[str, float]], prefix: str, *, style: str) -> None:
    keys = list(dict.fromkeys(key for row in history for key in row if key.startswith(prefix)))
    for number, key in enumerate(keys):
        points = [(row["epoch"], row[key]) for row in history if key in row]
        name = key[len(prefix) :].replace("_", " ")
        # members mostly keep equal shares: each line is thinner than the one below it, and all stay visible
        width = 2.0 * (len(keys) - number) if prefix == "kept/" else 1.7
        axes.plot(
            *zip(*points, strict=True),
            linestyle=style,
            label=re.sub(r"(\d) (\d)", r"\1, \2", name),
            color="black" if name == "mean" else ON_PAPER[number % len(ON_PAPER)],
            linewidth=2.6 if name == "mean" else width,
            marker="o" if len(points) <= 25 else None,
            markersize=4,
        )


def _finish_panel(axes: Axes, *, title: str, limits: tuple[float, float] | None) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=10)
    axes.set_xlabel("epoch")
    axes.set_ylim(limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    lines = axes.get_lines()
    by_row = [line for column in range(3) for line in lines[column::3]]  # matplotlib fills a legend by column
    axes.legend(handles=by_row, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False, fontsize=10)


def draw_overlay(
    image_path: str | os.PathLike[str],
    *,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    labels: Mapping[int, str],
    path: str | os.PathLike[str],
    slices: int = 3,
) -> None:
    """Draw axial slices of a CT, plain on the left, with the outlines of prediction and reference on the right.

    prediction, reference: label ids, (x, y, z) on the image's own grid, in any orientation; `labels` names the ids,
    0 is background. The slices are chosen by the reference's foreground, or else by the prediction's.
    Raises BadInput for an image that nibabel can't read, or that isn't on the grid of the masks.
    """
    image, affine = _read_image(image_path)
    masks = {"prediction": prediction} if reference is None else {"prediction": prediction, "reference": reference}
    for name, mask in masks.items():
        if mask.shape != image.shape:
            raise BadInput(f"{image_path} has shape {image.shape}, but its {name} {mask.shape}: resample the {name}")
    image, spacing_mm = to_ras(image, affine), ras_spacing(affine)
    masks = {name: to_ras(mask, affine) for name, mask in masks.items()}
    heights = pick_slices(masks["reference" if reference is not None and reference.any() else "prediction"], slices)
    organs = {int(label): name for label, name in labels.items() if int(label) != 0}
    colours = {label: ON_CT[number % len(ON_CT)] for number, label in enumerate(organs)}

    window = _window(image)
    figure, grid = _dark_page(len(heights), size_mm=np.multiply(image.shape, spacing_mm))
    for z, (plain, outlined) in zip(heights, grid, strict=True):
        for axes in (plain, outlined):
            _show_slice(axes, image[:, :, z], spacing_mm, window=window)
        plain.set_title(f"slice {z + 1} of {image.shape[2]}", loc="left", color=DAYLIGHT, fontsize=10, pad=5)
        for label, colour in colours.items():
            _outline(outlined, masks["prediction"][:, :, z] == label, spacing_mm, colour=colour, width=2.4)
        for label in colours if reference is not None else ():
            # thin and on top: where both agree, the organ's colour still shows on both sides of the white
            _outline(outlined, masks["reference"][:, :, z] == label, spacing_mm, colour="white", width=0.9)
    key = [Line2D([], [], color=colours[label], linewidth=3, label=name) for label, name in organs.items()]
    key += [Line2D([], [], color="white", linewidth=1, label="reference")] if reference is not None else []
    _finish_page(figure, title=case_name(image_path), key=key)
    _save(figure, path)


def to_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Turn (x, y, z) so that the axes run towards the patient's right, anterior and superior."""
    return nib.orientations.apply_orientation(array, nib.orientations.io_orientation(affine))


def ras_spacing(affine: np.ndarray) -> np.ndarray:
    """Return the spacing of `to_ras(array, affine)` along its three axes, in mm."""
    spacing_mm = np.empty(3)
    spacing_mm[nib.orientations.io_orientation(affine)[:, 0].astype(int)] = nib.affines.voxel_sizes(affine)
    return spacing_mm


def pick_slices(mask: np.ndarray, count: int) -> list[int]:
    """Return up to `count` heights z, rising: the fullest slice in each of `count` equal bands of the foreground.

    mask: (x, y, z). Only the middle half of a band is searched, so that no two neighbours are taken.
    Without foreground the bands are those of the whole volume.
    """
    area = np.count_nonzero(mask, axis=(0, 1))  # (z,)
    filled = np.flatnonzero(area)
    low, high = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, len(area))
    chosen = []
    for band in np.array_split(np.arange(low, high), min(count, high - low)):
        middle = band[len(band) // 4 : len(band) - len(band) // 4]
        # of equally full slices the one nearest to the middle
        chosen.append(int(max(middle, key=lambda z: (area[z], -abs(z - band.mean())))))
    return chosen


def _read_image(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    try:
        file: Any = nib.load(path)
        array = file.get_fdata(dtype=np.float32, caching="unchanged")
    except (OSError, EOFError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise BadInput(f"{path} can't be drawn ({error}): give a NIfTI file, or switch the pictures off") from error
    return (array[..., 0] if array.ndim == 4 else array), file.affine  # the first channel


def _dark_page(rows: int, *, size_mm: np.ndarray) -> tuple[Figure, np.ndarray]:
    side, gap, title, key = 0.25, 0.12, 0.9, 0.65  # inches
    width = (PAGE_IN - 2 * side - gap) / 2
    height = min(width * size_mm[1] / size_mm[0], 1.2 * width)
    total = title + rows * height + (rows - 1) * 0.35 + key
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
            "hspace": 0.35 / height,
        },
    )
    return figure, grid


def _window(image: np.ndarray) -> tuple[float, float]:
    """Return the grey values of black and white: soft tissue for CT, else the 1st and the 99th percentile."""
    if image.min() < AIR_HU:
        return LEVEL_HU - WIDTH_HU / 2, LEVEL_HU + WIDTH_HU / 2
    low, high = np.percentile(image, (1, 99))
    return float(low), float(max(high, low + 1e-6))


def _show_slice(axes: Axes, image: np.ndarray, spacing_mm: np.ndarray, *, window: tuple[float, float]) -> None:
    """Show a (right, anterior) slice in millimetres, the patient's right on the left."""
    x_mm, y_mm = (np.array([-0.5, n - 0.5]) * step for n, step in zip(image.shape, spacing_mm, strict=False))
    low, high = window
    axes.imshow(
        image.T, cmap="gray", vmin=low, vmax=high, origin="lower", extent=(*x_mm, *y_mm), interpolation="bilinear"
    )
    axes.set_xlim(x_mm[1], x_mm[0])
    axes.autoscale(enable=False)  # or outlines would move the limits
    axes.set_axis_off()
    text: dict[str, Any] = {"transform": axes.transAxes, "color": DAYLIGHT, "fontsize": 12, "va": "top"}
    axes.text(0.015, 0.975, "R", ha="left", **text)
    axes.text(0.985, 0.975, "L", ha="right", **text)


def _outline(axes: Axes, mask: np.ndarray, spacing_mm: np.ndarray, *, colour: str, width: float) -> None:
    if mask.any():
        padded = np.pad(mask, 1).astype(np.float32)  # a mask that touches the border is outlined there, too
        x_mm, y_mm = (np.arange(-1, n + 1) * step for n, step in zip(mask.shape, spacing_mm, strict=False))
        axes.contour(x_mm, y_mm, padded.T, levels=[0.5], colors=[colour], linewidths=width)


def _finish_page(figure: Figure, *, title: str, key: list[Line2D]) -> None:
    top = 1 - 0.3 / figure.get_figheight()
    figure.text(0.25 / PAGE_IN, top, title, color=DAYLIGHT, fontsize=17, fontweight="bold", va="center")
    figure.legend(handles=key, loc="lower center", ncols=len(key), frameon=False, labelcolor=DAYLIGHT, fontsize=13)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    FigureCanvasAgg(figure).print_png(unfinished)
    os.replace(unfinished, path)


class Pictures:
    """Draws the first cases of every evaluation into `<folder>/<case>.png`, with `draw_overlay`.

    Attach it to a MONAI evaluator whose `state.output` is a list of dicts with "pred" and maybe "label", label ids of
    shape (1, X, Y, Z) on the image's own grid, and whose `state.batch` is a list of dicts with the MetaTensor "image".
    """

    def __init__(self, folder: str | os.PathLike[str], *, labels: Mapping[int, str], cases: int = 3) -> None:
        if cases < 0:
            raise ValueError(f"cases must be 0 or more, got {cases}.")
        self.folder = Path(folder)
        self.labels = labels
        self.cases = cases
        self.drawn = 0

    def attach(self, engine: Engine) -> None:
        """Follow an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.draw)

    def begin(self, engine: Engine) -> None:
        """Count the cases from zero."""
        self.drawn = 0

    def draw(self, engine: Engine) -> None:
        """Draw the cases of this batch, unless there are enough."""
        state: Any = engine.state
        for item, output in zip(state.batch, state.output, strict=True):
            if self.drawn >= self.cases:
                return
            image_path = item["image"].meta["filename_or_obj"]
            label = output.get("label")
            draw_overlay(
                image_path,
                prediction=output["pred"][0].cpu().numpy(),
                reference=None if label is None else label[0].cpu().numpy(),
                labels=self.labels,
                path=self.folder / f"{case_name(image_path)}.png",
            )
            self.drawn += 1
