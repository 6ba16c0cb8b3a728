"""Parallel map over cases in processes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .errors import BadInput, find_bad_input

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_PROCESSES = 8  # each holds a case's volumes: some GB for large ones


class Applied(Dataset[Any]):
    """`function(items[index])`, or the message of the `BadInput` that it raised."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function = function
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, str]:
        try:
            return self.function(self.items[index]), ""
        except Exception as error:
            bad_input = find_bad_input(error)
            if bad_input is None:
                raise
            return None, str(bad_input)


def for_each(
    function: Callable[[Item], Result], items: Sequence[Item], *, description: str, processes: int | None = None
) -> Iterator[Result]:
    """Yield `function(item)` for each item in their order, computed in several processes, with a progress bar.

    The processes are a DataLoader's workers, one thread each: PyTorch sees to it that they start safely and that one
    that dies ends the program instead of hanging it.

    Args:
        function: of a module, so that it can be sent to a process.
        items: such as cases.
        description: of the progress bar.
        processes: how many; by default as many as there are cores, 8 at most, and 0 means in this process.

    Raises:
        BadInput: as `function` raised it; or a process was ended from outside, most often for want of memory.
    """
    if processes is None:
        processes = min(
            len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1, MOST_PROCESSES
        )
    workers = 0 if processes <= 1 or len(items) <= 1 else min(processes, len(items))
    loader = DataLoader(
        Applied(function, items),
        batch_size=None,
        num_workers=workers,
        collate_fn=as_it_is,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    progress: Any = tqdm(loader, desc=description, unit="case", leave=False, disable=None)
    with contextlib.closing(iter(progress)) as results:
        while True:
            try:
                result, problem = next(results)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise BadInput(
                    f"{description}: a process was ended from outside ({error}). Use fewer processes."
                ) from error
            if problem:
                raise BadInput(problem)
            yield result


def as_it_is(result: Any) -> Any:
    """Return the result unchanged: DataLoader would turn arrays into tensors."""
    return result
