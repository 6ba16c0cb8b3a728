"""The report's worst cases: the lowest scores of each organ, with the members' disagreement."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.volumes import first_file, open_volume, read_voxels, whole_numbers
from ..inference.disagreement import FULL_SCALE
from ..inference.predictor import Predictor
from ..metrics.dsc_nsd import ScoreRow
from ..runtime.errors import BadInput
from ..visualize.slice_drawing import grey_window, ras_spacing, read_grey, to_ras
from ..visualize.worst_cases import draw_challenge, region, telling_slice
from .runs import Run
from .scores import percent
from .tables import Column, Table

MOST = 12  # pictures of a run


@dataclass(frozen=True)
class Challenge:
    """A case on which an organ's score is lowest, and what is shown of it."""

    row: ScoreRow
    fold: int
    file: str = ""  # the picture's name; none: it couldn't be drawn
    slice: int = 0  # from 1 at the feet
    slices: int = 0


def challenges_of(run: Run, *, count: int) -> list[Challenge]:
    """Return the cases with the lowest DSC of each organ, `count` an organ, twelve at most: then the lowest of all."""
    lowest = []
    for organ in run.organs:
        rows = [row for row in run.rows if row["organ"] == organ]
        lowest += sorted(rows, key=lambda row: (row["dsc"], row["nsd"], row["case"]))[:count]
    kept = sorted(lowest, key=lambda row: row["dsc"])[:MOST]
    return [Challenge(row, run.folds[row["case"]]) for row in lowest if row in kept]


def draw_challenges(run: Run, *, count: int, folder: Path) -> tuple[list[Challenge], list[str]]:
    """Draw a run's most challenging cases; return them, and what couldn't be done.

    The volumes are labelled once more, with their fold's weights, to see where the members disagree.

    Args:
        run: with its files, labels and weights.
        count: cases of each organ.
        folder: of the pictures.
    """
    wanted = sorted(challenges_of(run, count=count), key=lambda one: (one.fold, one.row["case"]))
    drawn: list[Challenge] = []
    problems = [f"No cases are drawn: {run.problem}"] if run.problem and wanted else []
    with tqdm(total=len(wanted), desc=f"{run.name}: challenging cases", unit="case", disable=None, leave=False) as bar:
        for fold, of_fold in groupby(wanted, key=lambda one: one.fold):
            members = FoldMembers(run, fold)
            for case, of_case in groupby(of_fold, key=lambda one: one.row["case"]):
                ones = list(of_case)
                try:
                    drawn += ones if run.problem else draw_case(run, case, ones, members=members, folder=folder)
                except BadInput as error:
                    drawn += ones
                    problems.append(f"{case} isn't drawn: {error}")
                bar.update(len(ones))
            problems += members.problems
    order = {organ: place for place, organ in enumerate(run.organs)}
    return sorted(drawn, key=lambda one: (order[one.row["organ"]], one.row["dsc"])), list(dict.fromkeys(problems))


class FoldMembers:
    """Where a fold's members disagree, as long as their weights can be had.

    Of several runs with bundles of their own the first one's scripts are taken: a process has one package `scripts`.

    Args:
        run: with its bundle.
        fold: whose weights.
    """

    def __init__(self, run: Run, fold: int) -> None:
        self.problems: list[str] = []
        self.predictor: Predictor | None = None
        weights = run.folder / f"fold_{fold}" / "model.pt"
        try:
            values = {key: value for key, value in run.settings["values"].items() if key != "ckpt_path"}
            bundle = run.folder / "bundle"
            self.predictor = Predictor.from_config(bundle=bundle, overlays=run.overlays, ckpt_path=weights, **values)
        except BadInput as error:
            self.problems.append(f"Where the members of fold {fold} disagree isn't shown: {error}")

    def disagreement(self, image: Any) -> np.ndarray | None:
        """Return how much they disagree on an image, in [0, 1], `(x, y, z)` on its own grid."""
        if self.predictor is None:
            return None
        try:
            return np.asarray(self.predictor.predict_members(image)[-1].cpu(), np.float32) / FULL_SCALE
        except BadInput as error:  # a single member, say
            self.problems.append(f"Where the members disagree isn't shown: {error}")
            return None


def draw_case(
    run: Run, case: str, ones: Sequence[Challenge], *, members: FoldMembers, folder: Path
) -> Iterator[Challenge]:
    """Draw the organs of one case that are challenges, a picture each."""
    item = run.files.get(case)
    if item is None:
        raise BadInput(f"{case}: is no case of the data set any more. Was the data set changed?")
    source = first_file(item["image"])
    image, affine = read_grey(source)
    place = run.folder / f"fold_{ones[0].fold}" / "labels" / Path(source).name
    files = {"reference": item["label"], "prediction": place}
    maps = {name: whole_numbers(read_voxels(open_volume(file))) for name, file in files.items()}
    for name, voxels in maps.items():
        if voxels.shape != image.shape:
            raise BadInput(f"{source}: has the shape {image.shape}, its {name} {voxels.shape}. Was it replaced?")
    apart = members.disagreement(item["image"])
    image, spacing_mm = to_ras(image, affine), ras_spacing(affine)
    maps = {name: to_ras(voxels, affine) for name, voxels in maps.items()}
    apart = None if apart is None else to_ras(apart, affine)
    for one in ones:
        z = telling_slice(*(voxels == one.row["label"] for voxels in maps.values()))
        box = region({name: voxels[:, :, z] for name, voxels in maps.items()}, spacing_mm)
        name = re.sub(r"[^\w.-]+", "_", f"{one.row['organ']}_{Path(case).name}")
        file = f"challenging_{run.key}_{name}.png"
        draw_challenge(
            image[:, :, z][box],
            {name: voxels[:, :, z][box] for name, voxels in maps.items()},
            None if apart is None else apart[:, :, z][box],
            organs=run.organs,
            organ=one.row["organ"],
            window=grey_window(image),
            spacing_mm=spacing_mm,
            path=folder / file,
        )
        yield Challenge(one.row, one.fold, file, z + 1, image.shape[2])


def challenge_table(run: Run, ones: Sequence[Challenge]) -> Table:
    """Return what is said below the pictures."""
    names = ("organ", "case", "fold", "DSC, %", "NSD, %", "slice", "slices")
    rows = [
        (one.row["organ"], one.row["case"], str(one.fold), percent(100 * one.row["dsc"]), percent(100 * one.row["nsd"]))
        + ((str(one.slice), str(one.slices)) if one.file else ("", ""))
        for one in ones
    ]
    return Table(
        f"challenging_{run.key}",
        f"{run.name}: the cases with the lowest DSC of each organ",
        tuple(Column(name, is_text=name in ("organ", "case")) for name in names),
        tuple(tuple((text,) for text in row) for row in rows),
        note="Slices are counted from 1 at the feet.",
    )
