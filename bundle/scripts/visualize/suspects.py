"""Pictures of cases with distrusted labels, for a person to judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.lines import Line2D
from tqdm import tqdm

from ..data.volumes import first_file, label_ids, open_volume, read_voxels, whole_numbers
from ..runtime.errors import BadInput
from .slice_drawing import (
    DAYLIGHT,
    ON_CT,
    dark_page,
    draw_contour,
    finish_page,
    grey_window,
    read_grey,
    save_png,
    show_slice,
)

SLICES = 3  # of a case


def draw_suspects(cases: Sequence[Any], slices: Sequence[Any], *, about: Mapping[str, Any], folder: Path) -> None:
    """Draw the three most distrusted slices of each case into `<folder>/<rank>_<case>.png`; earlier ones are removed.

    Args:
        cases: those to draw, and
        slices: of all cases, each a `label_audit.Suspect`.
        about: `cases` (name -> files), `labels` (id -> name) and `orientation` of `loss_record.read_losses`.
        folder: of the pictures.

    Raises:
        BadInput: the record doesn't say where the files are; a file is missing or can't be read.
    """
    for earlier in folder.glob("[0-9][0-9][0-9]_*.png"):
        earlier.unlink()
    distrusts: dict[str, dict[int, float]] = {case.case: {} for case in cases}
    for one in slices:
        distrusts.get(one.case, {})[one.slice] = one.distrust
    for case in tqdm(cases, "pictures", unit="case", disable=None, leave=False):
        if case.case not in about["cases"]:
            raise BadInput(f"{case.case}: the record of the training doesn't name its files. Draw nothing, --top 0.")
        draw_suspect(
            about["cases"][case.case],
            distrusts[case.case],
            about=about,
            title=f"{case.rank}. {case.case}: distrust {case.distrust:.1f}, most of all {case.label}",
            path=folder / picture_name(case),
        )


def picture_name(case: Any) -> str:
    """Return the file of a case's picture: a `label_audit.Suspect`'s."""
    return f"{case.rank:03d}_{case.case}.png"


def draw_suspect(
    files: Mapping[str, Any], slices: Mapping[int, float], *, about: Mapping[str, Any], title: str, path: Path
) -> None:
    """Draw a case's most distrusted slices, plain on the left and with the label's outlines on the right.

    Slices are those that were trained on: along the last axis of the orientation, which the letters R, A, S, L, P and I
    at the borders show. A CT's grey values are those of soft tissue, 40 +- 200 HU.
    """
    image, affine = read_grey(first_file(files["image"]))
    label = whole_numbers(read_voxels(open_volume(files["label"])))
    if image.shape != label.shape:
        raise BadInput(f"{files['label']}: has the shape {label.shape}, its image {image.shape}. Was it replaced?")
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(about["orientation"])
    )
    spacing_mm = np.empty(3)
    spacing_mm[turn[:, 0].astype(int)] = nib.affines.voxel_sizes(affine)
    image, label = (nib.orientations.apply_orientation(array, turn) for array in (image, label))
    colours = {i: ON_CT[number % len(ON_CT)] for number, i in enumerate(label_ids(about["labels"]))}
    window = grey_window(image)
    shown = pick_apart(slices, count=SLICES, depth=image.shape[2])

    figure, grid = dark_page(len(shown), size_mm=np.multiply(image.shape, spacing_mm))
    for z, (plain, outlined) in zip(shown, grid, strict=True):
        for axes in (plain, outlined):
            show_slice(axes, image[:, :, z], spacing_mm, window=window, orientation=about["orientation"], fontsize=19)
        text = f"slice {z} of 0 to {image.shape[2] - 1}, distrust {slices[z]:.1f}"
        plain.set_title(text, loc="left", color=DAYLIGHT, fontsize=22, pad=8)
        for i, colour in colours.items():
            draw_contour(outlined, label[:, :, z] == i, spacing_mm, colour=colour, width=2.4)
    key = [Line2D([], [], color=colours[int(i)], linewidth=5, label=name) for i, name in about["labels"].items()]
    finish_page(figure, title=title, key=key)
    save_png(figure, path)


def pick_apart(slices: Mapping[int, float], *, count: int, depth: int) -> list[int]:
    """Return up to `count` slices, rising: the most distrusted that lie an eighth of the depth or more apart."""
    picked: list[int] = []
    for z in sorted(slices, key=lambda z: (-slices[z], z)):
        if len(picked) < count and all(abs(z - other) * 8 >= depth for other in picked):
            picked.append(z)
    return sorted(picked)
