"""The report's HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .svg import SERIES
from .tables import Table

TEMPLATE = "page.html"  # beside this file


@dataclass(frozen=True)
class Graphic:
    """A figure, as an element of HTML, or a picture, as a data URL."""

    caption: str
    svg: str = ""
    url: str = ""
    is_wide: bool = False


@dataclass(frozen=True)
class Section:
    """A chapter, its parts in the order in which they are shown."""

    title: str
    text: Sequence[str] = ()  # paragraphs
    sentences: Sequence[str] = ()  # a list
    tables: Sequence[Table] = ()
    graphics: Sequence[Graphic] = ()
    folded: Sequence[Table] = field(default=())  # tables that are shown on request
    problems: Sequence[str] = ()  # what couldn't be done


def render(sections: Sequence[Section], *, title: str, lead: str, notes: Sequence[str]) -> str:
    """Return the page, in which all that it shows is contained.

    Args:
        sections: its chapters.
        title: its headline.
        lead: what it is about.
        notes: what a reader must know before the first number.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        sections=sections, title=title, lead=lead, notes=notes, series=SERIES
    )
