"""Prefetching: the next volume is read while this one is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai.data import DataLoader, MetaTensor, list_data_collate

from ..transforms.orientation import meta_copy


class PrefetchLoader(DataLoader):
    """A DataLoader whose next batch is read by a thread meanwhile: one batch ahead, never more.

    A batch of one is in the volume's own memory: MONAI's is a copy, and the volume is in memory twice until it is made.
    A thread needs no shared memory, which containers are short of, and unpacking lets others compute. MONAI's
    ThreadDataLoader isn't used: it takes a volume that can't be read for the end of the data, and holds two ahead.

    Args:
        arguments: those of `DataLoader`; with `num_workers` 0 the thread does all of the work.

    Raises:
        BadInput: what reading raises, when the volume's turn has come.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"collate_fn": collate, **arguments})

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(next, batches, None)
            while (batch := ahead.result()) is not None:
                ahead = reader.submit(next, batches, None)
                yield batch


def collate(items: Sequence[Mapping[str, Any]]) -> Any:
    """Return what MONAI's `list_data_collate` does; the MetaTensors of a single item stay where they are in memory."""
    if len(items) > 1:
        return list_data_collate(items)
    volumes = {key: value for key, value in items[0].items() if isinstance(value, MetaTensor)}
    batch = list_data_collate([{**items[0], **{key: meta_copy(volume) for key, volume in volumes.items()}}])
    for key, volume in volumes.items():
        batch[key] = MetaTensor(volume.as_tensor()[None]).copy_meta_from(batch[key])
    return batch
