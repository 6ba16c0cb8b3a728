"""Graph passes that put this bundle's CPU convolutions into a traced network."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..networks.convolutions import are_for_ours, onednn_is_on
from .recomputation import CAT, last_writes, storage_of

BACKWARD, CONVOLUTION = torch.ops.aten.convolution_backward.default, torch.ops.aten.convolution.default
PART = torch.ops.aten.slice.Tensor
LEAST_PIXELS = 2048  # for a thread, which has sums of its own: with many threads, few would cost more than they bring
MOST_WEIGHTS = 512 * 256 * 9  # with more, the sums of all threads are too large for their common cache


class Convolution(NamedTuple):
    """The arguments of a convolution's backward pass."""

    grad: fx.Node  # or the result, which is alike
    x: fx.Node
    weight: fx.Node
    bias_sizes: list[int] | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int
    wanted: list[bool] = []  # noqa: RUF012  # the gradients by x, weight, bias

    def parts(self) -> list[fx.Node]:
        """Return the tensors that were joined by channel to be x, or x."""
        args: Any = self.x.args
        return list(args[0]) if self.x.target is CAT and args[1:] == (1,) else [self.x]


def with_our_convolutions(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the forward pass' operators, with ours for 3 x 3 convolutions in bfloat16: the same to rounding.

    It takes two products for three, by Winograd's algorithm, and joined channels as the parts that they were joined of.

    Args:
        nodes: the operators of a graph, which is changed.
    """
    place, written = {node: i for i, node in enumerate(nodes)}, last_writes(nodes)
    rewritten: list[fx.Node] = []
    for node in nodes:
        args: Any = node.args
        if node.target is CONVOLUTION:
            x, weight, bias, *settings = args
            forward = Convolution(node, x, weight, None, *settings)
            if is_for_cpu(forward) and images_are_ours(forward):
                parts = [x] if was_changed(forward, place, written) else forward.parts()
                with node.graph.inserting_before(node):
                    target = torch.ops.cyclic_committee.convolution.default
                    ours = node.graph.call_function(target, (parts, weight, bias))
                ours.meta["val"] = node.meta["val"]
                node.replace_all_uses_with(ours)
                node = ours
        rewritten.append(node)
    return rewritten


def with_gradients_apart(first: Sequence[fx.Node], second: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the backward pass' operators, with one for each gradient of a convolution where that is quicker.

    - The gradient of joined channels is taken part by part, the same to the bit. From one of all channels each part
      would have to be copied, and the channels joined once more.
    - The gradients of a 3 x 3 convolution in bfloat16 are our operators', the same to rounding: they take two products
      for three, by Winograd's algorithm, and PyTorch's gradient of weights, by oneDNN, takes up to twice the time of
      its other convolutions where channels are few and pixels many.

    Args:
        first: the forward pass' operators.
        second: those of the backward pass, in the same graph; what they take is changed.
    """
    place, written = {node: i for i, node in enumerate(first)}, last_writes(first)
    rewritten: list[fx.Node] = []
    gone: set[fx.Node] = set()
    for node in second:
        args: Any = node.args
        backward = Convolution(*args) if node.target is BACKWARD else None
        if backward and is_for_cpu(backward):
            new, old = apart(node, backward, changed=was_changed(backward, place, written))
            rewritten += new
            gone.update(old)
        if node not in gone:
            rewritten.append(node)
    return rewritten


def apart(node: fx.Node, backward: Convolution, *, changed: bool) -> tuple[list[fx.Node], set[fx.Node]]:
    """Return a convolution's gradients, one by one, and the nodes whose place they take; none where it isn't quicker.

    Args:
        node: the operator that gives all of them.
        backward: its arguments.
        changed: whether what was joined to be its input was changed later.
    """
    results: dict[Any, fx.Node] = {result.args[1]: result for result in node.users}
    parts = backward.parts()
    gradients = parts_of(results[0], parts) if backward.wanted[0] else [[]] * len(parts)
    if not gradients:
        parts, gradients = [backward.x], [[results[0]]]
    of_input, of_weights = backward.wanted[0] and images_are_ours(backward), weights_are_ours(backward)
    if len(parts) == 1 and not of_input and not of_weights:
        return [], set()
    new, old = [], {node, *results.values()}

    def call(target: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        with node.graph.inserting_before(node):
            made = node.graph.call_function(target, args)
        made.meta["val"] = value
        new.append(made)
        return made

    begin = 0
    for part, to_replace in zip(parts, gradients, strict=True):
        end = begin + value_of(part).shape[1]
        if to_replace:
            weight = backward.weight
            if len(parts) > 1:
                weight = call(PART, (weight, 1, begin, end), value_of(weight)[:, begin:end])
            settings = (backward.stride, backward.padding, backward.dilation)
            transposed = (backward.grad, weight, None, *settings, True, left_over(backward), 1)
            target = torch.ops.cyclic_committee.input_gradient.default if of_input else CONVOLUTION
            made = call(target, transposed[:2] if of_input else transposed, torch.empty_like(value_of(part)))
            for gradient in to_replace:
                gradient.replace_all_uses_with(made)
                old.add(gradient)
        begin = end
    if of_weights:
        sources = [backward.x] if changed else backward.parts()
        target = torch.ops.cyclic_committee.weight_gradient.default
        both = call(target, (backward.grad, sources, backward.stride[0]), node.meta["val"][1:])
    else:
        both = call(BACKWARD, backward._replace(wanted=[False, *backward.wanted[1:]]), node.meta["val"])
    for index in (1, 2):
        if backward.wanted[index]:
            made = call(operator.getitem, (both, index - 1 if of_weights else index), value_of(results[index]))
            results[index].replace_all_uses_with(made)
    return new, old


def parts_of(gradient: fx.Node, parts: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """Return for each part of joined channels the nodes that are its gradient; none if all channels' is needed, too."""
    if len(parts) == 1:
        return [[gradient]]
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + value_of(part).shape[1])
    of_parts: list[list[fx.Node]] = [[] for _ in parts]
    for user in gradient.users:
        which = [i for i in range(len(parts)) if user.target is PART and user.args[1:] == (1, ends[i], ends[i + 1])]
        if not which:
            return []
        of_parts[which[0]].append(user)
    return of_parts


def left_over(backward: Convolution) -> list[int]:
    """Return how many rows and columns of x the convolution's stride leaves over; its result doesn't tell."""
    sizes = zip(value_of(backward.x).shape[2:], value_of(backward.grad).shape[2:], strict=True)
    taps = value_of(backward.weight).shape[2:]
    return [
        size - ((rows - 1) * backward.stride[i] - 2 * backward.padding[i] + backward.dilation[i] * (taps[i] - 1) + 1)
        for i, (size, rows) in enumerate(sizes)
    ]


def value_of(node: fx.Node) -> Tensor:
    """Return the tensor without memory that the trace has for a node."""
    value: Tensor = node.meta["val"]
    return value


def is_for_cpu(one: Convolution) -> bool:
    """Return whether it is one of images that oneDNN takes."""
    grad = value_of(one.grad)
    on_cpu = grad.device.type == "cpu" and onednn_is_on()
    return on_cpu and grad.dim() == 4 and not one.transposed and one.groups == 1


def was_changed(one: Convolution, place: dict[fx.Node, int], written: dict[int, int]) -> bool:
    """Return whether a part of joined channels was changed after they were joined, so that it can't be taken for them.

    Args:
        one: the convolution of them.
        place: of each operator in their list.
        written: see `last_writes`.
    """
    return any(written.get(storage_of(part), 0) > place.get(one.x, 0) for part in one.parts())


def images_are_ours(one: Convolution) -> bool:
    """Return whether our operators give the convolution and the gradient of its input, and are quicker."""
    return tuple(one.stride) == (1, 1) and are_ours(one)


def weights_are_ours(backward: Convolution) -> bool:
    """Return whether our operator gives the gradients of the weights and the bias, and is quicker."""
    grad = value_of(backward.grad)
    return (
        tuple(backward.stride) in ((1, 1), (2, 2))
        and value_of(backward.weight).numel() <= MOST_WEIGHTS
        and grad.shape[0] * grad.shape[2] * grad.shape[3] >= LEAST_PIXELS * torch.get_num_threads()
        and are_ours(backward)
    )


def are_ours(one: Convolution) -> bool:
    """Return whether the convolution is one that our operators are for, on a processor that they are for."""
    grad, x, weight = (value_of(node) for node in one[:3])
    return (
        weight.dtype == torch.bfloat16
        and weight.shape[2:] == (3, 3)
        and tuple(one.padding) == tuple(one.dilation) == (1, 1)
        and are_for_ours([x, grad], [value_of(node).shape[1] for node in (one.grad, *one.parts())])
    )
