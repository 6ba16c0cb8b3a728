"""Convolutions and their gradients, against PyTorch's own."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cyclic_committee.scripts.autograd import convolution_passes, traced
from cyclic_committee.scripts.autograd.forward import BackwardMode, PlainAutograd, SharedForward
from cyclic_committee.scripts.autograd.traced import KeptSamples, TracedGraphs, trace
from cyclic_committee.scripts.networks import convolutions, native_build
from cyclic_committee.scripts.networks.convolutions import Convolution3x3
from cyclic_committee.scripts.networks.precision import autocast, narrow_weights
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.training.selection import LossDifference
from cyclic_committee.scripts.training.trainer import score

ABLE = torch.cpu.get_capabilities()
needs_ours = pytest.mark.skipif(
    not native_build.find_compiler() or not ABLE.get("avx512_bf16") or bool(ABLE.get("amx_bf16")),
    reason="the operator is for processors with AVX-512's bfloat16 and without AMX",
)
NAMES = ("convolution", "input_gradient", "weight_gradient")
FORWARD, INPUT, WEIGHTS = (f"cyclic_committee.{name}.default" for name in NAMES)
JOIN = "aten.cat.default"
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
    monkeypatch.setattr(convolution_passes, "LEAST_PIXELS", 0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def images(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.bfloat16().to(memory_format=torch.channels_last)


class Given:
    """An image in parts, weights, a bias, and the gradient of their convolution."""

    def __init__(self, samples: int, channels: list[int], out: int, height: int, width: int, stride: int) -> None:
        self.x = [images(samples, part, height, width, seed=3 + i) for i, part in enumerate(channels)]
        self.weight, self.bias = images(out, sum(channels), 3, 3, seed=1), images(1, out, 1, 1, seed=2).flatten()
        self.grad = images(samples, out, (height - 1) // stride + 1, (width - 1) // stride + 1, seed=0)
        self.stride = stride

    def ours(self) -> dict[str, Tensor]:
        assert convolutions.native_is_there()
        operators = torch.ops.cyclic_committee
        by_weight, by_bias = operators.weight_gradient(self.grad, self.x, self.stride)
        found = {"weight": by_weight, "bias": by_bias}
        if self.stride == 1:
            found["result"] = operators.convolution(self.x, self.weight, self.bias)
            found["input"] = operators.input_gradient(self.grad, self.weight)
        return found

    def of_double(self) -> dict[str, Tensor]:
        x, weight, bias = torch.cat(self.x, dim=1).double(), self.weight.double(), self.bias.double()
        settings: tuple[Any, ...] = ([self.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1)
        names, wanted = ("input", "weight", "bias"), [True] * 3
        results = torch.ops.aten.convolution_backward(self.grad.double(), x, weight, [len(bias)], *settings, wanted)
        return {"result": torch.conv2d(x, weight, bias, self.stride, 1), **dict(zip(names, results, strict=True))}


def root_mean_square(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


@needs_ours
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_are_pytorchs_to_rounding(
    shape: tuple[int, list[int], int, int, int, int], count: int, threads: Callable[[int], None]
) -> None:
    threads(count)
    given = Given(*shape)
    expected = given.of_double()
    for name, found in given.ours().items():
        exact = expected[name]
        assert found.dtype == torch.bfloat16
        assert found.shape == exact.shape
        error = (found.double() - exact).abs()
        if given.stride == 2 or name == "bias":  # only the result is rounded
            assert (error <= 2**-8 * exact.abs() + 1e-5 * exact.abs().max()).all(), name
        else:  # sums and differences, too
            rounding = root_mean_square(exact.bfloat16().double() - exact)
            assert root_mean_square(error) <= 2.5 * rounding, name
            assert (error <= 2**-8 * exact.abs() + 15 * rounding).all(), name
        if found.dim() == 4:
            assert found.is_contiguous(memory_format=torch.channels_last)  # as PyTorch's


@needs_ours
def test_without_a_bias_none_is_added() -> None:
    given = Given(2, [32], 32, 16, 18, 1)
    assert convolutions.native_is_there()
    found = torch.ops.cyclic_committee.convolution(given.x, given.weight, None)
    expected = torch.ops.cyclic_committee.convolution(given.x, given.weight, torch.zeros(32).bfloat16())
    assert torch.equal(found, expected)


@needs_ours
def test_any_order_in_memory_gives_the_same() -> None:
    given = Given(2, [32, 64], 64, 16, 18, 1)
    expected = given.ours()
    joined = torch.cat(given.x, dim=1)
    given.x = [given.x[0].contiguous(), joined[:, 32:]]
    given.grad, given.weight = given.grad.contiguous(), given.weight.contiguous()
    found = given.ours()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@needs_ours
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    given = Given(1, [32], 32, 8, 65, 1)
    given.grad[0, 5, 3, 64] = given.x[0][0, 5, 3, 64] = bad
    found = given.ours()
    assert not torch.isfinite(found["weight"][5]).any(dim=0)[1, 1]
    assert not torch.isfinite(found["bias"][5])
    for name in ("result", "input"):
        assert not torch.isfinite(found[name][0, :, 3, 64]).any()
        assert torch.isfinite(found[name][0, :, [0, 1, 5, 6, 7]]).all()  # rows that don't touch it


@needs_ours
@pytest.mark.parametrize("name", NAMES)
def test_the_operators_are_what_pytorch_expects_of_operators(name: str) -> None:
    given = Given(2, [32, 64], 64, 16, 18, 1)
    assert convolutions.native_is_there()
    arguments: dict[str, Any] = {
        "convolution": (given.x, given.weight, given.bias),
        "input_gradient": (given.grad, given.weight),
        "weight_gradient": (given.grad, given.x, 1),
    }
    operator = getattr(torch.ops.cyclic_committee, name).default
    torch.library.opcheck(operator, arguments[name], test_utils=("test_schema", "test_faketensor"))


def image(*shape: int) -> Tensor:
    return images(*shape, seed=0)


@needs_ours
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("weight_gradient", (image(1, 32, 4, 4), [], 1)),
        ("weight_gradient", (image(1, 32, 4, 4), [image(1, 32, 4, 4)], 3)),
        ("weight_gradient", (image(1, 32, 4, 4), [image(1, 32, 4, 4)], 2)),
        ("weight_gradient", (image(1, 32, 4, 4), [image(1, 32, 4, 4), image(1, 32, 4, 5)], 1)),
        ("weight_gradient", (image(1, 32, 4, 4), [image(1, 48, 4, 4)], 1)),
        ("weight_gradient", (image(1, 16, 4, 4), [image(1, 32, 4, 4)], 1)),
        ("weight_gradient", (image(2, 32, 4, 4), [image(1, 32, 4, 4)], 1)),
        ("weight_gradient", (image(1, 32, 4, 4), [image(1, 32, 4, 4).float()], 1)),
        ("weight_gradient", (image(1, 32, 4, 4), [image(1, 32, 4, 4)[0]], 1)),
        ("weight_gradient", (image(0, 32, 4, 4), [image(0, 32, 4, 4)], 1)),
        ("input_gradient", (image(1, 32, 4, 4), image(64, 32, 3, 3))),
        ("input_gradient", (image(1, 32, 4, 4), image(32, 16, 3, 3))),
        ("input_gradient", (image(1, 32, 4, 4), image(32, 32, 1, 1))),
        ("input_gradient", (image(1, 32, 4, 4), image(32, 32, 3, 3).float())),
        ("input_gradient", (image(1, 32, 4, 4)[0], image(32, 32, 3, 3))),
        ("convolution", ([], image(32, 32, 3, 3), None)),
        ("convolution", ([image(1, 32, 4, 4)], image(32, 64, 3, 3), None)),
        ("convolution", ([image(1, 32, 4, 4)], image(16, 32, 3, 3), None)),
        ("convolution", ([image(1, 32, 4, 4)], image(32, 32, 5, 5), None)),
        ("convolution", ([image(1, 32, 4, 4)], image(32, 32, 3, 3).float(), None)),
        ("convolution", ([image(1, 32, 4, 4)], image(32, 32, 3, 3), torch.zeros(31).bfloat16())),
        ("convolution", ([image(1, 32, 4, 4)], image(32, 32, 3, 3), torch.zeros(32))),
    ],
)
def test_the_operators_refuse_what_they_can_not_compute(name: str, arguments: tuple[Any, ...]) -> None:
    assert convolutions.native_is_there()
    with pytest.raises(RuntimeError, match="must"):
        getattr(torch.ops.cyclic_committee, name)(*arguments)


def graphs_of(network: nn.Module, image: Tensor, precision: str) -> TracedGraphs:
    return trace(network.train(), image, inferer=SimpleInferer(), autocast=autocast("cpu", precision))


def operators(graphs: TracedGraphs, *, forward: bool = False) -> list[str]:
    return [str(node.target) for node in (graphs.forward if forward else graphs.backward).graph.nodes]


def gradients(network: nn.Module, image: Tensor, precision: str) -> list[Tensor]:
    network.train().zero_grad()
    backward_mode = SharedForward()
    forward = backward_mode(network, image, inferer=SimpleInferer(), autocast=autocast("cpu", precision))
    forward.backward(KeptSamples.of([0, 2]), lambda output: sum((head.float() ** 2).mean() for head in output))
    assert not backward_mode.fallback
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def pytorchs(network: nn.Module, image: Tensor, precision: str, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The gradients with PyTorch's operators for all."""
    with monkeypatch.context() as patch:
        patch.setattr(traced, "with_our_convolutions", lambda nodes: nodes)
        patch.setattr(traced, "with_gradients_apart", lambda first, second: second)
        return gradients(copy.deepcopy(network), image, precision)


