"""Backward modes: shared forward pass, recomputed forward pass, plain autograd."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from monai.inferers import Inferer
from torch import Tensor, fx, nn

from .traced import KeptSamples, TracedGraphs, trace

log = logging.getLogger(__name__)
Loss = Callable[[Any], Tensor]  # the outputs of the chosen samples to a scalar


class Forward(ABC):
    """A member's run over a mini-batch."""

    logits: Tensor  # (samples, classes, height, width), of the finest head, without a gradient

    @abstractmethod
    def backward(self, samples: KeptSamples, loss: Loss) -> None:
        """Add the gradients of `loss(outputs of the chosen samples, in the order of samples)` to the member's.

        To be called once: it takes what the run has left behind.
        """


class BackwardMode(ABC):
    """Runs members over a mini-batch."""

    @abstractmethod
    def __call__(self, member: nn.Module, image: Tensor, *, inferer: Inferer, autocast: torch.autocast) -> Forward:
        """Run a member, in train mode, on all samples: `(samples, channels, height, width)`."""


class PlainAutograd(BackwardMode):
    """Run a member as PyTorch does by itself: what the backward pass needs is kept of all samples."""

    def __call__(self, member: nn.Module, image: Tensor, *, inferer: Inferer, autocast: torch.autocast) -> Forward:
        """Run a member with autograd's recording on."""
        return ForwardByAutograd(member, image, inferer=inferer, autocast=autocast)


class ForwardByAutograd(Forward):
    """A run that autograd has recorded."""

    def __init__(self, member: nn.Module, image: Tensor, *, inferer: Inferer, autocast: torch.autocast) -> None:
        with autocast:
            self.output = inferer(image, member)
        self.logits = finest(self.output).detach()

    def backward(self, samples: KeptSamples, loss: Loss) -> None:
        """Run autograd backward through the chosen samples' outputs; see `Forward`."""
        output, self.output = self.output, None
        chosen = output[samples.order] if isinstance(output, Tensor) else [head[samples.order] for head in output]
        loss(chosen).backward()


class RecomputeForward(BackwardMode):
    """Score without gradients, then run forward and backward again on the chosen samples: the plain way.

    Only one member's intermediate results are in memory at a time, those of the chosen samples.

    Args:
        learning: runs the chosen samples; by default `SharedForward`, which keeps less of them than autograd does.
    """

    def __init__(self, learning: BackwardMode | None = None) -> None:
        self.learning = learning or SharedForward(otherwise=PlainAutograd())

    def __call__(self, member: nn.Module, image: Tensor, *, inferer: Inferer, autocast: torch.autocast) -> Forward:
        """Run a member without gradients, to be run again for them."""
        return ForwardTwice(member, image, inferer=inferer, autocast=autocast, learning=self.learning)


class ForwardTwice(Forward):
    """A run without gradients; another follows for the chosen samples."""

    def __init__(
        self, member: nn.Module, image: Tensor, *, inferer: Inferer, autocast: torch.autocast, learning: BackwardMode
    ) -> None:
        self.image = image
        with torch.no_grad(), autocast:
            self.logits = finest(inferer(image, member))
        self.again = partial(learning, member, inferer=inferer, autocast=autocast)

    def backward(self, samples: KeptSamples, loss: Loss) -> None:
        """Run forward and backward again, on the chosen samples alone; see `Forward`."""
        self.again(self.image[samples.order]).backward(KeptSamples.of(range(len(samples.order))), loss)


class SharedForward(BackwardMode):
    """Score and learn from the same forward pass; the backward pass runs through the chosen samples only.

    Where each sample is seen by itself (InstanceNorm, GroupNorm; not BatchNorm), a dropped sample's backward pass is
    waste. So what the forward pass has left behind is reduced to the chosen samples: 60 units of work (one sample's
    forward pass) for three members and 8 samples, against 78 of `RecomputeForward`. Choices and gradients are the same,
    to rounding. All members' intermediate results are in memory at once, but for those that are cheap to compute again.

    Args:
        otherwise: runs a member that mixes samples, or that PyTorch can't trace; the log says so. By default it runs
            twice, both times by autograd.
    """

    def __init__(self, otherwise: BackwardMode | None = None) -> None:
        self.otherwise = otherwise
        self.known: WeakKeyDictionary[nn.Module, dict[Any, TracedGraphs]] = WeakKeyDictionary()
        self.fallback: WeakKeyDictionary[nn.Module, BackwardMode] = WeakKeyDictionary()

    def __call__(self, member: nn.Module, image: Tensor, *, inferer: Inferer, autocast: torch.autocast) -> Forward:
        """Run a member's traced forward graph, or the member by `otherwise` where there is none."""
        image = image.contiguous()  # as it is traced

        def graphs(samples: int) -> TracedGraphs:
            shape = (samples, *image.shape[1:])
            known = self.known.setdefault(member, {})
            key = (shape, image.dtype, image.device, member.training)
            if key not in known:
                known[key] = trace(member, image.new_empty(shape), inferer=inferer, autocast=autocast)
            return known[key]

        if member not in self.known:
            obstacle = obstacle_of(graphs, len(image))
            if obstacle:
                log.warning("%s %s: it runs twice over every mini-batch.", type(member).__name__, obstacle)
                self.fallback[member] = self.otherwise or RecomputeForward(learning=PlainAutograd())
        if member in self.fallback:
            return self.fallback[member](member, image, inferer=inferer, autocast=autocast)
        return ForwardOnce(member, image, graphs=graphs, run=self.run)

    def run(self, graph: fx.GraphModule, inputs: list[Any]) -> Any:
        """Run a graph of the traced network; the list of inputs is emptied, so that memory is freed on the way."""
        with torch.no_grad():
            return fx.Interpreter(graph).boxed_run(inputs)


