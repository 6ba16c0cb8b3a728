"""Activation recomputation: cheap results are computed again in the backward pass instead of kept."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

CAT = torch.ops.aten.cat.default


def with_results_again(first: Sequence[fx.Node], second: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the backward pass' operators, with new ones among them for results that aren't worth their memory.

    Nearly half of what the U-Net's backward pass needs are results of InstanceNorm and LeakyReLU in one operator, which
    follow from its input and statistics, and joined channels. What these follow from is kept anyway, or smaller. They
    are computed again, the same to the bit, for each operator that takes them, and freed behind it.

    Args:
        first: the forward pass' operators.
        second: those of the backward pass, in the same graph; what they take is changed.
    """
    rewritten: list[fx.Node] = []
    place = {node: i for i, node in enumerate(first)}
    written = last_writes(first)

    def recipe(node: Any) -> tuple[Any, tuple[Any, ...]] | None:
        """Return the operator and the arguments that give a node's result once more; None: it has to be kept."""
        if node.target is operator.getitem and node.args[1] == 0 and is_norm(node.args[0]):
            x, weight, bias, _eps, slope = node.args[0].args
            results = {result.args[1]: result for result in node.args[0].users}
            again = torch.ops.cyclic_committee.instance_norm_leaky_relu_again.default
            return again, (x, results[1], results[2], weight, bias, slope)
        if node.target is CAT and node.args[1:] == (1,):
            changed = any(written.get(storage_of(part), 0) > place[node] for part in node.args[0])
            return None if changed else (CAT, node.args)
        return None

    def again(node: fx.Node, user: fx.Node) -> fx.Node:
        made = recipe(node) if node in place else None
        if made is None:
            return node
        args = fx.map_arg(made[1], lambda source: again(source, user))
        with user.graph.inserting_before(user):
            new = user.graph.call_function(made[0], args)
        new.meta["val"] = torch.empty_like(node.meta["val"])
        rewritten.append(new)
        return new

    for user in second:
        for source in user.all_input_nodes:
            user.replace_input_with(source, again(source, user))
        rewritten.append(user)
    return rewritten


def is_norm(node: fx.Node) -> bool:
    """Return whether a node is our InstanceNorm and LeakyReLU, an operator that isn't always there."""
    return str(node.target) == "cyclic_committee.instance_norm_leaky_relu.default"


def last_writes(nodes: Sequence[fx.Node]) -> dict[int, int]:
    """Return for each storage that operators change in place the index of the last that does."""
    return {
        storage_of(source): i
        for i, node in enumerate(nodes)
        if isinstance(node.target, torch._ops.OpOverload)
        for argument, source in zip(node.target._schema.arguments, node.args, strict=False)
        if argument.is_write and isinstance(source, fx.Node)
    }


def storage_of(node: fx.Node) -> int:
    """Return what is the same for all tensors that share their memory."""
    storage: int = node.meta["val"].untyped_storage()._cdata
    return storage
