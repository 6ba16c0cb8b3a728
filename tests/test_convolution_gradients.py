"""Gradients of convolutions one by one, against PyTorch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from cyclic_committee.scripts import convolution_gradients, native_build, traced
from cyclic_committee.scripts.forward import OneForward
from cyclic_committee.scripts.network import UNet2d
from cyclic_committee.scripts.precision import autocast
from cyclic_committee.scripts.traced import Parts, Rows, trace

ABLE = torch.cpu.get_capabilities()
needs_ours = pytest.mark.skipif(
    not native_build.find_compiler() or not ABLE.get("avx512_bf16") or bool(ABLE.get("amx_bf16")),
    reason="the operator is for processors with AVX-512's bfloat16 and without AMX",
)
OURS, JOIN = "cyclic_committee.weight_gradient.default", "aten.cat.default"
# (samples, channels of each part of x, channels of grad, height, width, stride)
SHAPES: list[tuple[int, list[int], int, int, int, int]] = [
    (1, [32], 32, 1, 1, 1),
    (1, [32], 32, 2, 1, 2),
    (2, [32], 32, 7, 9, 1),
    (3, [32], 32, 9, 7, 2),
    (2, [32, 64], 64, 16, 18, 1),
    (2, [64, 32, 32], 32, 10, 131, 2),
    (1, [96], 160, 5, 64, 1),
    (3, [32], 32, 65, 128, 1),
]


@pytest.fixture(autouse=True)
def few_pixels_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_gradients, "LEAST_PIXELS", 0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def images(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.bfloat16().to(memory_format=torch.channels_last)


def ours(grad: Tensor, x: list[Tensor], stride: int) -> tuple[Tensor, Tensor]:
    assert convolution_gradients.native_is_there()
    weight, bias = torch.ops.cyclic_committee.weight_gradient(grad, x, stride)
    return weight, bias


def of_double(grad: Tensor, x: list[Tensor], stride: int) -> tuple[Tensor, Tensor]:
    joined = torch.cat(x, dim=1).double()
    weight = torch.zeros(grad.shape[1], joined.shape[1], 3, 3, dtype=torch.float64)
    settings = ([stride] * 2, [1, 1], [1, 1], False, [0, 0], 1)
    _, by_weight, by_bias = torch.ops.aten.convolution_backward(
        grad.double(), joined, weight, [grad.shape[1]], *settings, [False, True, True]
    )
    return by_weight, by_bias


def given(samples: int, channels: list[int], out: int, height: int, width: int, stride: int) -> tuple[Tensor, list]:
    grad = images(samples, out, (height - 1) // stride + 1, (width - 1) // stride + 1, seed=1)
    return grad, [images(samples, part, height, width, seed=2 + i) for i, part in enumerate(channels)]


@needs_ours
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_weights_gradient_is_pytorchs_rounded_once(
    shape: tuple[int, list[int], int, int, int, int], count: int, threads: Callable[[int], None]
) -> None:
    threads(count)
    grad, x = given(*shape)
    found = ours(grad, x, shape[-1])
    for result, expected in zip(found, of_double(grad, x, shape[-1]), strict=True):
        assert result.dtype == torch.bfloat16
        assert result.shape == expected.shape
        error = (result.double() - expected).abs()
        assert (error <= 2**-8 * expected.abs() + 1e-5 * expected.abs().max()).all()
    assert found[0].is_contiguous(memory_format=torch.channels_last)  # as PyTorch's


@needs_ours
def test_any_order_in_memory_gives_the_same_gradient() -> None:
    grad, x = given(2, [32, 64], 64, 16, 18, 1)
    expected = ours(grad, x, 1)
    found = ours(grad.contiguous(), [x[0].contiguous(), torch.cat(x, dim=1)[:, 32:]], 1)
    assert all(torch.equal(result, other) for result, other in zip(found, expected, strict=True))


@needs_ours
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    grad, x = given(1, [32], 32, 8, 65, 1)
    grad[0, 5, 3, 64] = bad
    weight, bias = ours(grad, x, 1)
    assert not torch.isfinite(weight[5]).any(dim=0)[1, 1]
    assert not torch.isfinite(bias[5])
    assert torch.isfinite(torch.cat([weight[:5], weight[6:]])).all()


@needs_ours
def test_the_operator_is_what_pytorch_expects_of_operators() -> None:
    grad, x = given(2, [32, 64], 64, 16, 18, 2)
    assert convolution_gradients.native_is_there()
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.cyclic_committee.weight_gradient.default, (grad, x, 2), test_utils=checks)


@needs_ours
@pytest.mark.parametrize(
    ("grad", "x", "stride"),
    [
        (images(1, 32, 4, 4, seed=0), [], 1),
        (images(1, 32, 4, 4, seed=0), [images(1, 32, 4, 4, seed=0)], 3),
        (images(1, 32, 4, 4, seed=0), [images(1, 32, 4, 4, seed=0)], 2),
        (images(1, 32, 4, 4, seed=0), [images(1, 32, 4, 4, seed=0), images(1, 32, 4, 5, seed=0)], 1),
        (images(1, 32, 4, 4, seed=0), [images(1, 48, 4, 4, seed=0)], 1),
        (images(1, 16, 4, 4, seed=0), [images(1, 32, 4, 4, seed=0)], 1),
        (images(2, 32, 4, 4, seed=0), [images(1, 32, 4, 4, seed=0)], 1),
        (images(1, 32, 4, 4, seed=0), [images(1, 32, 4, 4, seed=0).float()], 1),
        (images(1, 32, 4, 4, seed=0), [images(1, 32, 4, 4, seed=0)[0]], 1),
        (images(0, 32, 4, 4, seed=0), [images(0, 32, 4, 4, seed=0)], 1),
    ],
)
def test_the_operator_refuses_what_it_can_not_compute(grad: Tensor, x: list[Tensor], stride: int) -> None:
    assert convolution_gradients.native_is_there()
    with pytest.raises(RuntimeError, match="must"):
        torch.ops.cyclic_committee.weight_gradient(grad, x, stride)


def parts_of(network: nn.Module, image: Tensor, precision: str) -> Parts:
    return trace(network.train(), image, inferer=SimpleInferer(), autocast=autocast("cpu", precision))


def operators(parts: Parts) -> list[str]:
    return [str(node.target) for node in parts.backward.graph.nodes]


def gradients(network: nn.Module, image: Tensor, precision: str) -> list[Tensor]:
    network.train().zero_grad()
    passes = OneForward()
    forward = passes(network, image, inferer=SimpleInferer(), autocast=autocast("cpu", precision))
    forward.backward(Rows.of([0, 2]), lambda output: sum((head.float() ** 2).mean() for head in output))
    assert not passes.fallback
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def compare(
    network: nn.Module, image: Tensor, precision: str, monkeypatch: pytest.MonkeyPatch, *, tolerance: float
) -> None:
    """The gradients with convolutions' operators replaced, and without."""
    found = gradients(network, image, precision)
    monkeypatch.setattr(traced, "with_gradients_apart", lambda first, second: second)
    expected = gradients(copy.deepcopy(network), image, precision)
    for gradient, other in zip(found, expected, strict=True):
        assert gradient.stride() == other.stride()
        assert (gradient - other).abs().max() <= tolerance * other.abs().max()


def unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet2d(in_channels=1, out_channels=3, features=[32, 64, 96])


@needs_ours
def test_in_bfloat16_a_network_learns_the_same_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = unet(), torch.randn(3, 1, 128, 128)
    names = operators(parts_of(network, image, "bfloat16"))
    assert names.count(OURS) == 7  # all but the first and those whose result has 32 columns
    compare(network, image, "bfloat16", monkeypatch, tolerance=0.01)


def test_in_float32_a_network_learns_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    compare(unet(), torch.randn(3, 1, 32, 32), "float32", monkeypatch, tolerance=0)


@needs_ours
@pytest.mark.parametrize(("count", "times"), [(1, 7), (2, 3), (4, 3), (5, 0)])
def test_many_threads_take_ours_only_where_each_has_many_pixels(
    count: int, times: int, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution_gradients, "LEAST_PIXELS", 3 * 64 * 64)
    threads(count)
    names = operators(parts_of(unet(), torch.randn(3, 1, 128, 128), "bfloat16"))
    assert names.count(OURS) == times  # three results of 128 x 128 pixels, four of 64 x 64


@needs_ours
def test_no_channels_are_joined_again_and_no_gradient_is_cut() -> None:
    names = operators(parts_of(unet(), torch.randn(3, 1, 256, 256), "bfloat16"))
    assert JOIN not in names
    assert names.count("aten.slice.Tensor") == 4  # of weights


