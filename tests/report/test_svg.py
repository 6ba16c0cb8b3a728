from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread

from cyclic_committee.scripts.report.svg import GRID, INK, MUTED, PAPER, SERIES, SVG, write_figure


def figure() -> Figure:
    made = Figure(figsize=(5, 3), facecolor=PAPER)
    axes = made.add_subplot(facecolor="none")
    axes.plot([0, 1, 2], [3, 5, 4], "o", color=SERIES[0], gid="cases")
    axes.plot([0, 2], [3, 4], color=SERIES[1], gid="line")
    axes.set_title("title", color=INK)
    axes.tick_params(colors=MUTED, labelcolor=INK)
    axes.spines[:].set_color(GRID)
    return made


def write(folder: Path, name: str = "dsc") -> str:
    titles = {"cases": ["a: 3", "b <&>: 5", "c: 4"], "line": ["member 0"]}
    return write_figure(figure(), name, folder, titles=titles, label="DSC of each case")


def test_each_mark_is_named_in_its_order(tmp_path: Path) -> None:
    for text in (write(tmp_path), (tmp_path / "dsc.svg").read_text()):
        root = ET.fromstring(text)
        marks = [use for use in root.iter(f"{{{SVG}}}use") if use.find(f"{{{SVG}}}title") is not None]
        assert [mark.findtext(f"{{{SVG}}}title") for mark in marks] == ["a: 3", "b <&>: 5", "c: 4"]
        heights = [float(mark.get("y", "")) for mark in marks]
        assert heights[0] > heights[2] > heights[1]  # y runs down
        [line] = [group for group in root.iter(f"{{{SVG}}}g") if (group.get("id") or "").endswith("line")]
        assert line.findtext(f"{{{SVG}}}title") == "member 0"


def test_the_pages_part_takes_the_pages_colours_and_font(tmp_path: Path) -> None:
    part = write(tmp_path)
    assert not re.findall(r"#[0-9a-f]{6}\b", part.replace("#000000", ""))  # black is matplotlib's clip paths' alone
    for variable in ("paper", "ink", "muted", "line", "series-0", "series-1"):
        assert f"var(--{variable})" in part
    assert "font-family" not in part
    assert ">title</text>" in part  # text is text
    assert (tmp_path / "dsc.svg").read_text().count("#0072b2") > 0


def test_two_figures_on_a_page_share_no_id(tmp_path: Path) -> None:
    parts = [write(tmp_path, name) for name in ("dsc", "nsd")]
    ids = [set(re.findall(r'\bid="([^"]+)"', part)) for part in parts]
    assert len(ids[0]) > 5
    assert not ids[0] & ids[1]
    for part, own in zip(parts, ids, strict=True):
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', part))
        assert {name for pair in used for name in pair if name} <= own


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert (tmp_path / "a" / "dsc.svg").read_bytes() == (tmp_path / "b" / "dsc.svg").read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["dsc.png", "dsc.svg"]
    assert imread(tmp_path / "a" / "dsc.png").shape[:2] == (600, 1000)
