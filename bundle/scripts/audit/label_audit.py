"""Label audit: cases and slices ranked by how unlike their labels are to the committee's predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..handlers.loss_record import FILE, read_losses
from ..runtime.atomic_files import write_whole
from ..runtime.csv_tables import csv_text
from ..runtime.errors import BadInput
from ..visualize.suspects import draw_suspects
from .usual_values import Numbers, Usual, median_value, too_many, usual_value

SINCE = 0.5  # of the training: before, the committee knows too little
SUSPECT = 3.0  # typical deviations
TOO_MANY = " These are too many to tell which are wrong: none is listed to be left out."
LEAST_DEVIATION = 0.01  # of a DSC: a class that all cases get right alike is no reason to distrust the next best
HEADER = "# Take out the lines of labels that are right, save it elsewhere, and train with --exclude and that file."


@dataclass(frozen=True)
class Suspect:
    """A case or a slice, and what the second half of the training showed of it."""

    case: str
    slice: int | None  # counted from 0 along the last axis of the orientation that was trained on; None: a whole case
    rank: int  # 1 is distrusted most
    distrust: float  # in typical deviations from the usual; see `case_distrust` and `slice_distrust`
    label: str  # whose outline is distrusted most
    dsc: float  # of the label and what the committee would have labelled, mean over the labels
    loss: float  # cross entropy, mean over members and samples
    dropped: float  # share of the members' choices
    seen: int  # samples


def audit(run: str | Path, *, out: str | Path | None = None, top: int = 20) -> list[Suspect]:
    """Rank the cases that a training was shown, and write what a person needs to look at them.

    Written are `cases.csv` and `slices.csv`, ranked; `suspects.txt`, the names of the cases with a distrust of 3 or
    more, which `exclude` takes; and `pictures`, the most distrusted cases with their labels outlined.

    Distrust is what others call a label-quality score, turned round: 0 for a usual label, the higher the worse. It
    tells labels that are unlike the others, as long as four in ten are right and so alike: if more than 60 % of the
    cases are suspects, nobody can tell, and `suspects.txt` names none. What is wrong everywhere in the same way isn't
    seen; a rare anatomy with a right label is. A case of which few samples were drawn (`seen`) is judged by few.

    Args:
        run: the output folder of a training.
        out: the folder for all that; by default `audit` in the run's.
        top: how many cases to draw; 0 for none.

    Raises:
        BadInput: no record of losses; an image or label map that isn't there any more, after the tables were written.
    """
    table, about = read_losses(Path(run) / FILE)
    folder = Path(run) / "audit" if out is None else Path(out)
    cases, slices = rank(table, labels=about["labels"], by_slice=False), rank(table, labels=about["labels"])
    write_audit(cases, slices, about=about, folder=folder, top=top)
    return cases


def write_audit(
    cases: Sequence[Suspect], slices: Sequence[Suspect], *, about: Mapping[str, Any], folder: Path, top: int
) -> None:
    """Write the files of `audit`; `about` is what `read_losses` has returned."""
    if not isinstance(top, int) or top < 0:
        raise BadInput(f"top: must be 0 or a whole number above it, got {top!r}. Give another with --top.")
    write_rows(cases, folder / "cases.csv")
    write_rows(slices, folder / "slices.csv")
    write_suspects(cases, folder / "suspects.txt")
    draw_suspects(cases[:top], slices, about=about, folder=folder / "pictures")


def write_suspects(cases: Sequence[Suspect], path: Path) -> None:
    """Write the names of the cases with a distrust of 3 or more, for `exclude`; none if they are too many."""
    suspects = [row for row in cases if row.distrust >= SUSPECT]
    if too_many(len(suspects), len(cases)):
        lines = [f"# {len(suspects)} of {len(cases)} cases are suspects: too many to tell which are wrong."]
    else:
        lines = [f"{row.case}  # {row.distrust:.1f}, {row.label}" for row in suspects]
    write_whole(path, "\n".join([HEADER, *lines, ""]))


def rank(table: pa.Table, *, labels: Mapping[str, str], by_slice: bool = True, since: float = SINCE) -> list[Suspect]:
    """Return the cases or the slices of a record, the most distrusted first.

    Args:
        table: of `loss_record.read_losses`.
        labels: label id -> name, as in the configuration.
        by_slice: rank slices, not cases.
        since: the share of the epochs that is left out at the beginning.
    """
    epochs = table["epoch"].to_numpy()
    late = table.filter(epochs > since * epochs.max())
    cases = np.array(late["case"].to_pylist())
    indices = late["slice"].to_numpy() if by_slice else np.zeros(len(cases), int)
    names, codes = np.unique(cases, return_inverse=True)
    groups, group = np.unique(np.stack([codes, indices], axis=1), axis=0, return_inverse=True)
    group = group.reshape(-1)  # numpy 2.0 alone has another shape
    seen = np.bincount(group)

    def means(column: str) -> Numbers:
        values = matrix(late, column)
        return np.stack([np.bincount(group, of_one) / seen for of_one in values.T], axis=1)  # (groups, n)

    areas = [means(column)[:, 1:] for column in ("labelled", "expected", "agreed")]  # without background
    distrust, worst = (slice_distrust if by_slice else case_distrust)(*areas)
    dsc = dice(*areas).mean(axis=1)
    loss, dropped = means("losses").mean(axis=1), 1 - means("kept").mean(axis=1)
    order = np.lexsort((np.arange(len(groups)), -distrust))
    ids = sorted(labels, key=int)
    return [
        Suspect(
            case=str(names[groups[i, 0]]),
            slice=int(groups[i, 1]) if by_slice else None,
            rank=place,
            distrust=float(distrust[i]),
            label=labels[ids[worst[i]]] if worst[i] < len(ids) else f"class {worst[i] + 1}",
            dsc=float(dsc[i]),
            loss=float(loss[i]),
            dropped=float(dropped[i]),
            seen=int(seen[i]),
        )
        for place, i in enumerate(order.tolist(), start=1)
    ]


def case_distrust(labelled: Numbers, expected: Numbers, agreed: Numbers) -> tuple[Numbers, NDArray[np.intp]]:
    """Return each case's distrust, and the class that gives the most of it.

    By class: how much lower the DSC of label and committee is than the usual one, in typical deviations, see
    `usual_value`. What is better counts as 0. Over the classes the root mean square, so that one organ that is missing
    isn't lost among many.

    Args:
        labelled, expected, agreed: pixels by label, by committee, by both, `(cases, classes)` without background.
    """
    score = deviations(1 - dice(labelled, expected, agreed), shown=labelled > 0)
    return np.sqrt(np.mean(score**2, axis=1)), score.argmax(axis=1)


def slice_distrust(labelled: Numbers, expected: Numbers, agreed: Numbers) -> tuple[Numbers, NDArray[np.intp]]:
    """Return each slice's distrust, and the class that gives the most of it.

    By class: the pixels on which label and committee differ, by the root of the class's area. That is as wide as the
    rim in doubt along the organ's border, whatever the organ's size. How far it lies above the median slice that
    shows the class, in typical deviations; over the classes the root mean square.

    Args:
        labelled, expected, agreed: see `case_distrust`, `(slices, classes)`.
    """
    area = np.maximum(labelled, expected)
    rim = (labelled + expected - 2 * agreed) / np.sqrt(area + 0.05 * usual_area(area))  # or a few pixels would be much
    score = deviations(rim, shown=area > 0, usual=median_value)
    return np.sqrt(np.mean(score**2, axis=1)), score.argmax(axis=1)


def dice(labelled: Numbers, expected: Numbers, agreed: Numbers) -> Numbers:
    """Return the DSC of each class, `(rows, classes)`; near 1 where both show next to nothing of it.

    A tenth of the class's usual area is added to each: some pixels that the committee sees where there is no such
    organ aren't a missing label.
    """
    spare = 0.1 * usual_area(labelled)
    return (2 * agreed + spare) / (labelled + expected + spare)


def usual_area(areas: Numbers) -> Numbers:
    """Return the median of each column `(rows, columns)` where there is anything, 1 where there is nothing."""
    return np.array([np.median(column[column > 0]) if (column > 0).any() else 1.0 for column in areas.T])


def deviations(
    values: Numbers, *, shown: NDArray[np.bool_], usual: Callable[[Numbers], Usual] = usual_value
) -> Numbers:
    """Return how far values lie above what is usual in their column, in typical deviations, 0 below: `(rows, columns)`.

    Args:
        values: `(rows, columns)`.
        shown: where the usual value and the typical deviation are taken from, `(rows, columns)`.
        usual: how both are taken.
    """
    scores = np.zeros_like(values)
    for column, (of_column, known) in enumerate(zip(values.T, shown.T, strict=True)):
        value, deviation = usual(of_column[known] if known.any() else of_column)
        scores[:, column] = np.maximum(of_column - value, 0) / max(deviation, LEAST_DEVIATION)
    return scores


def matrix(table: pa.Table, column: str) -> Numbers:
    """Return a column of lists as `(rows, n)`."""
    values = pa.concat_arrays([chunk.flatten() for chunk in table[column].chunks])
    rows: Numbers = values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(table.num_rows, -1)
    return rows


def write_rows(rows: Sequence[Suspect], path: Path) -> None:
    """Write rows as CSV, whole or not at all; whole cases have no column "slice"."""
    columns = [name for name, value in asdict(rows[0]).items() if value is not None]
    write_whole(path, csv_text(columns, [[rounded(getattr(row, name)) for name in columns] for row in rows]))


def rounded(value: object) -> object:
    """Return a number with 4 decimals as text, and all else as it is."""
    return f"{value:.4f}" if isinstance(value, float) else value


def format_suspects(rows: Sequence[Suspect], *, top: int = 20) -> str:
    """Return the most distrusted cases as a table of plain text, those above the threshold with a mark."""
    wide = max(len("case"), *(len(row.case) for row in rows[:top]), 0)
    lines = [f"{'':4}  {'case':{wide}}  distrust   DSC   loss  dropped  seen  most of all"]
    for row in rows[:top]:
        mark = "*" if row.distrust >= SUSPECT else ""
        numbers = f"{row.distrust:7.1f}{mark:1}  {row.dsc:.2f}  {row.loss:.3f}  {row.dropped:6.0%}  {row.seen:5}"
        lines.append(f"{row.rank:4}  {row.case:{wide}} {numbers}  {row.label}")
    suspects = sum(row.distrust >= SUSPECT for row in rows)
    last = f"* {suspects} of {len(rows)} cases have a distrust of {SUSPECT:g} or more."
    return "\n".join([*lines, last + (TOO_MANY if too_many(suspects, len(rows)) else "")])