def compare(
    network: nn.Module, image: Tensor, precision: str, monkeypatch: pytest.MonkeyPatch, *, tolerance: float
) -> None:
    """The gradients with convolutions' operators replaced, and without."""
    found = gradients(network, image, precision)
    for gradient, other in zip(found, pytorchs(network, image, precision, monkeypatch), strict=True):
        assert gradient.stride() == other.stride()
        assert (gradient - other).abs().max() <= tolerance * other.abs().max()


def unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet2d(in_channels=1, out_channels=3, features=[32, 64, 96])


@needs_ours
def test_in_bfloat16_a_network_learns_the_same_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = unet(), torch.randn(3, 1, 128, 128)
    graphs = graphs_of(network, image, "bfloat16")
    assert operators(graphs, forward=True).count(FORWARD) == 7  # all but the first and those with a stride of 2
    assert operators(graphs).count(INPUT) == 7 + 2  # two of them have joined channels
    assert operators(graphs).count(WEIGHTS) == 9  # all but the first
    found, exact = gradients(network, image, "bfloat16"), gradients(copy.deepcopy(network), image, "float32")
    theirs = pytorchs(network, image, "bfloat16", monkeypatch)
    for name, ours, other, wanted in zip(dict(network.named_parameters()), found, theirs, exact, strict=True):
        assert ours.stride() == other.stride()
        if "weight" in name:  # a bias in front of InstanceNorm has none but rounding
            assert (ours - wanted).norm() <= 1.5 * (other - wanted).norm() + 1e-6, name


