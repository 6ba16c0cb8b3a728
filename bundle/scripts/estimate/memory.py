"""Estimate of a training's memory on CPU and GPU."""

from __future__ import annotations

import copy
import resource
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.forward import obstacle_of
from ..autograd.traced import TracedGraphs, trace
from ..training.trainer import score
from .activations import ActivationMemory, Alive, activation_memory, output_values
from .settings import Settings

# What a training takes beyond its tensors, fitted to trainings of 0.8 to 9.0 GiB (torch 2.13, Linux): a share of the
# activations, for the gaps in glibc's heap and for oneDNN's copies, and what is only loaded or made once it runs, such
# as MLflow's database and oneDNN's code. benchmarks/estimate.py measures how well they fit.
HEAP = 0.5
LOADED_LATER = 64 * 2**20
# PyTorch with CUDA 11.7 or later, whose kernels are loaded when they are first used: "around 400MB",
# https://github.com/pytorch/pytorch/issues/109888. Not measured here.
CUDA_CONTEXT = 400 * 2**20


def cpu_memory(settings: Settings, members: Sequence[ActivationMemory | None], *, libraries: int) -> dict[str, int]:
    """Return the bytes of each part of a training's memory on the CPU.

    Args:
        settings: the training's.
        members: what is known of each member's intermediate results there.
        libraries: this process' memory, with the networks and what training imports in it.
    """
    tensors = {**lasting(settings), "activations": activations(settings, members)}
    return {
        "Python and its libraries": max(libraries - tensors["weights"], 0) + LOADED_LATER,
        **tensors,
        "heap and oneDNN": int(HEAP * tensors["activations"]),
    }


def cuda_memory(settings: Settings, members: Sequence[ActivationMemory | None]) -> dict[str, int]:
    """Return the bytes of each part of a training's memory on a CUDA device; see `cpu_memory`."""
    tensors = {**lasting(settings), "activations": activations(settings, members)}
    return {"CUDA's context": CUDA_CONTEXT, **tensors}


def lasting(settings: Settings) -> dict[str, int]:
    """Return the bytes of the tensors that last from one iteration to the next."""
    image, label = settings.noise(1)
    return {
        "weights": sum(module_bytes(member) for member in settings.members),
        "gradients": sum(tensor_bytes(member.parameters()) for member in settings.members),
        "optimiser's state": optimiser_bytes(settings.optimizer),
        "mini-batches": 2 * settings.batch * tensor_bytes([image, label]),
    }


def activations(settings: Settings, members: Sequence[ActivationMemory | None]) -> int:
    """Return the most that intermediate results take."""
    known = [member for member in members if member is not None]
    label = settings.noise(1)[1]
    logits = torch.zeros(1, settings.classes, *settings.shape[2:])
    scoring = settings.batch * scoring_peak([logits] * len(known), label) if known else 0
    most = alive = 0
    for member in known:
        most = max(most, alive + member.before())
        alive += member.between()
    most = max(most, alive + scoring)
    for member in known:
        most = max(most, alive - member.between() + member.after())
        alive += member.outputs - member.between()
    return most


def step_bytes(settings: Settings, member: ActivationMemory | None) -> int:
    """Return what one member's step takes beyond the network."""
    gradients = max(tensor_bytes(member.parameters()) for member in settings.members)
    of_one = 0 if member is None else max(member.before(), member.after())
    return 3 * gradients + int((1 + HEAP) * of_one)


def member_activations(member: nn.Module, settings: Settings, *, device: str = "CPU") -> ActivationMemory | None:
    """Return what a member's intermediate results take on the "CPU" or on a "CUDA" device, which needn't be there.

    None: the member can't be traced.
    """
    if device == "CUDA":  # where PyTorch's own operators do what ours do on a CPU, and keep more
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            return member_activations(member, settings)
    known: dict[tuple[int, bool], TracedGraphs] = {}

    def graphs(samples: int, *, recompute: bool = True) -> TracedGraphs:
        if (samples, recompute) not in known:
            image = torch.empty(samples, *settings.shape[1:])
            known[samples, recompute] = trace(
                member, image, inferer=settings.inferer, autocast=settings.autocast, recompute=recompute
            )
        return known[samples, recompute]

    kinds = [kind.__name__ for kind in type(settings.backward_mode).__mro__]  # by name: a module may live twice
    one_pass = "SharedForward" in kinds
    traced = obstacle_of(graphs, settings.batch) is None
    try:
        full_graph, kept_graph = (graphs(samples, recompute=traced) for samples in (settings.batch, settings.most_kept))
    except Exception:  # whatever PyTorch's tracer can't do
        return None
    heads = [torch.zeros(1, *value.shape[1:], dtype=value.dtype) for value in output_values(kept_graph)]
    loss = settings.most_kept * loss_peak(settings.loss, heads, settings.noise(1)[1])
    return activation_memory(full_graph, kept_graph, in_one_pass=one_pass and traced, loss=loss)


def loss_peak(loss: Callable[[Any, Tensor], Tensor], outputs: Sequence[Tensor], label: Tensor) -> int:
    """Return the most bytes that a loss and its derivative by a network's outputs take: it is run."""
    leaves = [output.detach().requires_grad_() for output in outputs]
    with Alive() as alive:
        value = loss(leaves if len(leaves) > 1 else leaves[0], label)
        torch.autograd.grad(value, leaves, allow_unused=True)
    most_bytes: int = alive.most
    return most_bytes


def scoring_peak(logits: Sequence[Tensor], label: Tensor) -> int:
    """Return the most bytes that scoring all members takes, beyond their outputs: it is done."""
    with Alive() as alive:
        score(logits, label)
    most_bytes: int = alive.most
    return most_bytes


def optimiser_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the size of an optimiser's state after its first step, which a copy takes on tensors without memory."""
    without_memory = copy.copy(optimizer)
    without_memory.state = defaultdict(dict)
    without_memory.param_groups = [
        {**group, "params": [nn.Parameter(torch.empty_like(parameter, device="meta")) for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    for group in without_memory.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    without_memory.step()
    return sum(tensor_bytes(of_one.values()) for of_one in without_memory.state.values())


def module_bytes(network: nn.Module) -> int:
    """Return the size of parameters and buffers."""
    return tensor_bytes([*network.parameters(), *network.buffers()])


def tensor_bytes(values: Iterable[Any]) -> int:
    """Return the size of the tensors among some values."""
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def resident_bytes() -> int:
    """Return the memory of this process as it is now, or elsewhere than on Linux at most until now."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def available_bytes() -> int | None:
    """Return how much memory programs can still have on this machine; None: it doesn't say."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
