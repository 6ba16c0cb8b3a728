"""Data set and sampler of slices for training, with foreground oversampling as nnU-Net has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Compose
from torch.utils.data import Dataset, Sampler

from ..runtime.errors import BadInput
from ..transforms.normalisation import Normalisation
from ..transforms.resampling import Resampling
from .cases import require_cases
from .slice_store import Preparation, StoredCase, store_cases
from .volumes import label_ids


class Draw(NamedTuple):
    """What a sample is made from."""

    seed: int
    foreground: bool  # it must show some
    left_out: tuple[int, ...] = ()  # numbers of the cases that aren't drawn from


class SliceSampler(Sampler[list[Draw]]):
    """Mini-batches of draws: a sample is a function of its seed, whichever worker makes it.

    The last third of each batch must show foreground: of 8 samples the indices 5, 6 and 7, as in nnU-Net v1
    (`oversample_foreground_percent` 0.33). The seeds follow from the run's seed, the epoch, the iteration and the place
    in the batch, so that runs repeat and resume exactly, whatever the number of workers.

    Several processes (see `distributed`) have a part of one large mini-batch each: the first has its places 0, n,
    2 n, ... of n processes, the second 1, n + 1, ... So all have the same share of foreground, to a sample, and two
    with 4 samples each train on what one with 8 does.

    Args:
        batch_size: samples in a mini-batch of this process.
        iterations_per_epoch: mini-batches in an epoch, whatever the size of the data set.
        seed: of the run.

    Attributes:
        left_out: numbers of the cases that aren't drawn from, beginning with the next epoch. Draws carry it to the
            workers, which may be processes of their own.
    """

    def __init__(self, *, batch_size: int, iterations_per_epoch: int, seed: int = 0) -> None:
        if batch_size < 1 or iterations_per_epoch < 1:
            raise BadInput(
                f"batch_size and iterations_per_epoch must be at least 1, got {batch_size} and {iterations_per_epoch}."
            )
        self.batch_size = batch_size
        self.iterations_per_epoch = iterations_per_epoch
        self.seed = seed
        self.epoch = 0
        self.left_out: tuple[int, ...] = ()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.iterations_per_epoch

    def __iter__(self) -> Iterator[list[Draw]]:
        rank, world = idist.get_rank(), idist.get_world_size()
        samples = self.batch_size * world
        random_places = round(samples * (1 - 0.33))
        for iteration in range(self.iterations_per_epoch):
            seeds = np.random.SeedSequence([self.seed, self.epoch, iteration, 0]).generate_state(samples)
            draws = [Draw(int(seed), place >= random_places, self.left_out) for place, seed in enumerate(seeds)]
            yield draws[rank::world]


class SliceDataset(Dataset[dict[str, Any]]):
    """Random slices of random cases, cut to a size: `dataset[Draw(...)]`, not `dataset[index]`.

    Cases are drawn uniformly, then a slice. With forced foreground: a class that the case shows, a slice that shows
    it, and the cut centred on one of its pixels. What lies beyond the slice is 0 and background, as in nnU-Net v1.

    Args:
        data: `{"image": path or a path for each channel, "label": path}` of each case.
        transform: from `{"image": (channels, x, y) float32 normalised, "label": (1, x, y) uint8 classes}`.
        crop_size: of the cut, x and y.
        patch_size: of what the transform makes of it: random cuts reach half the difference beyond a slice's border.
        spacing_mm, orientation, normalise, resampling, labels: see `slice_store.Preparation`.
        cache_dir: where the prepared cases are stored.

    Raises:
        BadInput: labels whose ids aren't different numbers from 1 to 255, no orientation; when the cases are read: see
            `require_cases` and `store_case`.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        crop_size: Sequence[int],
        patch_size: Sequence[int],
        spacing_mm: Sequence[float],
        orientation: str,
        normalise: Sequence[Normalisation],
        resampling: Resampling,
        labels: Mapping[Any, str],
        cache_dir: str,
    ) -> None:
        label_ids(labels)
        self.data = data
        self.transform: Compose = transform if isinstance(transform, Compose) else Compose([transform])
        self.crop_size = crop_size
        self.patch_size = patch_size
        self.preparation = Preparation(spacing_mm, orientation, normalise, resampling, labels)
        self.cache_dir = cache_dir

    @cached_property
    def cases(self) -> list[StoredCase]:
        """The cases on disk, prepared on the first look."""
        return self.prepare()

    def prepare(self, *, processes: int | None = None) -> list[StoredCase]:
        """Prepare and store the cases now, before workers start; in several processes."""
        require_cases(self.data)  # type: ignore[arg-type]
        cases = store_cases(self.data, folder=Path(self.cache_dir), preparation=self.preparation, processes=processes)
        if not any(case.shows_foreground for case in cases):
            raise BadInput(f"{self.data[0]['label']}: no label map shows any label, from this one on. Check labels.")
        self.__dict__["cases"] = cases  # as cached_property does
        return cases

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        seed, foreground, left_out = draw
        rng = np.random.default_rng(seed)
        cases = [case for number, case in enumerate(self.cases) if number not in left_out]
        case = cases[rng.integers(len(cases))]
        drawn = case.draw_foreground(rng) if foreground else None
        index, centre = drawn if drawn is not None else (int(rng.integers(case.shape[2])), None)
        starts = self.starts(case.shape[:2], centre, rng)
        image, label = case.read(index, starts=starts, size=self.crop_size)
        self.transform.set_random_state(seed=int(rng.integers(2**32)))
        sample = {"image": torch.from_numpy(image), "label": torch.from_numpy(label[None])}
        with plain_tensors():
            sample = self.transform(sample)
        return {"image": sample["image"], "label": sample["label"], "case": case.name, "slice": index}

    def starts(self, size: Sequence[int], centre: Sequence[int] | None, rng: np.random.Generator) -> list[int]:
        """Return where the cut begins along x and y, maybe beyond the border: around a pixel, or anywhere."""
        starts = []
        for axis, (n, crop, patch) in enumerate(zip(size, self.crop_size, self.patch_size, strict=True)):
            beyond = max(crop - patch, crop - n)  # in all, on both sides
            first, last = -(beyond // 2), n - crop + beyond - beyond // 2
            start = rng.integers(first, last + 1) if centre is None else max(first, centre[axis] - crop // 2)
            starts.append(int(start))
        return starts


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Let MONAI's transforms work on plain tensors: MetaTensors cost more than the work on small patches."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)