class Calls(TorchDispatchMode):
    """Counts the operators that are called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(function)] += 1
        return function(*args, **(kwargs or {}))


def infer(network: nn.Module, image: Tensor, precision: str) -> tuple[Tensor, int]:
    """The network's result, and how often our convolution was called for it."""
    with torch.no_grad(), autocast("cpu", precision), Calls() as calls:
        found: Tensor = network(image)
    return found.float(), calls.names[FORWARD]


@needs_ours
def test_a_network_infers_the_same_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = unet().eval(), torch.randn(3, 1, 128, 128)
    ours, times = infer(network, image, "bfloat16")
    assert times == 7  # all but the first and those with a stride of 2
    narrow = narrow_weights(copy.deepcopy(network), precision="bfloat16")
    assert torch.equal(infer(narrow, image, "bfloat16")[0], ours)
    each = torch.cat([infer(narrow, one, "bfloat16")[0] for one in image.split(1)])
    assert torch.equal(each, ours)
    exact, times = infer(network, image, "float32")
    assert times == 0
    monkeypatch.setattr(convolutions, "native_is_there", lambda: False)
    theirs, times = infer(network, image, "bfloat16")
    assert times == 0
    assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()


@needs_ours
def test_a_compiled_network_infers_by_our_operator_too() -> None:
    network, image = unet().eval(), torch.randn(1, 1, 128, 128)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    expected, times = infer(network, image, "bfloat16")
    assert times == 7
    with torch.no_grad(), autocast("cpu", "bfloat16"):
        assert torch.equal(compiled(image).float(), expected)


