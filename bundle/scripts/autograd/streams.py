"""CUDA streams: the members' computations overlap on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

StreamContext = AbstractContextManager[object]  # what is called within it runs there


class SideStreams:
    """A CUDA stream for each member: small layers of several members share the GPU.

    Tensors may be handed on between a member's stream and the main one without further care: everything waits at
    both ends of `fork`, and a member's memory is only used again within its own stream.

    Not run on a GPU here; the tests check the order of waiting with stand-ins.
    """

    def __init__(self, members: int, device: torch.device) -> None:
        self.device = device
        self.streams = [torch.cuda.Stream(device) for _ in range(members)]

    @contextmanager
    def fork(self) -> Iterator[Sequence[StreamContext]]:
        """Yield a context for each member; what it does begins after the main stream's work, which then waits."""
        main = torch.cuda.current_stream(self.device)
        for stream in self.streams:
            stream.wait_stream(main)
        yield [torch.cuda.stream(stream) for stream in self.streams]
        for stream in self.streams:
            main.wait_stream(stream)
