"""The report of a data check, as a table or JSON."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..data.case_files import Problem
from .data_check import Report

GAP = "  "
HEADINGS = ("file", "what is wrong", "what to do")


def format_report(report: Report, *, width: int | None = None) -> str:
    """Return the table of all problems, and what was found in the data set.

    Args:
        report: of the data set.
        width: in characters; by default the terminal's, or 100.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    refused = [_row(problem, report.folder) for problem in report.problems if not problem.usable]
    remarks = [_row(problem, report.folder) for problem in report.problems if problem.usable]
    widths = column_widths([file for file, _, _ in refused + remarks], width)
    lines: list[str] = []
    for title, rows in (("Can't be used:", refused), ("Can be used, but look at it:", remarks)):
        if rows:
            lines += [title, *format_table((HEADINGS, tuple("-" * n for n in widths), *rows), widths), ""]
    return "\n".join([*lines, *summary(report, width)])


def report_as_json(report: Report) -> str:
    """Return the report as JSON: layout, cases, usable (cases), problems, labels, channels, folds."""
    content: dict[str, Any] = {
        "layout": report.layout,
        "cases": report.cases,
        "usable": report.usable_cases,
        "problems": [asdict(problem) for problem in report.problems],
        "labels": {str(label): asdict(count) for label, count in (report.labels or {}).items()},
        "channels": list(report.channel_names),
        "folds": {str(fold): cases for fold, cases in (report.folds or {}).items()},
    }
    return json.dumps(content, indent=2)


def column_widths(files: Sequence[str], width: int) -> tuple[int, int, int]:
    """Return the widths of the three columns: files get up to two fifths, the rest is shared 3 to 2."""
    of_files = min(max(map(len, [*files, HEADINGS[0]])), max(12, width * 2 // 5))
    rest = max(24, width - of_files - 2 * len(GAP))
    return of_files, rest * 3 // 5, rest - rest * 3 // 5


def format_table(rows: Iterable[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """Return the rows as lines, wrapped; a file that is too long for its column gets a line of its own, uncut."""
    lines: list[str] = []
    for file, *texts in rows:
        if len(file) > widths[0]:
            lines.append(file)
            file = ""
        wrapped = [textwrap.wrap(t, w, break_on_hyphens=False) for t, w in zip(texts, widths[1:], strict=True)]
        for number in range(max(1, *map(len, wrapped))):
            cells = [file if number == 0 else "", *(cell[number] if number < len(cell) else "" for cell in wrapped)]
            lines.append(GAP.join(f"{cell:<{w}}" for cell, w in zip(cells, widths, strict=True)).rstrip())
    return lines


def summary(report: Report, width: int) -> list[str]:
    """Return how many cases can be used, and what was found."""
    remarks = sum(problem.usable for problem in report.problems)
    refused = report.cases - report.usable_cases
    line = f"{_count(report.cases, 'case')}: all can be used, and there is nothing to remark."
    if report.problems:
        line = f"{_count(report.cases, 'case')}, {refused} can't be used, {_count(remarks, 'remark')}"
        besides = f"; besides, {_count(report.incomplete, 'problem')} with files that make no case."
        line += besides if report.incomplete else "."
    lines = textwrap.wrap(line, width)
    facts = {"layout": report.layout, "channels": ", ".join(report.channel_names) or "without names"}
    counts = [(f"{label} {count.name}".strip(), count.cases) for label, count in (report.labels or {}).items()]
    facts["labels"] = ", ".join(f"{label} in {_count(cases, 'case')}" for label, cases in counts)
    if report.spacing_mm:
        facts["spacing"] = f"{_span(*report.spacing_mm)} mm"
    if report.size:
        facts["size"] = f"{_span(*report.size)} voxels"
    facts["folds"] = folds_text(report.folds)
    for name, text in facts.items():
        if text and report.layout:
            lines += textwrap.wrap(f"{name:<10}{text}", width, subsequent_indent=" " * 10, break_on_hyphens=False)
    return lines


def folds_text(folds: Mapping[int, int] | None) -> str:
    """Return which folds a data set has, and whose they are."""
    if not folds:
        return "made of the sorted names, as by nnU-Net (the data set names none)"
    return "the data list's own: " + ", ".join(f"{fold} of {_count(cases, 'case')}" for fold, cases in folds.items())


def _row(problem: Problem, folder: str) -> tuple[str, str, str]:
    """Return a problem's cells, its paths within the data set's folder."""
    inside = f"{folder.rstrip(os.sep)}{os.sep}"
    return problem.file.removeprefix(inside), problem.what.replace(inside, ""), problem.remedy.replace(inside, "")


def _span(low: Sequence[float], high: Sequence[float]) -> str:
    return " x ".join(
        f"{a:.4g}" if f"{a:.4g}" == f"{b:.4g}" else f"{a:.4g}-{b:.4g}" for a, b in zip(low, high, strict=True)
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
