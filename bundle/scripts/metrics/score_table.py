"""Tables of scores: CSV, JSON and text, and the evaluation of folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import ignite.distributed as idist
from ignite.engine import Engine, Events
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import SpatialImage

from ..data.case_files import CHANNEL_SUFFIX, list_volumes
from ..data.headers import grid_shift_mm
from ..data.volumes import as_label_ids, case_name, open_volume, read_voxels, tolerable_shift_mm
from ..runtime.atomic_files import write_whole
from ..runtime.csv_tables import csv_text, read_csv_rows
from ..runtime.errors import BadInput
from ..runtime.parallel import for_each
from .dsc_nsd import OrganScore, ScoreRow, as_rows, check_tolerance, crop_to_foreground, organ_names, organ_scores

COLUMNS = ("case", "label", "organ", "dsc", "nsd")

PathLike = str | os.PathLike[str]


class ScoreReport:
    """A handler for evaluators: writes the table of scores and their summary, and prints the summary.

    Args:
        csv_path: one line per case and organ.
        json_path: what `summarise` returns.
        metric_name: the name under which `OrganScores` is attached to the evaluator.
    """

    def __init__(self, *, csv_path: PathLike, json_path: PathLike, metric_name: str = "mean_dsc") -> None:
        self.csv_path = csv_path
        self.json_path = json_path
        self.metric_name = metric_name

    def attach(self, engine: Engine) -> None:
        """Report when the engine has completed its run."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write and print the scores, in the first process only."""
        if idist.get_rank() > 0:
            return
        details = engine.state.metric_details  # type: ignore[attr-defined]
        if self.metric_name not in details:
            raise BadInput(f"metric_name must be that of an attached OrganScores metric, got {self.metric_name!r}.")
        rows = details[self.metric_name]
        summary = summarise(rows)
        write_csv(rows, self.csv_path)
        write_json(summary, self.json_path)
        print(format_table(summary))


def write_csv(rows: Iterable[ScoreRow], path: PathLike) -> None:
    """Write one line per case and organ, scores in [0, 1] with 6 decimals; an existing file is replaced as a whole."""
    cells = [{**row, "dsc": f"{row['dsc']:.6f}", "nsd": f"{row['nsd']:.6f}"} for row in rows]
    write_whole(Path(path), csv_text(COLUMNS, [[row[name] for name in COLUMNS] for row in cells]))


def read_csv(path: PathLike) -> list[ScoreRow]:
    """Return the rows that `write_csv` wrote."""
    return [
        {
            "case": row["case"],
            "label": int(row["label"]),
            "organ": row["organ"],
            "dsc": float(row["dsc"]),
            "nsd": float(row["nsd"]),
        }
        for row in read_csv_rows(Path(path))
    ]


def write_json(summary: Mapping[str, Any], path: PathLike) -> None:
    """Write the summary; an existing file is replaced as a whole."""
    write_whole(Path(path), json.dumps(summary, indent=2, allow_nan=False) + "\n")


