"""Where do slices lie, so that training reads one without its volume?"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from .errors import BadInput
from .resampling import resample_labels, resample_slices, resampled_size
from .volumes import as_label_ids, case_name, open_volume, read_voxels, require_same_grid

FORMAT = 1  # part of a case's key: stores of another format are made anew


@dataclass(frozen=True)
class StoredCase:
    """A case on disk at the training's in-plane spacing, in RAS order; reading a slice reads nothing else.

    `image.npy` is `(slices, channels, x, y)` int16 in HU, `label.npy` is `(slices, x, y)` uint8: 3 bytes a voxel.
    """

    name: str
    folder: Path
    slices_with: dict[int, list[int]]  # label id -> the slices that show it

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a slice's image `(channels, x, y)` and label `(x, y)`."""
        image = np.load(self.folder / "image.npy", mmap_mode="r")[index]
        return np.array(image), np.array(np.load(self.folder / "label.npy", mmap_mode="r")[index])

    @property
    def slices(self) -> int:
        """The number of slices."""
        return len(np.load(self.folder / "label.npy", mmap_mode="r"))


def store_cases(
    data: Sequence[Mapping[str, Any]], *, folder: Path, spacing_mm: Sequence[float], labels: Mapping[Any, str]
) -> list[StoredCase]:
    """Write what isn't stored yet and return all cases.

    A case is stored under a key of its files' paths, sizes and times and of the settings, in one rename: a store can
    be shared by runs, and an interrupted one goes on where it was.

    Raises:
        BadInput: see `store_case`.
    """
    stored = []
    for case in tqdm(data, desc="reading cases", unit="case", leave=False, disable=None):
        key = [FORMAT, list(spacing_mm), sorted(int(label) for label in labels)]
        for path in (case["image"], case["label"]):
            open_volume(path)  # names the file if there is none
            key.append([str(Path(path).resolve()), os.stat(path).st_size, os.stat(path).st_mtime_ns])
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        place = folder / f"{case_name(case['label'])}-{digest}"
        if not place.is_dir():
            store_case(case, place=place, spacing_mm=spacing_mm, labels=labels)
        slices_with = json.loads((place / "slices_with.json").read_text())
        stored.append(StoredCase(case_name(case["label"]), place, {int(k): v for k, v in slices_with.items()}))
    return stored


def store_case(case: Mapping[str, Any], *, place: Path, spacing_mm: Sequence[float], labels: Mapping[Any, str]) -> None:
    """Resample one case in-plane and write it.

    Raises:
        BadInput: a file that can't be read; NaN; image and label that don't match; unknown label ids.
    """
    image_file, label_file = open_volume(case["image"]), open_volume(case["label"])
    require_same_grid(image_file, label_file)
    read_voxels(image_file), as_label_ids(read_voxels(label_file), labels, case["label"])
    image, label = nib.as_closest_canonical(image_file), nib.as_closest_canonical(label_file)
    size = resampled_size(image.shape[:2], image.header.get_zooms()[:2], spacing_mm)

    slices = torch.from_numpy(np.asanyarray(image.dataobj).astype(np.float32)).permute(2, 0, 1)  # (slices, x, y)
    hu = resample_slices(slices, size, order=3).round().clamp(-32768, 32767).to(torch.int16)
    ids = torch.from_numpy(np.asanyarray(label.dataobj).astype(np.uint8)).permute(2, 0, 1)
    ids = resample_labels(ids, size)
    slices_with = {int(v): (ids == v).any(dim=(1, 2)).nonzero()[:, 0].tolist() for v in ids.unique() if v > 0}

    unfinished = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        np.save(unfinished / "image.npy", hu[:, None].numpy())
        np.save(unfinished / "label.npy", ids.numpy())
        (unfinished / "slices_with.json").write_text(json.dumps(slices_with))
        unfinished.rename(place)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise BadInput(f"{place}: can't be written ({error}). Make room, or choose another --cache_dir.") from error
