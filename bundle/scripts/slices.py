"""Which slices are drawn for a mini-batch?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from torch.utils.data import Dataset, Sampler

from .cases import require_cases
from .errors import BadInput
from .slice_store import StoredCase, store_cases

Draw = tuple[int, bool]  # seed of a sample, and whether it must show foreground


class SliceSampler(Sampler[list[Draw]]):
    """Mini-batches of draws: a sample is a function of its seed, whichever worker makes it.

    The last third of each batch must show foreground: of 8 samples the indices 5, 6 and 7, as in nnU-Net v1
    (`oversample_foreground_percent` 0.33). The seeds follow from the run's seed, the epoch, the iteration and the
    place in the batch, so that runs repeat and resume exactly.

    Args:
        batch_size: samples in a mini-batch.
        iterations: mini-batches in an epoch, whatever the size of the data set.
        seed: of the run.
    """

    def __init__(self, *, batch_size: int, iterations: int, seed: int = 0) -> None:
        if batch_size < 1 or iterations < 1:
            raise BadInput(f"batch_size and iterations must be at least 1, got {batch_size} and {iterations}.")
        self.batch_size = batch_size
        self.iterations = iterations
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[list[Draw]]:
        random_places = round(self.batch_size * (1 - 0.33))
        for iteration in range(self.iterations):
            seeds = np.random.SeedSequence([self.seed, self.epoch, iteration]).generate_state(self.batch_size)
            yield [(int(seed), place >= random_places) for place, seed in enumerate(seeds)]


class SliceDataset(Dataset[dict[str, Any]]):
    """Random slices of random cases, cut to a size: `dataset[draw]`, not `dataset[index]`.

    Cases are drawn uniformly, then a slice. With forced foreground: a class that the case shows, a slice that shows
    it, and the cut centred on one of its pixels. A slice smaller than the cut comes whole; the transform pads it.

    Args:
        data: `{"image": path, "label": path}` of each case.
        transform: from `{"image": (channels, x, y) float32 in HU, "label": (1, x, y) uint8, "case", "slice"}`.
        crop_size: of the cut, x and y.
        spacing_mm: in-plane, x and y.
        labels: label id -> name.
        cache_dir: where the slices are stored.

    Raises:
        BadInput: labels whose ids aren't 1, 2, 3 and so on; when the cases are read: see `require_cases`.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        crop_size: Sequence[int],
        spacing_mm: Sequence[float],
        labels: Mapping[Any, str],
        cache_dir: str,
    ) -> None:
        if sorted(int(label) for label in labels) != list(range(1, len(labels) + 1)):
            raise BadInput(f"labels must have the ids 1 to {len(labels)}, got {', '.join(map(str, labels))}.")
        self.data = data
        self.transform = transform if isinstance(transform, Compose) else Compose([transform])
        self.crop_size = crop_size
        self.spacing_mm = spacing_mm
        self.labels = labels
        self.cache_dir = cache_dir

    @cached_property
    def cases(self) -> list[StoredCase]:
        """The cases on disk, stored on the first look."""
        require_cases(self.data)  # type: ignore[arg-type]
        return store_cases(self.data, folder=Path(self.cache_dir), spacing_mm=self.spacing_mm, labels=self.labels)

    def prepare(self) -> None:
        """Store the cases now, before workers start."""
        if not any(case.slices_with for case in self.cases):
            raise BadInput(f"{self.data[0]['label']}: no label map shows any label, from this one on. Check labels.")

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        seed, foreground = draw
        rng = np.random.default_rng(seed)
        case = self.cases[rng.integers(len(self.cases))]
        label_id = rng.choice(sorted(case.slices_with)) if foreground and case.slices_with else None
        index = int(rng.integers(case.slices) if label_id is None else rng.choice(case.slices_with[label_id]))
        image, label = case.read(index)
        window = self.cut(label, label_id, rng)
        self.transform.set_random_state(seed=int(rng.integers(2**32)))
        sample = self.transform(
            {
                "image": torch.from_numpy(image[(slice(None), *window)].astype(np.float32)),
                "label": torch.from_numpy(label[window][None]),
            }
        )
        return {"image": sample["image"], "label": sample["label"], "case": case.name, "slice": index}

    def cut(self, label: np.ndarray, label_id: int | None, rng: np.random.Generator) -> tuple[slice, ...]:
        """Return the window: around a random pixel of the class, or anywhere, always inside of the slice."""
        if label_id is None:
            centre = None
        else:
            centre = rng.choice(np.argwhere(label == label_id))
        starts = []
        for axis, (size, crop) in enumerate(zip(label.shape, self.crop_size, strict=True)):
            last = max(0, size - crop)
            start = rng.integers(last + 1) if centre is None else np.clip(centre[axis] - crop // 2, 0, last)
            starts.append(int(start))
        return tuple(slice(start, start + crop) for start, crop in zip(starts, self.crop_size, strict=True))
