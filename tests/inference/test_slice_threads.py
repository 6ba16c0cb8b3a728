from __future__ import annotations

from collections.abc import Iterator
from threading import Barrier, get_ident

import pytest
import torch
from torch import Tensor, nn

from cyclic_committee.scripts.inference.inferer import SliceInferer
from cyclic_committee.scripts.inference.slice_threads import MOST, sharing_cores
from cyclic_committee.scripts.runtime.errors import BadInput
from cyclic_committee.scripts.transforms.normalisation import StandardiseImage
from cyclic_committee.scripts.transforms.resampling import ResampleThenNormalise


@pytest.fixture(params=[2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_calls_run_at_the_same_time_and_in_order(threads: int) -> None:
    together = Barrier(min(threads, MOST), timeout=30)  # breaks, an error, if the others don't come

    def call(item: int) -> tuple[int, int, bool]:
        together.wait()
        return item, torch.get_num_threads(), torch.is_grad_enabled()

    with sharing_cores(torch.device("cpu")) as in_threads:
        found = list(in_threads(call, range(threads * 3)))
    assert found == [(item, 1, False) for item in range(threads * 3)]
    assert torch.get_num_threads() == threads


def test_threads_are_shared_out() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2 * MOST)
    try:
        with sharing_cores(torch.device("cpu")) as in_threads:
            assert list(in_threads(lambda _: torch.get_num_threads(), range(4))) == [2] * 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("device", "number"), [("cpu", 1), ("cuda", 4)])
def test_a_gpu_or_a_single_thread_is_fed_by_this_thread(device: str, number: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with sharing_cores(torch.device(device)) as in_threads:
            assert set(in_threads(lambda _: get_ident(), range(4))) == {get_ident()}
    finally:
        torch.set_num_threads(before)


class Blur(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        if float(image.mean()) > 2:
            raise BadInput("too bright.")
        blurred = nn.functional.avg_pool2d(image, 3, stride=1, padding=1)
        return torch.softmax(torch.cat([torch.zeros_like(blurred), blurred], dim=1), dim=1)


def inferer() -> SliceInferer:
    return SliceInferer(
        tile_size=[16, 16],
        spacing_mm=[1.0, 1.0],
        normalise=[StandardiseImage()],
        resampling=ResampleThenNormalise(),
        labels={"1": "bright"},
        batch_size=1,
    )


def test_a_volume_is_labelled_the_same_by_many_threads(threads: int) -> None:
    volume = torch.randn(1, 1, 24, 20, 37, generator=torch.Generator().manual_seed(0))
    many = inferer()(volume, Blur())
    torch.set_num_threads(1)
    assert torch.equal(many, inferer()(volume, Blur()))
    assert many.float().mean() not in (0, 1)


def test_an_error_in_a_slice_ends_the_volume(threads: int) -> None:
    with sharing_cores(torch.device("cpu")) as in_threads, pytest.raises(BadInput, match="too bright"):
        list(in_threads(Blur(), [torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 3.0)]))
