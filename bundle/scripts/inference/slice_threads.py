"""Threads that share the CPU's cores among the slices of a volume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

MOST = 8  # at a time: each takes memory of its own

Item = TypeVar("Item")
Map = Callable[[Callable[[Item], Any], Iterable[Item]], Iterable[Any]]


@contextmanager
def sharing_cores(device: torch.device) -> Iterator[Map[Any]]:
    """Give a `map` whose calls run side by side on a CPU, each on its share of PyTorch's threads, and keep their order.

    A call that has a core to itself needs no other thread to wait for at the end of each operation: two cores label
    a volume in seven eighths of the time that they take together for one slice after another, and other work on the
    machine slows them down less. On a GPU, or with a single thread, it is the plain `map`. No gradients are recorded.
    """
    threads = torch.get_num_threads()
    workers = min(threads, MOST)
    if device.type != "cpu" or workers < 2:
        yield map
        return
    try:
        with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(threads // workers)) as pool:
            yield lambda function, items: pool.map(torch.no_grad()(function), items)
    finally:
        torch.set_num_threads(threads)  # what a worker sets holds for threads that come later, too