@needs_ours
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace:DeprecationWarning")
def test_an_export_has_pytorchs_convolution_for_those_who_lack_our_operator() -> None:
    layer = Convolution3x3(32, 32, stride=(1, 1)).bfloat16()
    image = torch.randn(1, 32, 64, 64).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        with Calls() as calls:
            layer(image)
        assert FORWARD in calls.names
        exported = torch.jit.trace(layer, image)
    assert "cyclic_committee::" not in str(exported.inlined_graph)


@needs_ours
def test_where_a_network_can_not_infer_by_our_operator_pytorchs_is_taken() -> None:
    network, image = unet().eval(), torch.randn(1, 1, 128, 128)
    with autocast("cpu", "bfloat16"), Calls() as calls:
        network(image)  # for gradients
    assert FORWARD not in calls.names
    assert infer(network, image[..., :28, :28], "bfloat16")[1] == 0
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert infer(network, image, "bfloat16")[1] == 0


@needs_ours
@pytest.mark.parametrize("seed", range(3))
def test_a_committee_chooses_as_the_plain_one_does_in_float32(seed: int) -> None:
    torch.manual_seed(seed)
    members = [UNet2d(in_channels=1, out_channels=3, features=[32, 64, 96]).train() for _ in range(3)]
    image = torch.randn(8, 1, 64, 64)
    label = (image + 0.5 * torch.rand(8, 1, 1, 1) * torch.randn(8, 1, 64, 64) > 0.3).to(torch.uint8)

    def losses(backward_mode: BackwardMode, precision: str) -> Tensor:
        context = {"inferer": SimpleInferer(), "autocast": autocast("cpu", precision)}
        return score([backward_mode(member, image, **context).logits for member in members], label)[0]

    found, plain = losses(SharedForward(), "bfloat16"), losses(PlainAutograd(), "float32")
    assert torch.allclose(found, plain, rtol=0.01)
    assert torch.equal(LossDifference()(found), LossDifference()(plain))


@needs_ours
def test_shorter_rows_and_other_channels_are_left_to_pytorch() -> None:
    image = torch.randn(3, 1, 28, 28)
    assert not set(operators(graphs_of(unet(), image, "bfloat16"))) & {INPUT, WEIGHTS}
    narrow = UNet2d(in_channels=1, out_channels=3, features=[16, 48])
    for forward in (True, False):
        names = operators(graphs_of(narrow, torch.randn(3, 1, 64, 64), "bfloat16"), forward=forward)
        assert not set(names) & {FORWARD, INPUT, WEIGHTS}


@needs_ours
def test_sums_that_are_too_large_for_the_cache_are_left_to_pytorch() -> None:
    network = UNet2d(in_channels=1, out_channels=3, features=[512, 480])
    graphs = graphs_of(network, torch.randn(2, 1, 64, 64), "bfloat16")
    assert WEIGHTS not in operators(graphs)
    assert INPUT in operators(graphs)


def test_in_float32_a_network_learns_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    compare(unet(), torch.randn(3, 1, 32, 32), "float32", monkeypatch, tolerance=0)


