"""Data-set fingerprint: spacings, sizes and foreground intensities."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from ..data.case_files import Case
from ..data.volumes import as_label_ids, open_volume, read_image, read_voxels, require_same_grid
from ..runtime.atomic_files import put_in_place, read_with_checksum, unfinished_path, with_checksum
from ..runtime.errors import BadInput
from ..runtime.parallel import for_each
from ..transforms.normalisation import nonzero_box

MOST_VALUES = 20_000  # different intensities of a channel that are told apart; CT has some thousands


@dataclass(frozen=True)
class CaseFingerprint:
    """One case, its axes turned to right, anterior, superior (RAS)."""

    name: str
    spacing_mm: list[float]  # x, y, z
    size: list[int]  # x, y, z, cropped to what isn't 0
    share_kept: float  # of the voxels, by that crop
    label_voxels: dict[str, int]  # label id -> voxels
    foreground: list[dict[str, list[float]]]  # of each channel: the labelled voxels' values, and how often each occurs


def measure_cases(
    cases: Sequence[Case], *, labels: Mapping[Any, str], folder: Path, processes: int | None = None
) -> list[CaseFingerprint]:
    """Measure all cases in parallel; what lies measured in `folder` already is only read.

    Raises:
        BadInput: see `measure_case`; a full disk. What was finished until then stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    measure = partial(measured, labels=dict(labels), folder=folder)
    return list(for_each(measure, cases, description="measuring cases", processes=processes))


def measured(case: Case, *, labels: Mapping[Any, str], folder: Path) -> CaseFingerprint:
    """Return a case's fingerprint from `folder`; measure it first if it isn't there or its files have changed."""
    for path in (*case.image, case.label):
        open_volume(path, may_have_channels=path != case.label)  # names the file if there is none
    stats = [(str(path.resolve()), os.stat(path)) for path in (*case.image, case.label)]
    key = [sorted(int(label) for label in labels), [[p, s.st_size, s.st_mtime_ns] for p, s in stats]]
    path = folder / f"{case.name}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    known = read_with_checksum(path)
    if known is None:
        fingerprint = measure_case(case, labels=labels)
        unfinished = unfinished_path(path)
        try:
            unfinished.write_text(with_checksum(asdict(fingerprint)))
            put_in_place(unfinished, path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise BadInput(f"{path}: can't be written ({error}). Make room, or choose another folder.") from error
        return fingerprint
    return CaseFingerprint(**known)


def measure_case(case: Case, *, labels: Mapping[Any, str]) -> CaseFingerprint:
    """Measure one case.

    Raises:
        BadInput: a file that can't be read; NaN; image and label that don't match; unknown label ids.
    """
    voxels, grid = read_image(list(case.image))
    label_file = open_volume(case.label)
    require_same_grid(grid, label_file)
    label = as_label_ids(read_voxels(label_file), labels, case.label)
    box = nonzero_box(torch.from_numpy(voxels))
    cropped = [part.stop - part.start for part in box]
    axes = nib.io_orientation(grid.affine)[:, 0].astype(int)  # of each file axis: which of x, y, z it is
    spacing_mm, size = [0.0] * 3, [0] * 3
    for axis, length, n in zip(axes, nib.affines.voxel_sizes(grid.affine), cropped, strict=True):
        spacing_mm[axis], size[axis] = float(length), int(n)
    ids, counts = np.unique(label[label > 0], return_counts=True)
    return CaseFingerprint(
        name=case.name,
        spacing_mm=spacing_mm,
        size=size,
        share_kept=float(np.prod(cropped) / label.size),
        label_voxels={str(int(i)): int(n) for i, n in zip(ids, counts, strict=True)},
        foreground=[count_values(channel[label > 0]) for channel in voxels],
    )


def count_values(voxels: np.ndarray) -> dict[str, list[float]]:
    """Return the different values and how often each occurs; beyond 20,000 values, of as many equal steps."""
    values, counts = np.unique(voxels, return_counts=True)
    if len(values) > MOST_VALUES:
        step = float(values[-1] - values[0]) / (MOST_VALUES - 1)
        values, inverse = np.unique(np.round((values - values[0]) / step) * step + values[0], return_inverse=True)
        counts = np.bincount(inverse, weights=counts).astype(int)
    return {"values": values.astype(float).tolist(), "counts": counts.tolist()}


@dataclass(frozen=True)
class ForegroundIntensities:
    """The labelled voxels of one channel over all cases; None everywhere if no case shows any label."""

    percentile_00_5: float | None
    median: float | None
    percentile_99_5: float | None
    mean: float | None
    sd: float | None
    smallest: float | None
    largest: float | None


def foreground_intensities(cases: Sequence[CaseFingerprint], channel: int) -> ForegroundIntensities:
    """Return one channel's statistics over all labelled voxels of all cases: each voxel counts once, as in nnU-Net v1.

    nnU-Net v2 draws as many voxels from each case instead.
    """
    values = np.concatenate([np.asarray(case.foreground[channel]["values"]) for case in cases])
    counts = np.concatenate([np.asarray(case.foreground[channel]["counts"], float) for case in cases])
    if len(values) == 0:
        return ForegroundIntensities(*[None] * 7)
    order = np.argsort(values, kind="stable")
    values, counts = values[order], counts[order]
    reached = np.cumsum(counts) / counts.sum()
    low, median, high = (float(values[np.searchsorted(reached, share - 1e-12)]) for share in (0.005, 0.5, 0.995))
    mean = float((values * counts).sum() / counts.sum())
    sd = float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
    return ForegroundIntensities(low, median, high, mean, sd, float(values[0]), float(values[-1]))
