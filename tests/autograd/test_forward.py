"""The backward modes against plain autograd, which stays the reference."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from monai.inferers import SimpleInferer
from monai.networks.nets import BasicUNet, DynUNet, SegResNet, UNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cyclic_committee.scripts.autograd import forward
from cyclic_committee.scripts.autograd.forward import (
    BackwardMode,
    CompiledForward,
    PlainAutograd,
    RecomputeForward,
    SharedForward,
    finest,
)
from cyclic_committee.scripts.autograd.traced import KeptSamples, trace
from cyclic_committee.scripts.networks import native_build
from cyclic_committee.scripts.networks.precision import autocast
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.training.loss import NnUNetLoss

SAMPLES, SIZE = 5, 32
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet2d": lambda: UNet2d(in_channels=1, out_channels=3, features=[4, 8, 8, 16]),
    "UNet2d with strides": lambda: UNet2d(in_channels=1, out_channels=3, features=[4, 8, 8], strides=[(1, 2), (2, 2)]),
    "UNet": lambda: UNet(2, 1, 3, channels=[4, 8, 8], strides=[2, 2], num_res_units=1),
    "SegResNet": lambda: SegResNet(2, init_filters=8, in_channels=1, out_channels=3),
    "BasicUNet": lambda: BasicUNet(2, 1, 3, features=(4, 4, 8, 8, 8, 4)),
    "DynUNet": lambda: DynUNet(2, 1, 3, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2]),
}


def batch(samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(samples, 1, SIZE, SIZE, generator=generator)
    return image, torch.randint(0, 3, (samples, 1, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def plain(network: nn.Module, chosen: list[int], precision: str = "float32") -> tuple[Tensor, list[Tensor | None]]:
    """The logits of all samples, and the gradients from the chosen ones, as anyone would write it."""
    image, label = batch()
    reference = copy.deepcopy(network).train()
    with autocast("cpu", precision):
        logits = finest(reference(image)).detach()
        output = reference(image[chosen])
    NnUNetLoss()(output, label[chosen]).backward()
    return logits, [parameter.grad for parameter in reference.parameters()]


def by(
    backward_mode: BackwardMode, network: nn.Module, chosen: list[int], precision: str = "float32"
) -> tuple[Tensor, list[Tensor | None]]:
    image, label = batch()
    network.train().zero_grad()
    forward = backward_mode(network, image, inferer=SimpleInferer(), autocast=autocast("cpu", precision))
    logits = forward.logits.clone()
    samples = KeptSamples.of(chosen)
    forward.backward(samples, lambda output: NnUNetLoss()(output, label[samples.order]))
    assert torch.equal(image, batch()[0])
    return logits, [parameter.grad for parameter in network.parameters()]


def assert_same(ours: tuple[Any, list[Any]], reference: tuple[Any, list[Any]], *, tolerance: float) -> None:
    scale = float(reference[0].abs().max())
    assert (ours[0].float() - reference[0].float()).abs().max() <= tolerance * scale
    largest = max(float(gradient.abs().max()) for gradient in reference[1] if gradient is not None)
    for gradient, expected in zip(ours[1], reference[1], strict=True):
        assert (gradient is None) == (expected is None)
        if expected is not None:
            assert gradient.dtype == expected.dtype
            assert (gradient - expected).abs().max() <= tolerance * largest


@pytest.mark.parametrize("backward_mode", [SharedForward, RecomputeForward])
@pytest.mark.parametrize("kind", NETWORKS)
def test_choosing_after_one_forward_pass_gives_plain_autograds_gradients(
    kind: str, backward_mode: type[BackwardMode]
) -> None:
    torch.manual_seed(0)
    network, run = NETWORKS[kind](), backward_mode()
    for chosen in ([0, 2, 4], [0], [4], [1, 2, 3, 4], [0, 1, 2, 3, 4]):
        assert_same(by(run, network, chosen), plain(network, chosen), tolerance=2e-6)
    assert not getattr(run, "fallback", {})


@pytest.mark.parametrize("kind", ["UNet2d", "SegResNet"])
def test_bfloat16_gives_plain_autograds_gradients_to_its_rounding(kind: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[kind]()
    ours = by(SharedForward(), network, [0, 3, 4], "bfloat16")
    assert_same(ours, plain(network, [0, 3, 4], "bfloat16"), tolerance=0.02)
    assert ours[0].dtype == torch.bfloat16


@pytest.mark.skipif(not native_build.find_compiler(), reason="there is no C++ compiler")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_computed_again_takes_less_memory_and_changes_no_bit(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = UNet2d(in_channels=1, out_channels=3, features=[8, 16, 16])
    context = {"inferer": SimpleInferer(), "autocast": autocast("cpu", precision)}
    kept = {again: trace(network.train(), batch()[0], recompute=again, **context) for again in (True, False)}
    size = {again: sum(shape.numel() for shape in graphs.saved) for again, graphs in kept.items()}
    assert size[True] < 0.65 * size[False]
    for graphs, copies in ((kept[True], 2), (kept[False], 0)):
        assert [str(node.target) for node in graphs.backward.graph.nodes].count("aten.cat.default") == copies
    found = by(SharedForward(), network, [0, 3, 4], precision)
    monkeypatch.setattr(forward, "trace", partial(trace, recompute=False))
    expected = by(SharedForward(), network, [0, 3, 4], precision)
    assert torch.equal(found[0], expected[0])
    for gradient, other in zip(found[1], expected[1], strict=True):
        assert gradient is other is None or torch.equal(gradient, other)


class ChangesWhatItJoined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.last, self.other = nn.Conv2d(8, 3, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        left, right = self.left(image), self.right(image)
        joined = torch.cat([left, right], dim=1)
        left.mul_(2)
        return self.last(joined) + self.other(left)


def test_what_changed_since_it_was_joined_is_not_joined_again() -> None:
    torch.manual_seed(0)
    network, run = ChangesWhatItJoined(), SharedForward()
    assert_same(by(run, network, [0, 2, 3]), plain(network, [0, 2, 3]), tolerance=2e-6)
    assert not run.fallback


def test_a_head_that_the_loss_leaves_out_has_no_gradient() -> None:
    network = NETWORKS["UNet2d"]()
    _, gradients = by(SharedForward(), network, [0, 1])
    without = [name for (name, _), g in zip(network.named_parameters(), gradients, strict=True) if g is None]
    assert without == ["heads.0.conv.weight"]  # the coarsest: its weight is 0


def test_gradients_add_up_as_autograds_do() -> None:
    network = NETWORKS["UNet2d"]().train()
    image, label = batch()
    run, doubled = SharedForward(), []
    for _ in range(2):
        forward = run(network, image, inferer=SimpleInferer(), autocast=autocast("cpu", "float32"))
        forward.backward(KeptSamples.of([1, 3]), lambda output: NnUNetLoss()(output, label[[3, 1]]))
        doubled.append([parameter.grad.clone() for parameter in network.encoders.parameters()])
    assert all(torch.allclose(twice, 2 * once, rtol=1e-5) for once, twice in zip(*doubled, strict=True))


def test_one_forward_pass_does_60_units_of_work_and_two_do_78() -> None:
    network = NETWORKS["UNet2d"]().train()
    image, _ = batch(8)

    def work(backward_mode: BackwardMode) -> int:
        for _ in range(2):  # all is traced by the second time
            with FlopCounterMode(display=False) as counter:
                forward = backward_mode(network, image, inferer=SimpleInferer(), autocast=autocast("cpu", "float32"))
                forward.backward(
                    KeptSamples.of([*range(6)]), lambda output: sum(head.square().mean() for head in output)
                )
        return counter.get_total_flops()

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image[:1])
    unit = counter.get_total_flops()
    # the first convolution needs no gradient of its input, the coarsest head is left out
    assert work(SharedForward()) / unit == pytest.approx(60 / 3, rel=0.04)
    assert work(RecomputeForward()) / unit == pytest.approx(78 / 3, rel=0.04)


class WithBatchNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


class SharesAMean(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(1, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image - image.mean())


class LooksAtValues(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(1, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image if image.max() > 0 else -image)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (WithBatchNorm, "WithBatchNorm mixes the samples of a mini-batch, as BatchNorm does"),
        (SharesAMean, "SharesAMean mixes the samples of a mini-batch"),
        (LooksAtValues, "LooksAtValues can't be traced"),
    ],
)
def test_a_network_that_one_pass_would_get_wrong_runs_twice_and_the_log_says_so(
    kind: type[nn.Module], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network, run = kind(), SharedForward()
    expected = plain(network, [0, 2, 3])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_same(by(run, network, [0, 2, 3]), expected, tolerance=1e-6)
    assert [record.getMessage().startswith(reason) for record in caplog.records] == [True]


@pytest.mark.parametrize("backward_mode", [SharedForward, RecomputeForward])
@pytest.mark.parametrize("kind", [WithBatchNorm, LooksAtValues])
def test_such_a_network_runs_no_more_than_twice(kind: type[nn.Module], backward_mode: type[BackwardMode]) -> None:
    torch.manual_seed(0)
    network, run = kind(), backward_mode()
    expected = plain(network, [1, 4])
    assert_same(by(run, network, [1, 4]), expected, tolerance=5e-6)
    calls = []
    hook = network.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    assert_same(by(run, network, [1, 4]), expected, tolerance=5e-6)
    hook.remove()
    assert calls == [SAMPLES, 2]


def test_a_whole_graph_is_one_run_by_autograd() -> None:
    torch.manual_seed(0)
    network = NETWORKS["UNet2d"]()
    for chosen in ([0, 2, 4], [1], [0, 1, 2, 3, 4]):
        assert_same(by(PlainAutograd(), network, chosen), plain(network, chosen), tolerance=2e-6)


def test_dropout_is_drawn_once_for_scores_and_gradients() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(4, 3, 1)).train()
    image, label = batch()
    samples, seen = KeptSamples.of([1, 4]), []

    def loss(output: Tensor) -> Tensor:
        seen.append(output.detach().clone())
        return NnUNetLoss()(output, label[samples.order])

    run = SharedForward()
    forward = run(network, image, inferer=SimpleInferer(), autocast=autocast("cpu", "float32"))
    assert not run.fallback
    forward.backward(samples, loss)
    assert torch.equal(seen[0], forward.logits[samples.order])


@pytest.mark.parametrize(
    ("chosen", "order", "moves"),
    [
        ([0, 1, 2], [0, 1, 2], []),
        ([0, 2, 3], [0, 3, 2], [(1, 3)]),
        ([4, 5], [4, 5], [(0, 4), (1, 5)]),
        ([1], [1], [(0, 1)]),
    ],
)
def test_chosen_samples_move_to_the_front_by_few_copies(
    chosen: list[int], order: list[int], moves: list[tuple[int, int]]
) -> None:
    samples = KeptSamples.of(chosen)
    assert (samples.order, samples.moves) == (order, moves)
    per_sample = torch.arange(24).reshape(6, 4)
    for in_place in (False, True):
        assert torch.equal(
            samples.of_tensor(per_sample.clone(), torch.Size([len(order), 4]), in_place=in_place), per_sample[order]
        )
    side_by_side = torch.arange(48.0).reshape(1, 6 * 4, 2)  # as InstanceNorm has samples and channels in one
    expected = side_by_side.reshape(1, 6, 4, 2)[:, order].reshape(1, -1, 2)
    for in_place in (False, True):
        shape = torch.Size([1, 4 * len(order), 2])
        assert torch.equal(samples.of_tensor(side_by_side.clone(), shape, in_place=in_place), expected)


@pytest.mark.slow
def test_compiled_passes_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    network = UNet2d(in_channels=1, out_channels=3, features=[4, 8])
    assert_same(by(CompiledForward(), network, [0, 2, 3]), plain(network, [0, 2, 3]), tolerance=1e-5)
