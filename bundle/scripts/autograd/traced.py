"""Traced forward and backward graphs, and the gradients of some samples from one forward pass over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from .convolution_passes import with_gradients_apart, with_our_convolutions
from .recomputation import with_results_again

DETACH = torch.ops.aten.detach.default


class TracedGraphs(NamedTuple):
    """A network's forward and backward pass for one batch size, as graphs of PyTorch operators."""

    forward: fx.GraphModule  # [parameters, buffers, image] -> (outputs, saved)
    backward: fx.GraphModule  # [saved, gradients of the outputs] -> gradients of the parameters
    saved: list[torch.Size]  # shapes of what the backward pass needs from the forward pass
    from_image: list[torch.Size]  # shapes of all that the forward pass computes from the image
    reached_by: list[set[int]]  # for each parameter, the outputs that it has an influence on


def trace(
    network: nn.Module, image: Tensor, *, inferer: Inferer, autocast: torch.autocast, recompute: bool = True
) -> TracedGraphs:
    """Write down a network's forward and backward pass on a batch of this size; nothing is computed.

    PyTorch's autograd itself derives the backward pass; all that is done here is to cut its list of operators in two.

    Args:
        network: in the mode, train or eval, that it is to be used in.
        image: `(samples, channels, height, width)`; only its shape, type and device count.
        inferer: calls the network.
        autocast: the number format that the network computes in.
        recompute: whether what is cheap is computed again in the backward pass; else all that autograd keeps is kept.

    Raises:
        Exception: PyTorch can't trace the network, such as when its control flow depends on values.
    """
    inputs = [*network.parameters(), *network.buffers()]
    slots = parameter_slots(network)

    def both_passes(parameters: list[Tensor], buffers: list[Tensor], image: Tensor) -> Any:
        with torch.enable_grad():
            leaves = [parameter.detach().requires_grad_() for parameter in parameters]
            stand_ins = dict(zip(map(id, inputs), [*leaves, *buffers], strict=True))
            state = {name: stand_ins[id(tensor)] for name, tensor in slots.items()}
            with torch.autocast(
                autocast.device, dtype=autocast.fast_dtype, enabled=autocast._enabled, cache_enabled=False
            ):
                output = inferer(image, lambda x: functional_call(network, state, (x,), tie_weights=False))
            outputs = [output] if isinstance(output, Tensor) else list(output)
            gradients_out = [torch.ones_like(output) for output in outputs]  # they stand for what is given later
            gradients = torch.autograd.grad(outputs, leaves, gradients_out, allow_unused=True)
        return outputs, gradients_out, gradients

    # cuDNN's BatchNorm, behind InstanceNorm, hides its intermediate results; convolutions choose when they are run
    with torch.backends.cudnn.flags(enabled=False):
        graph = make_fx(both_passes, tracing_mode="fake")(list(network.parameters()), list(network.buffers()), image)
    return cut(graph, parameters=len(list(network.parameters())), recompute=recompute)


def parameter_slots(network: nn.Module) -> dict[str, Tensor]:
    """Return every slot that holds a parameter or buffer: a shared tensor twice, that of a shared module once.

    `functional_call` would leave its stand-ins behind in a module that has two names, such as those of DynUNet.
    """
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for prefix, module in network.named_modules()
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }


def cut(graph: fx.GraphModule, *, parameters: int, recompute: bool) -> TracedGraphs:
    """Cut the operators of both passes in two: what depends on the outputs' gradients is the backward pass."""
    for node in graph.graph.nodes:
        if node.target is DETACH:  # there is no autograd to detach from when the graph is run
            node.replace_all_uses_with(node.args[0])
    *nodes, result = (node for node in graph.graph.nodes if node.target is not DETACH)
    nodes = with_our_convolutions(nodes)
    heads = (len(result.args[0]) - parameters) // 2  # both passes' results come as one list
    outputs, gradients_out = result.args[0][:heads], result.args[0][heads : 2 * heads]
    reached_by: dict[Any, set[int]] = {node: {head} for head, node in enumerate(gradients_out)}
    from_image = {[node for node in nodes if node.op == "placeholder"][-1]}
    for node in nodes:
        if node not in gradients_out:
            heads_above = set().union(*(reached_by.get(source, set()) for source in node.all_input_nodes))
            if heads_above:
                reached_by[node] = heads_above
            elif from_image.intersection(node.all_input_nodes):
                from_image.add(node)
    first = [node for node in nodes if node not in reached_by]
    second = [node for node in nodes if node in reached_by and node not in gradients_out]
    reached = [reached_by.get(node, set()) for node in result.args[0][2 * heads :]]
    second = with_gradients_apart(first, second)
    if recompute:
        second = with_results_again(first, second)
    needed = {source for node in second for source in node.all_input_nodes}
    saved = [node for node in first if node in needed]
    return TracedGraphs(
        extract(graph, inputs=[], nodes=first, results=(outputs, saved)),
        extract(graph, inputs=[*saved, *gradients_out], nodes=second, results=result.args[0][2 * heads :]),
        [node.meta["val"].shape for node in saved],
        [node.meta["val"].shape for node in first if node in from_image and isinstance(node.meta["val"], Tensor)],
        reached,
    )


def extract(
    graph: fx.GraphModule, *, inputs: Sequence[fx.Node], nodes: Sequence[fx.Node], results: Any
) -> fx.GraphModule:
    """Return a graph of some nodes of another one."""
    part = fx.Graph()
    copies = {node: part.placeholder(node.name) for node in inputs}
    for node in nodes:
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(fx.map_arg(results, copies.__getitem__))
    part.eliminate_dead_code()  # channels that need no longer be joined
    return fx.GraphModule(graph, part)


@dataclass(frozen=True)
class KeptSamples:
    """Where the chosen samples of a batch lie once they are moved to its front, by as few copies as possible."""

    order: list[int]  # the sample in each row
    moves: list[tuple[int, int]]  # (to, from)

    @classmethod
    def of(cls, chosen: Sequence[int]) -> KeptSamples:
        """Return the rows for the indices of the chosen samples: those of the back fill the gaps in front."""
        kept = len(chosen)
        gaps = [row for row in range(kept) if row not in chosen]
        moves = list(zip(gaps, (sample for sample in chosen if sample >= kept), strict=True))
        return cls([dict(moves).get(row, row) for row in range(kept)], moves)

    def of_tensor(self, tensor: Tensor, shape: torch.Size, *, in_place: bool) -> Tensor:
        """Return the chosen samples' part of a tensor that has to do with all samples, in this shape.

        Samples lie along the dimension that is to be shorter, each on so many places as are left for one.
        """
        if tensor.shape == shape:
            return tensor
        dim = next(i for i, (n, wanted) in enumerate(zip(tensor.shape, shape, strict=True)) if n != wanted)
        each = shape[dim] // len(self.order)
        by_sample = tensor.unflatten(dim, (-1, each)) if each > 1 else tensor  # which forgets the order in memory
        if not in_place:
            order = torch.tensor(self.order, device=tensor.device)
            chosen: Tensor = by_sample.index_select(dim, order)
        else:
            for to, sample in self.moves:  # done twice to one memory, by two tensors that share it, it does no harm
                by_sample.select(dim, to).copy_(by_sample.select(dim, sample))
            chosen = by_sample.narrow(dim, 0, len(self.order))
        return chosen.flatten(dim, dim + 1) if each > 1 else chosen
