"""Training curves, and validation slices with the contours of prediction and reference."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..data.volumes import case_name
from ..runtime.errors import BadInput
from .slice_drawing import (
    DAYLIGHT,
    DPI,
    ON_CT,
    PAGE_IN,
    dark_page,
    draw_contour,
    finish_page,
    goes_on,
    grey_window,
    ras_spacing,
    read_grey,
    save_png,
    show_slice,
    to_ras,
)

# After Okabe and Ito, safe for the colour-blind: yellow would vanish on paper.
ON_PAPER = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


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
    save_png(figure, path)


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
    image, affine = read_grey(image_path)
    masks = {"prediction": prediction} if reference is None else {"prediction": prediction, "reference": reference}
    for name, mask in masks.items():
        if mask.shape != image.shape:
            raise BadInput(f"{image_path} has shape {image.shape}, but its {name} {mask.shape}: resample the {name}")
    image, spacing_mm = to_ras(image, affine), ras_spacing(affine)
    masks = {name: to_ras(mask, affine) for name, mask in masks.items()}
    heights = pick_slices(masks["reference" if reference is not None and reference.any() else "prediction"], slices)
    organs = {int(label): name for label, name in labels.items() if int(label) != 0}
    colours = {label: ON_CT[number % len(ON_CT)] for number, label in enumerate(organs)}

    window = grey_window(image)
    figure, grid = dark_page(len(heights), size_mm=np.multiply(image.shape, spacing_mm))
    for z, (plain, outlined) in zip(heights, grid, strict=True):
        for axes in (plain, outlined):
            show_slice(axes, image[:, :, z], spacing_mm, window=window)
        plain.set_title(f"slice {z + 1} of {image.shape[2]}", loc="left", color=DAYLIGHT, fontsize=18, pad=6)
        for label, colour in colours.items():
            draw_contour(outlined, masks["prediction"][:, :, z] == label, spacing_mm, colour=colour, width=2.4)
        for label in colours if reference is not None else ():
            # thin and on top: where both agree, the organ's colour still shows on both sides of the white
            draw_contour(outlined, masks["reference"][:, :, z] == label, spacing_mm, colour="white", width=0.9)
    key = [Line2D([], [], color=colours[label], linewidth=3, label=name) for label, name in organs.items()]
    key += [Line2D([], [], color="white", linewidth=1, label="reference")] if reference is not None else []
    finish_page(figure, title=case_name(image_path), key=key)
    save_png(figure, path)


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
            with goes_on(f"the picture of {image_path}"):
                draw_overlay(
                    image_path,
                    prediction=output["pred"][0].cpu().numpy(),
                    reference=None if label is None else label[0].cpu().numpy(),
                    labels=self.labels,
                    path=self.folder / f"{case_name(image_path)}.png",
                )
            self.drawn += 1
