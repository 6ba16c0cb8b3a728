"""How is the next volume read while this one is computed?"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai.data import DataLoader


class ReadAheadLoader(DataLoader):
    """A DataLoader whose next batch is read by a thread meanwhile: one batch ahead, never more.

    A thread needs no shared memory, which containers are short of, and unpacking lets others compute. MONAI's
    ThreadDataLoader isn't used: it takes a volume that can't be read for the end of the data, and holds two ahead.

    Args:
        arguments: those of `DataLoader`; with `num_workers` 0 the thread does all of the work.

    Raises:
        BadInput: what reading raises, when the volume's turn has come.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(next, batches, None)
            while (batch := ahead.result()) is not None:
                ahead = reader.submit(next, batches, None)
                yield batch
