"""The memory of a network's activations, from its traced graphs."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from torch import Tensor, UntypedStorage, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..autograd.traced import TracedGraphs

Sizes = dict[int, int]  # bytes of each storage: tensors that share their memory count once


@dataclass(frozen=True)
class ActivationMemory:
    """What one member's intermediate results take, in bytes; its parameters, buffers, gradients and image apart."""

    in_one_pass: bool  # scores and gradients from one forward pass; else from two
    outputs: int  # what it returns
    scoring: int  # at most, while it runs over all samples and keeps nothing
    forward: int  # at most, while it runs over all samples and keeps what the backward pass needs
    kept: int  # what is kept then, and its outputs
    backward: int  # at most, while the backward pass follows: what is still kept is in it
    forward_again: int  # at most, while it runs over the chosen samples alone
    backward_again: int  # at most, while the backward pass of that follows
    loss: int  # at most, for the loss of the chosen samples and its derivative

    def before(self) -> int:
        """Return the most until all members have their scores."""
        return self.forward if self.in_one_pass else self.scoring

    def between(self) -> int:
        """Return what is left of that."""
        return self.kept if self.in_one_pass else self.outputs

    def after(self) -> int:
        """Return the most while it learns."""
        if self.in_one_pass:
            return max(self.kept + self.loss, self.outputs + self.backward)
        return self.outputs + max(self.forward_again + self.loss, self.backward_again)


def activation_memory(
    full_graph: TracedGraphs, kept_graph: TracedGraphs, *, in_one_pass: bool, loss: int
) -> ActivationMemory:
    """Return what a member's run over all samples takes, as `full_graph`, and learning from the chosen ones."""
    kept, inputs, outputs = forward_sizes(full_graph)
    again_kept, again_inputs, again_outputs = forward_sizes(kept_graph)
    return ActivationMemory(
        in_one_pass=in_one_pass,
        outputs=sum(outputs.values()),
        scoring=peak(full_graph.forward, outside=inputs, last=outputs),
        forward=peak(full_graph.forward, outside=inputs, last={**kept, **outputs}),
        kept=sum({**kept, **outputs}.values()),
        backward=backward_peak(kept_graph, [size_of(value, inputs) for value in saved_values(full_graph)]),
        forward_again=peak(kept_graph.forward, outside=again_inputs, last={**again_kept, **again_outputs}),
        backward_again=backward_peak(kept_graph, [size_of(value, again_inputs) for value in saved_values(kept_graph)]),
        loss=loss,
    )


def forward_sizes(graphs: TracedGraphs) -> tuple[Sizes, set[int], Sizes]:
    """Return the storages that are kept for the backward pass, those of the inputs, and those of the outputs."""
    nodes = list(graphs.forward.graph.nodes)
    inputs = {key for node in nodes if node.op == "placeholder" for key in sizes_of(node.meta.get("val"))}
    kept, outputs = (merged(node.meta.get("val") for node in part) for part in reversed(nodes[-1].args[0]))
    return without(kept, inputs), inputs, without(outputs, inputs)


def saved_values(graphs: TracedGraphs) -> list[Any]:
    """Return the tensors that the backward pass needs from the forward pass, as the trace has them."""
    *_, result = graphs.forward.graph.nodes
    return [node.meta.get("val") for node in result.args[0][1]]


def output_values(graphs: TracedGraphs) -> list[Tensor]:
    """Return the network's outputs, as the trace has them."""
    *_, result = graphs.forward.graph.nodes
    return [node.meta["val"] for node in result.args[0][0]]


def backward_peak(graphs: TracedGraphs, saved_sizes: Sequence[int]) -> int:
    """Return the most that a backward pass takes which begins with what was saved, each of these sizes."""
    nodes = list(graphs.backward.graph.nodes)
    *_, forward_result = graphs.forward.graph.nodes
    given = [node.meta.get("val") for node in (*forward_result.args[0][1], *forward_result.args[0][0])]
    sizes: Sizes = {}
    for value, size in zip(given, saved_sizes, strict=False):
        for key in sizes_of(value):
            sizes[key] = max(sizes.get(key, 0), size)
    gradients = merged(node.meta.get("val") for node in nodes[-1].args[0] if node is not None)
    return peak(graphs.backward, outside=set(gradients), last={}, given=given, sizes=sizes)


def peak(
    graph: fx.GraphModule,
    *,
    outside: set[int],
    last: Sizes,
    given: Sequence[Any] = (),
    sizes: Mapping[int, int] | None = None,
) -> int:
    """Return the most bytes that are alive at once while a graph's operators run one after another.

    Args:
        graph: traced, with `meta["val"]`.
        outside: storages that don't count.
        last: storages that stay alive to the end.
        given: what the first of the graph's inputs are, if the graph itself doesn't say.
        sizes: of storages, where they aren't their tensors' own.
    """
    *nodes, result = graph.graph.nodes
    values = {node: node.meta.get("val") for node in nodes}
    values.update(zip((node for node in nodes if node.op == "placeholder"), given, strict=False))
    place = {node: i for i, node in enumerate(nodes)}
    born: dict[int, int] = {}
    dead: dict[int, int] = {}
    size: Sizes = {}
    for i, node in enumerate(nodes):
        until = max([i, *(place[user] for user in node.users if user is not result)])
        for key, n in sizes_of(values[node]).items():
            if key not in outside:
                size.setdefault(key, (sizes or {}).get(key, n))
                born.setdefault(key, 0 if node.op == "placeholder" else i)
                dead[key] = max(dead.get(key, 0), len(nodes) if key in last else until)
    change = [0] * (len(nodes) + 2)
    for key, n in size.items():
        change[born[key]] += n
        change[dead[key] + 1] -= n
    return max(itertools.accumulate(change))


def sizes_of(value: Any) -> Sizes:
    """Return the storages of a traced value: a tensor, or a tuple with tensors among others."""
    tensors = value if isinstance(value, (tuple, list)) else [value]
    storages = [tensor.untyped_storage() for tensor in tensors if isinstance(tensor, Tensor)]
    return {storage._cdata: storage.nbytes() for storage in storages}


def size_of(value: Any, inputs: set[int]) -> int:
    """Return the size of one traced tensor's storage; 0 for an input's, which is there anyway."""
    return sum(size for key, size in sizes_of(value).items() if key not in inputs)


def merged(values: Iterable[Any]) -> Sizes:
    """Return the storages of several values."""
    return {key: size for value in values for key, size in sizes_of(value).items()}


def without(sizes: Sizes, keys: set[int]) -> Sizes:
    """Return storages but for some."""
    return {key: size for key, size in sizes.items() if key not in keys}


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make within it, as long as they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.counted: WeakSet[UntypedStorage] = WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what is new in its result."""
        given = {id(value.untyped_storage()) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if id(storage) not in given and storage not in self.counted:
                    self.counted.add(storage)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.end, storage.nbytes())
        return result

    def end(self, size: int) -> None:
        """Count down."""
        self.now -= size
