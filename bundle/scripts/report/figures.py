"""The report's figures: training curves and distributions of scores."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .runs import History, Run
from .scores import percent
from .statistics import Measure, by_case
from .svg import GRID, INK, MUTED, PAPER, SERIES

WIDTH_IN, HEIGHT_IN = 5.2, 3.5  # of a figure that a phone shows whole
LABELLED = 6  # violins beside which the lowest case's name has room
MOST_POINTS = 200  # of a curve: epochs are averaged, so that a page stays small
TOPICS = (  # of the training: key of the history, title, scale
    ("loss/", "Training loss of each member", 1.0),
    ("validation/dsc_", "Validation DSC, %", 100.0),
    ("kept/", "Share of the samples that each member learned from, %", 100.0),
    ("agreement/", "Share of the samples on which two members chose alike, %", 100.0),
)


@dataclass(frozen=True)
class Drawing:
    """A figure, and what its parts are called when one points at them."""

    name: str  # of its files
    caption: str
    figure: Figure
    titles: dict[str, list[str]] = field(default_factory=dict)  # gid of a group -> titles of its marks, or of itself


def violins(runs: Sequence[Run], measure: Measure) -> Drawing:
    """Draw a score's distribution for each organ and run, each case a point."""
    organs = list(dict.fromkeys(organ for run in runs for organ in run.organs))
    count = len(organs) * len(runs)
    figure, axes = new_figure(max(WIDTH_IN, 0.5 * count + 0.8))
    random = np.random.default_rng(0)
    titles = {}
    for number, run in enumerate(runs):
        for place, organ in enumerate(organs):
            scores = by_case(run.rows, organ, measure)
            if not scores:
                continue
            x = place + (number - (len(runs) - 1) / 2) * 0.8 / len(runs)
            gid = f"points-{number}-{place}"
            draw_violin(
                axes,
                x,
                list(scores.values()),
                gid=gid,
                colour=SERIES[number % len(SERIES)],
                random=random,
                width=0.72 / len(runs),
            )
            what = f"{measure.upper()} of {organ}" + (f", {run.name}" if len(runs) > 1 else "")
            titles[gid] = [f"{case}: {percent(score)} % {what}" for case, score in scores.items()]
            if count <= LABELLED:
                worst = min(scores, key=scores.__getitem__)
                axes.annotate(
                    shortened(worst),
                    (x, scores[worst]),
                    (0, -5),
                    textcoords="offset points",
                    ha="center",
                    va="top",
                    fontsize=7.5,
                    color=MUTED,
                )
    axes.set_xticks(range(len(organs)), organs)
    axes.set_ylabel(f"{measure.upper()}, %")
    axes.margins(y=0.12)
    axes.set_ylim(top=min(axes.get_ylim()[1], 101.5))
    if len(runs) > 1:
        handles = [
            Line2D([], [], marker="o", linestyle="", color=SERIES[n % len(SERIES)], label=run.name)
            for n, run in enumerate(runs)
        ]
        add_legend(figure, handles)
    caption = f"{measure.upper()} of each case, and how they are spread. The bar is the median"
    return Drawing(measure, f"{caption}{'; the lowest case is named' if count <= LABELLED else ''}.", figure, titles)


def draw_violin(
    axes: Axes, x: float, values: Sequence[float], *, gid: str, colour: str, random: np.random.Generator, width: float
) -> None:
    """Draw a violin, its median and its points, in the values' order."""
    if len(values) > 1:
        for body in axes.violinplot([values], [x], widths=width, showextrema=False)["bodies"]:  # type: ignore[attr-defined]
            body.set(facecolor=colour, edgecolor=colour, alpha=0.25)
    axes.plot(
        x + random.uniform(-0.16, 0.16, len(values)) * width,
        values,
        linestyle="",
        marker="o",
        markersize=4.2,
        color=colour,
        markeredgecolor=PAPER,
        markeredgewidth=0.5,
        gid=gid,
    )
    median = float(np.median(values))
    axes.plot([x - 0.28 * width, x + 0.28 * width], [median] * 2, color=INK, linewidth=1.6, solid_capstyle="butt")


def curves(run: Run) -> list[Drawing]:
    """Draw what a run's training has recorded, a topic a figure: a thin line a fold, a thick one for their mean."""
    drawings = []
    for prefix, title, scale in TOPICS:
        known = dict.fromkeys(key for history in run.histories.values() for row in history for key in row)
        keys = sorted((key for key in known if key.startswith(prefix)), key=lambda key: key.endswith("_mean"))  # last
        if not keys:
            continue
        figure, axes = new_figure(WIDTH_IN)
        titles = {}
        for number, key in enumerate(keys):
            name = re.sub(r"members (\d) (\d)", r"\1 and \2", key[len(prefix) :].replace("_", " "))
            colour = INK if name == "mean" else SERIES[number % len(SERIES)]
            lines = {fold: line_of(history, key, scale) for fold, history in run.histories.items()}
            longest = max(len(line[0]) for line in lines.values())
            for fold, line in lines.items():
                gid = f"line-{number}-{fold}"
                axes.plot(*line, color=colour, linewidth=0.8, alpha=0.45, gid=gid)
                titles[gid] = [f"{name}, fold {fold}"]
            axes.plot(
                *mean_line(list(lines.values())),
                color=colour,
                linewidth=2.0 * (len(keys) - number) if prefix == "kept/" else 2.0,
                label=name,
                marker="o",
                markersize=3 if longest == 1 or (longest <= 25 and prefix != "kept/") else 0,
            )
        if prefix in ("kept/", "agreement/"):
            axes.set_ylim(0, 103)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        add_legend(figure, [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")])
        topic = prefix.strip("/").replace("validation/dsc_", "validation")
        drawings.append(Drawing(f"training_{run.key}_{topic}", title, figure, titles))
    return drawings


def line_of(history: History, key: str, scale: float) -> tuple[list[float], list[float]]:
    """Return a curve's epochs and values; of long ones the means of neighbours."""
    points = [(row["epoch"], scale * row[key]) for row in history if key in row]
    step = math.ceil(len(points) / MOST_POINTS)
    if step < 2:
        return [epoch for epoch, _ in points], [value for _, value in points]
    means = [np.mean(points[first : first + step], axis=0).tolist() for first in range(0, len(points), step)]
    return [epoch for epoch, _ in means], [value for _, value in means]


def mean_line(lines: Sequence[tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    """Return the mean of curves where all have a value."""
    tables = [dict(zip(*line, strict=True)) for line in lines]
    epochs = sorted(set.intersection(*map(set, tables)))
    return epochs, [sum(table[epoch] for table in tables) / len(tables) for epoch in epochs]


def new_figure(width_in: float) -> tuple[Figure, Axes]:
    """Return a figure with one set of plain axes."""
    with rc_context({"text.parse_math": False, "font.size": 10}):  # names may hold a $
        figure = Figure(figsize=(width_in, HEIGHT_IN), layout="constrained", facecolor=PAPER)
        axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=MUTED, labelcolor=INK, length=0)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    return figure, axes


def add_legend(figure: Figure, lines: Sequence[Line2D]) -> None:
    """Put a legend below a figure."""
    columns = min(3, len(lines))
    by_row = [line for column in range(columns) for line in lines[column::columns]]  # matplotlib fills it by column
    legend = figure.legend(handles=by_row, loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK)
    for handle in legend.get_lines():
        handle.set_linewidth(2.0)  # whatever the line's own


def shortened(name: str, *, length: int = 16) -> str:
    """Return a name that leaves room for its neighbours."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
