"""Figures as SVG that suits a light and a dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from ..runtime.atomic_files import write_whole

# Figures are drawn in the colours of the light page. Within the page each becomes a variable of the style sheet.
PAPER, INK, MUTED, GRID = "#fefefe", "#1f2328", "#59636e", "#d1d9e0"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#5b6ee1")  # after Okabe and Ito
VARIABLES = (
    (PAPER, "paper"),
    (INK, "ink"),
    (MUTED, "muted"),
    (GRID, "line"),
    *((colour, f"series-{number}") for number, colour in enumerate(SERIES)),
)
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
DPI = 200  # of the PNG
LEAST, MOST = 0.85, 1.6  # of its size on the page: its text stays legible, and doesn't shout


def write_figure(figure: Figure, name: str, folder: Path, *, titles: Mapping[str, Sequence[str]], label: str) -> str:
    """Write a figure as `<name>.svg` and `<name>.png`, each whole or not at all, and return it as a part of a page.

    Args:
        figure: in the colours above.
        name: of the files; on one page each figure has another.
        folder: of the files.
        titles: what a browser shows when one points at a group's marks, gid -> one each, or one for the group.
        label: what the figure shows, for those who can't see it.
    """
    svg, png = io.BytesIO(), io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # text stays text; the same figure, the same file
        figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=DPI)
    for prefix, space in (("", SVG), ("xlink", XLINK)):
        ElementTree.register_namespace(prefix, space)
    root = ElementTree.fromstring(svg.getvalue())
    set_titles(root, titles)
    write_whole(folder / f"{name}.svg", ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
    write_whole(folder / f"{name}.png", png.getvalue())
    return as_part(root, name=name, label=label)


def set_titles(root: ElementTree.Element, titles: Mapping[str, Sequence[str]]) -> None:
    """Name the marks of a figure's groups, in their order."""
    for group in root.iter(f"{{{SVG}}}g"):
        names = titles.get(group.get("id", ""), ())
        marks = list(group.iter(f"{{{SVG}}}use"))
        for mark, name in zip(marks if len(marks) == len(names) else [group], names, strict=False):
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = name
            mark.insert(0, title)


def as_part(root: ElementTree.Element, *, name: str, label: str) -> str:
    """Return a figure as an element of HTML: ids of its own, the page's font and colours, as wide as there is room."""
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            else:
                element.set(key, re.sub(r"(^|url\()#(?=[A-Za-z])", rf"\g<1>#{name}-", value))
    width = float(root.get("width", "0pt").removesuffix("pt"))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("style", f"min-width: {width * LEAST:.0f}px; max-width: {width * MOST:.0f}px")
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for colour, variable in VARIABLES:
        text = text.replace(colour, f"var(--{variable})")
    return text