@needs_ours
@pytest.mark.parametrize(("count", "times"), [(1, 7), (2, 3), (4, 3), (5, 0)])
def test_many_threads_take_the_weights_gradient_only_where_each_has_many_pixels(
    count: int, times: int, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution_passes, "LEAST_PIXELS", 3 * 64 * 64)
    threads(count)
    graphs = graphs_of(unet(), torch.randn(3, 1, 128, 128), "bfloat16")
    assert operators(graphs).count(WEIGHTS) == times  # three results of 128 x 128 pixels, four of 64 x 64
    assert operators(graphs).count(INPUT) == 9  # threads don't need memory of their own for it
    assert operators(graphs, forward=True).count(FORWARD) == 7


@needs_ours
def test_no_channels_are_joined_and_no_gradient_is_cut() -> None:
    graphs = graphs_of(unet(), torch.randn(3, 1, 256, 256), "bfloat16")
    names = operators(graphs)
    assert JOIN not in [*names, *operators(graphs, forward=True)]
    assert names.count("aten.slice.Tensor") == 4  # of weights


def test_without_our_operator_pytorchs_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "native_is_there", lambda: False)
    network, image = unet(), torch.randn(3, 1, 128, 128)
    graphs = graphs_of(network, image, "bfloat16")
    for forward in (True, False):
        assert not set(operators(graphs, forward=forward)) & {FORWARD, INPUT, WEIGHTS}
    compare(network, image, "bfloat16", monkeypatch, tolerance=0)


@pytest.mark.parametrize("able", [{}, {"avx512_bf16": True, "amx_bf16": True}, {"avx2": True}])
def test_other_processors_do_without(able: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(convolutions, "load_native", lambda *_args, **_settings: True)
    assert not convolutions.load_once.__wrapped__()


def test_where_onednn_is_turned_off_as_on_gpus_nothing_changes() -> None:
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        graphs = graphs_of(unet(), torch.randn(3, 1, 128, 128), "bfloat16")
    assert not set(operators(graphs)) & {INPUT, WEIGHTS, "aten.convolution.default"}
    assert FORWARD not in operators(graphs, forward=True)


class Joined(nn.Module):
    """Joins two tensors of 32 channels; what follows differs."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(1, 32, 3, padding=1)
        self.last, self.other = (nn.Conv2d(channels, 32, 3, padding=1, stride=stride) for channels in (64, 32))
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

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.only = nn.Conv2d(64, 32, 3, padding=1, bias=False, stride=stride)

    def forward(self, image: Tensor) -> list[Tensor]:
        wide = image.expand(-1, 32, -1, -1).contiguous(memory_format=torch.channels_last)
        return [self.only(torch.cat([wide, 2 * wide], dim=1))]


class ChannelsFirst(Joined):
    """Our operator isn't taken: its gradient would lie otherwise in memory than PyTorch's."""

    def forward(self, image: Tensor) -> list[Tensor]:
        joined = torch.cat([self.left(image), self.right(image)], dim=1).contiguous()
        return [self.last(joined)]


@pytest.mark.parametrize("stride", [1, 2])
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
    stride: int,
    precision: str,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network, image = kind(stride), torch.randn(3, 1, 9, width).to(memory_format=torch.channels_last)
    graphs = graphs_of(network, image, precision)
    assert operators(graphs).count(WEIGHTS) == (times if precision == "bfloat16" else 0)
    assert operators(graphs, forward=True).count(FORWARD) == (times if precision == "bfloat16" and stride == 1 else 0)
    compare(network, image, precision, monkeypatch, tolerance=tolerance)


def test_one_channel_stays_last_in_memory_when_samples_are_chosen() -> None:
    image = torch.randn(5, 1, 4, 6).as_strided((5, 1, 4, 6), (24, 1, 6, 1))
    samples = KeptSamples.of([0, 3, 4])
    chosen = samples.of_tensor(image.clone(), torch.Size([3, 1, 4, 6]), in_place=True)
    assert chosen.stride() == (24, 1, 6, 1)
    assert torch.equal(chosen, image[samples.order])