def summarise(rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """Return the mean and the sample standard deviation over the cases, for each organ and for their average.

    {"organs": {organ: {"dsc": {"mean", "sd"}, "nsd": {"mean", "sd"}, "cases"}}, "mean": {"dsc": ..., "nsd": ...}};
    "mean" is taken over each case's average of its organs. The deviation of a single case is 0. Raises `BadInput`
    if there are no rows.
    """
    if not rows:
        raise BadInput("rows must hold at least one score: nothing has been evaluated.")
    organs = {}
    for organ in dict.fromkeys(row["organ"] for row in rows):
        of_organ = [row for row in rows if row["organ"] == organ]
        organs[organ] = {
            "dsc": _mean_and_sd([row["dsc"] for row in of_organ]),
            "nsd": _mean_and_sd([row["nsd"] for row in of_organ]),
            "cases": len(of_organ),
        }
    return {
        "organs": organs,
        "mean": {"dsc": _mean_and_sd(_case_means(rows, "dsc")), "nsd": _mean_and_sd(_case_means(rows, "nsd"))},
    }


def format_table(summary: Mapping[str, Any]) -> str:
    """Return a table for the terminal: mean ± standard deviation in %, one line per organ, the average last."""
    cases = max(organ["cases"] for organ in summary["organs"].values())
    lines = [("organ", "DSC, %", "NSD, %", "cases")]
    for name, scores in {**summary["organs"], "mean": summary["mean"]}.items():
        lines.append((name, _percent(scores["dsc"]), _percent(scores["nsd"]), str(scores.get("cases", cases))))
    width = max(len(line[0]) for line in lines)
    return "\n".join(f"{organ:<{width}}  {dsc:>12}  {nsd:>12}  {n:>5}" for organ, dsc, nsd, n in lines)


def evaluate_folders(
    predictions: PathLike,
    references: PathLike,
    *,
    labels: Mapping[int, str] | Mapping[str, str],
    tolerance_mm: float = 1.0,
    processes: int | None = None,
) -> list[ScoreRow]:
    """Score a folder of NIfTI label maps against the references of the same names.

    The reference `train_000.nii.gz` belongs to the prediction `train_000.nii.gz` or `train_000_0000.nii.gz`, the
    image's name. The spacing is that of the reference's affine.

    Args:
        predictions: folder of label maps.
        references: folder of label maps of the same names.
        labels: label id -> organ name; the ids may be strings.
        tolerance_mm: of the NSD.
        processes: that score a case each, with both its maps in memory; by default as many as there are cores, 8 at
            most. 0 means in this process. The rows and their order don't depend on it.

    Raises:
        BadInput: before anything is scored: a missing or empty folder, a file without a partner, a file that isn't a
            3D NIfTI file, a pair on different grids; while scoring, for the first such case: a truncated file, values
            other than 0 and `labels`.
    """
    names = organ_names(labels)
    check_tolerance(tolerance_mm)
    pairs = _match(list_volumes(Path(predictions)), list_volumes(Path(references)))
    for prediction, reference in pairs.values():
        _require_same_grid(open_volume(prediction), open_volume(reference))
    score = partial(_score_case, labels=names, tolerance_mm=tolerance_mm)
    scores = for_each(score, list(pairs.values()), description="scoring", processes=processes)
    return [row for case, of_case in zip(pairs, scores, strict=True) for row in as_rows(case, of_case)]


def _score_case(files: tuple[Path, Path], *, labels: Mapping[int, str], tolerance_mm: float) -> list[OrganScore]:
    """Score a prediction's file against its reference's."""
    volumes = [open_volume(file) for file in files]
    maps = crop_to_foreground(*(read_voxels(volume) for volume in volumes))  # (x, y, z) each
    # turned: voxels come in Fortran's order, in which they would be sorted across the memory, ten times as slow
    prediction, reference = (as_label_ids(ids, labels, file) for ids, file in zip(maps, files, strict=True))
    x, y, z = (float(size) for size in voxel_sizes(volumes[1].affine))  # as all else: pixdim may say otherwise
    return organ_scores(prediction, reference, labels=labels, spacing_mm=(x, y, z), tolerance_mm=tolerance_mm)


def _mean_and_sd(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else 0.0}


def _case_means(rows: Iterable[ScoreRow], score: Literal["dsc", "nsd"]) -> list[float]:
    cases: dict[str, list[float]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row[score])
    return [fmean(values) for values in cases.values()]


def _percent(score: Mapping[str, float]) -> str:
    return f"{100 * score['mean']:.1f} ± {100 * score['sd']:.1f}"


def _match(predictions: Sequence[Path], references: Sequence[Path]) -> dict[str, tuple[Path, Path]]:
    """Return case -> (prediction, reference), in the references' order."""
    reference_of = _by_name((case_name(file), file) for file in references)
    names = [(case_name(file), file) for file in predictions]
    # a prediction may have the image's own name: that of its case and nnU-Net's suffix of the first channel
    prediction_of = _by_name((n if n in reference_of else n.removesuffix(CHANNEL_SUFFIX), file) for n, file in names)
    alone = [file for name, file in reference_of.items() if name not in prediction_of]
    if alone:
        raise BadInput(f"{alone[0]}: has no prediction, as {len(alone)} of {len(references)} references. Predict it.")
    alone = [file for name, file in prediction_of.items() if name not in reference_of]
    if alone:
        raise BadInput(f"{alone[0]}: has no reference, as {len(alone)} of {len(predictions)} predictions. Take it out.")
    return {name: (prediction_of[name], reference) for name, reference in reference_of.items()}


def _by_name(files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    by_name: dict[str, Path] = {}
    for name, file in files:
        if name in by_name:
            raise BadInput(f"{file}: is of the same case as {by_name[name].name}. Take one of them out.")
        by_name[name] = file
    return by_name


def _require_same_grid(prediction: SpatialImage, reference: SpatialImage) -> None:
    files = f"{prediction.get_filename()}: differs from its reference {reference.get_filename()} in its"
    remedy = "Resample the prediction onto the reference's grid."
    if prediction.shape != reference.shape:
        raise BadInput(f"{files} shape, {prediction.shape} instead of {reference.shape}. {remedy}")
    if grid_shift_mm(prediction, reference) > tolerable_shift_mm(reference):
        raise BadInput(f"{files} affine. {remedy}")