def test_without_our_operator_pytorchs_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_gradients, "native_is_there", lambda: False)
    network, image = unet(), torch.randn(3, 1, 128, 128)
    assert OURS not in operators(parts_of(network, image, "bfloat16"))
    compare(network, image, "bfloat16", monkeypatch, tolerance=0)


@pytest.mark.parametrize("able", [{}, {"avx512_bf16": True, "amx_bf16": True}, {"avx2": True}])
def test_other_processors_do_without(able: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(convolution_gradients, "load_native", lambda *_args, **_settings: True)
    assert not convolution_gradients.native_is_there.__wrapped__()


def test_where_onednn_is_turned_off_as_on_gpus_nothing_changes() -> None:
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        names = operators(parts_of(unet(), torch.randn(3, 1, 128, 128), "bfloat16"))
    assert OURS not in names
    assert "aten.convolution.default" not in names


class Joined(nn.Module):
    """Joins two tensors of 32 channels; what follows differs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(1, 32, 3, padding=1)
        self.last, self.other = nn.Conv2d(64, 32, 3, padding=1, stride=2), nn.Conv2d(32, 32, 3, padding=1, stride=2)
        self.to(memory_format=torch.channels_last)


class ChangesAPart(Joined):
    def forward(self, image: Tensor) -> list[Tensor]:
        left, right = self.left(image), self.right(image)
        joined = torch.cat([left, right], dim=1)
        left.mul_(2)
        return [self.last(joined), self.other(left)]


class UsesAllElsewhere(Joined):
    def forward(self, image: Tensor) -> list[Tensor]:
        joined = torch.cat([self.left(image), self.right(image)], dim=1)
        return [self.last(joined), joined * joined]


class UsesAPartElsewhere(Joined):
    def forward(self, image: Tensor) -> list[Tensor]:
        left, right = self.left(image), self.right(image)
        return [self.last(torch.cat([left, right], dim=1)), self.other(left)]


class TakesOtherParts(Joined):
    def forward(self, image: Tensor) -> list[Tensor]:
        left, right = self.left(image), self.right(image)
        return [self.last(torch.cat([left[:, 16:], left[:, :16], right], dim=1)), self.other(right)]


class JoinsTheImage(nn.Module):
    """Of what is joined, nothing needs a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(64, 32, 3, padding=1, bias=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        wide = image.expand(-1, 32, -1, -1).contiguous(memory_format=torch.channels_last)
        return [self.only(torch.cat([wide, 2 * wide], dim=1))]


class ChannelsFirst(Joined):
    """Our operator isn't taken: its gradient would lie otherwise in memory than PyTorch's."""

    def forward(self, image: Tensor) -> list[Tensor]:
        joined = torch.cat([self.left(image), self.right(image)], dim=1).contiguous()
        return [self.last(joined)]


@pytest.mark.parametrize("width", [130, 129])
@pytest.mark.parametrize(
    ("kind", "times"),
    [
        (ChangesAPart, 2),
        (UsesAllElsewhere, 1),
        (UsesAPartElsewhere, 2),
        (TakesOtherParts, 1),
        (JoinsTheImage, 1),
        (ChannelsFirst, 0),
    ],
)
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-5), pytest.param("bfloat16", 0.01, marks=needs_ours)]
)
def test_joined_channels_are_right_however_they_are_used(
    kind: type[nn.Module],
    times: int,
    width: int,
    precision: str,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network, image = kind(), torch.randn(3, 1, 9, width).to(memory_format=torch.channels_last)
    assert operators(parts_of(network, image, precision)).count(OURS) == (times if precision == "bfloat16" else 0)
    compare(network, image, precision, monkeypatch, tolerance=tolerance)


def test_one_channel_stays_last_in_memory_when_samples_are_chosen() -> None:
    image = torch.randn(5, 1, 4, 6).as_strided((5, 1, 4, 6), (24, 1, 6, 1))
    rows = Rows.of([0, 3, 4])
    chosen = rows.of_tensor(image.clone(), torch.Size([3, 1, 4, 6]), in_place=True)
    assert chosen.stride() == (24, 1, 6, 1)
    assert torch.equal(chosen, image[rows.order])
