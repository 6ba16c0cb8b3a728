"""Which cases train in a round, which validate, and how good are weights?"""

from __future__ import annotations

import math
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import nibabel as nib
import numpy as np

from ..scripts.data.volumes import case_name
from ..scripts.inference.predictor import Predictor
from ..scripts.metrics.dsc_nsd import dice, organ_names
from ..scripts.runtime.atomic_files import put_in_place, unfinished_path
from ..scripts.runtime.errors import BadInput

Cases = list[dict[str, str]]  # {"image": file, "label": file}


def split_cases(cases: Sequence[dict[str, str]], *, share: float) -> tuple[Cases, Cases]:
    """Return which cases train and which validate, by their names: the same in every round, whatever is added.

    At least one validates: that with the lowest hash.

    Raises:
        BadInput: fewer than two cases, or a share outside (0, 1).
    """
    if len(cases) < 2:
        raise BadInput(f"{len(cases)} finished labels: two are needed, one to train on and one to validate on.")
    if not 0 < share < 1:
        raise BadInput(f"val_split must be in (0, 1), got {share}.")
    ordered = sorted(cases, key=place)
    count = sum(place(case) < share for case in cases)
    count = min(max(count, 1), len(cases) - 1)
    return ordered[count:], ordered[:count]


def place(case: Mapping[str, str]) -> float:
    """Return a number in [0, 1) that hangs on the case's name alone."""
    return zlib.crc32(case_name(case["image"]).encode()) / 2**32


def mean_dsc(predictor: Predictor, cases: Sequence[Mapping[str, str]], labels: Mapping[str, str]) -> float:
    """Return the mean DSC over cases and organs, in [0, 1]; an organ that is nowhere in a case counts as 1."""
    scores = []
    for case in cases:
        found = predictor.predict(case["image"])[0].cpu().numpy()
        label: Any = nib.load(case["label"])
        reference = np.asanyarray(label.dataobj)
        scores += [dice(found == number, reference == number) for number in organ_names(labels)]
    return fmean(scores) if scores else math.nan


def replace_file(path: Path, source: Path) -> None:
    """Put a copy of a file in another one's place, in one rename."""
    unfinished = unfinished_path(path)
    shutil.copyfile(source, unfinished)
    put_in_place(unfinished, path)