class CompiledForward(SharedForward):
    """`SharedForward`, both graphs compiled by `torch.compile`: for GPUs; not run on one here.

    On a CPU of two cores it gains nothing over the fused kernel, and costs minutes of compilation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.compiled: dict[fx.GraphModule, Callable[..., Any]] = {}

    def run(self, graph: fx.GraphModule, inputs: list[Any]) -> Any:
        """Run a graph of the traced network, compiled when it is first met."""
        if graph not in self.compiled:
            self.compiled[graph] = torch.compile(graph)
        with torch.no_grad():
            return self.compiled[graph](*inputs)


class ForwardOnce(Forward):
    """A run that has kept what the backward pass needs."""

    def __init__(
        self,
        member: nn.Module,
        image: Tensor,
        *,
        graphs: Callable[[int], TracedGraphs],
        run: Callable[[fx.GraphModule, list[Any]], Any],
    ) -> None:
        self.member, self.graphs, self.run = member, graphs, run
        inputs = [*member.parameters(), *member.buffers(), image]
        self.inputs = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        self.outputs, self.saved = run(graphs(len(image)).forward, inputs)
        self.logits = self.outputs[0]

    def backward(self, samples: KeptSamples, loss: Loss) -> None:
        """Run the backward graph on the chosen samples' part of what was kept; see `Forward`."""
        kept_graph = self.graphs(len(samples.order))
        outputs = [output[samples.order].requires_grad_() for output in self.outputs]
        gradients = torch.autograd.grad(loss(outputs if len(outputs) > 1 else outputs[0]), outputs, allow_unused=True)
        used = {head for head, gradient in enumerate(gradients) if gradient is not None}
        kept = self.reduced(kept_graph.saved, samples)
        for output, gradient in zip(outputs, gradients, strict=True):
            kept.append(torch.zeros_like(output) if gradient is None else gradient)
        for parameter, gradient, heads in zip(
            self.member.parameters(), self.run(kept_graph.backward, kept), kept_graph.reached_by, strict=True
        ):
            if heads & used:  # None else, not 0: momentum must not move a head that isn't trained
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def reduced(self, shapes: Sequence[torch.Size], samples: KeptSamples) -> list[Tensor]:
        """Return the chosen samples' part of what was kept, which is used up by it."""
        saved, self.saved = self.saved, []
        return [
            samples.of_tensor(tensor, shape, in_place=tensor.untyped_storage().data_ptr() not in self.inputs)
            for tensor, shape in zip(saved, shapes, strict=True)
        ]


def obstacle_of(graphs: Callable[[int], TracedGraphs], samples: int) -> str | None:
    """Return why a network can't learn from a part of its samples after one forward pass; None: it can."""
    try:
        full_graph, kept_graph = graphs(samples), graphs(samples - 1 if samples > 1 else 2)
    except ValueError:  # the network's own: it can't take such images at all
        raise
    except Exception as error:  # whatever PyTorch's tracer can't do; training goes on without it
        return f"can't be traced ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    if operators_of(full_graph.forward) != operators_of(kept_graph.forward):
        return "computes otherwise for another number of samples"
    if any(a == b for a, b in zip(full_graph.from_image, kept_graph.from_image, strict=True) if a.numel()):
        return "mixes the samples of a mini-batch, as BatchNorm does"
    return None


def operators_of(graph: fx.GraphModule) -> list[Any]:
    """Return what a graph calls, in its order."""
    return [node.target for node in graph.graph.nodes]


def finest(output: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the full-resolution logits of a network's output."""
    return output if isinstance(output, Tensor) else output[0]
