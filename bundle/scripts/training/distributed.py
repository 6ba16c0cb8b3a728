"""Distributed training: processes, their share of the data, local and global selection, gradients' mean."""

from __future__ import annotations

import errno
import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sized
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import ignite.distributed as idist
import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.utils.data import Sampler

from ..runtime.errors import BadInput
from .selection import Rule

CLAIMED: dict[Path, TextIO] = {}  # by this process; the system ends its claims with it, however it ends
LONGEST_WAIT = timedelta(hours=6)  # for the others: preparing or validating takes some longer; torchrun ends the dead


def join(device: torch.device | str) -> None:
    """Join the processes that torchrun started, as one of them: NCCL for GPUs, gloo for CPUs. Alone: nothing.

    Raises:
        BadInput: not started by torchrun; started on several nodes in a way that can't be restarted.
    """
    if "RANK" not in os.environ:
        raise BadInput(
            "multi_gpu: this process wasn't started by torchrun. Start it with `torchrun --nproc_per_node GPUS -m "
            "monai.bundle run ...`, or leave the overlay out."
        )
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if distributed.is_initialized():
        return
    prefix = attempt_prefix()
    store, rank, world = next(rendezvous("env://", timeout=LONGEST_WAIT))
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=distributed.PrefixStore(prefix, store),
        rank=rank,
        world_size=world,
        timeout=LONGEST_WAIT,
    )


def claim(output_dir: str) -> None:
    """Keep other trainings out of a folder, until `end_claim` or the end of this process; the first of several does it.

    Raises:
        BadInput: another training is writing there.
    """
    folder = Path(output_dir).resolve()
    if idist.get_rank() != 0 or folder in CLAIMED:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".training.lock").open("a")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, it isn't the loading processes', too
    except OSError as error:
        lock.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BadInput(f"{folder}: another training writes there. Choose another output_dir, or wait.") from error
        return  # a file system without locks
    CLAIMED[folder] = lock


def end_claim(output_dir: str) -> None:
    """Let other processes train in a folder: this one, which may live on, has done."""
    lock = CLAIMED.pop(Path(output_dir).resolve(), None)
    if lock is not None:
        lock.close()


def attempt_prefix() -> str:
    """Return what tells the addresses of these processes from those of dead ones, which torchrun keeps by default.

    Without it processes that were started anew call the dead, and may wait for ever (pytorch issue 135712). torchrun
    counts restarts on each node by itself, so that the count helps on one node only.

    Raises:
        BadInput: several nodes, restarts wanted, and torchrun's own store.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return "new"  # the first process has made a store of its own
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1 and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:
        raise BadInput(
            "--max-restarts: on several nodes torchrun lets processes that it starts anew call dead ones. Set the "
            "variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on all nodes before torchrun is started."
        )
    return f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def leave() -> None:
    """Leave the group of processes, once all have done their work."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def device_of_rank() -> torch.device:
    """Return this process' GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def is_not_rank_zero() -> bool:
    """Return whether another process writes the files: all but the first one. Known before they have met."""
    return int(os.environ.get("RANK", 0)) > 0


def after_restart(checkpoint: str) -> bool:
    """Return whether torchrun has started this training anew, and there is a checkpoint to go on from.

    To be called by all processes once they have joined: each node counts its own restarts, so the largest count is it.
    """
    count = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if idist.get_world_size() > 1:
        count = int(torch.as_tensor(idist.all_reduce(count, "MAX")))
    return count > 0 and Path(checkpoint).is_file()


def in_turn(work: Callable[[], Any]) -> Any:
    """Do what fills a folder: the first process alone, then the first one of each machine, then all others.

    What was made by those before is only found there, on a shared disk by all, on disks of their own once a machine.
    """
    if idist.get_world_size() == 1:
        return work()
    done: list[Any] = []
    turn = 0 if idist.get_rank() == 0 else 1 if idist.get_local_rank() == 0 else 2
    for now in range(3):
        if now == turn:
            done.append(work())
        distributed.barrier()
    return done[0]


class RankSampler(Sampler[int]):
    """Every process' share of a data set: each case once, and at least one a process, so that none waits for ever.

    Where there are fewer cases than processes, those without one repeat the first.

    Args:
        data_source: the data set; its cases stay in their order.
    """

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        cases = range(len(self.data_source))
        return iter(cases[idist.get_rank() :: idist.get_world_size()] or cases[:1])

    def __len__(self) -> int:
        return len(list(iter(self)))


class DistributedSelection(ABC):
    """Lets processes that have a part of every mini-batch each learn as one; one process alone does so anyway.

    The mini-batch of all processes holds place 0 of every rank, then place 1 of every rank, and so on.
    """

    @abstractmethod
    def choose(self, rule: Rule, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rule's scores and choice for this process' samples.

        Args:
            rule: of the epoch.
            losses: of this process' samples, `(members, samples)`.

        Returns:
            scores: `(members, samples)`, on the CPU.
            kept: `(members, samples)` bool, on the CPU.
        """

    def average(self, member: nn.Module, samples: int) -> Callable[[], None]:
        """Begin to average a member's gradients over all processes; the returned function waits for the end.

        Each process' gradients count by the number of samples that they come from, which may be none. So a mean over
        samples stays one, whatever each process chose. The sum travels while the next member computes.
        """
        if idist.get_world_size() == 1:
            return nothing
        parameters = [parameter for parameter in member.parameters() if parameter.grad is not None]
        weight = parameters[0].new_full((1,), samples)
        in_order = [flat(parameter.grad, like=parameter) for parameter in parameters]  # type: ignore[arg-type]
        bucket = torch.cat([*in_order, weight])
        bucket[:-1] = bucket[:-1] * samples if samples else 0.0  # 0 times NaN is NaN
        work: Any = distributed.all_reduce(bucket, async_op=True)

        def finish() -> None:
            work.wait()
            averages = (bucket[:-1] / bucket[-1]).split([parameter.numel() for parameter in parameters])
            for parameter, average in zip(parameters, averages, strict=True):
                flat(parameter.grad, like=parameter, into=average)  # type: ignore[arg-type]

        return finish

    def agree(self, network: nn.Module, epoch: int) -> None:
        """Begin an epoch with the first process' weights and buffers in all, and with random numbers of each one's own.

        The random numbers follow from the first one's seed, the rank and the epoch, whatever was resumed.
        """
        if idist.get_world_size() == 1:
            return
        tensors = [*network.parameters(), *network.buffers()]
        seed = torch.tensor([torch.initial_seed() % 2**31], device=tensors[0].device)
        for tensor in (*tensors, seed):
            distributed.broadcast(tensor.detach(), src=0)
        if idist.get_rank() > 0:
            entropy = [int(seed), idist.get_rank(), epoch]
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


class LocalSelection(DistributedSelection):
    """The rule sees a process' own part of the mini-batch: nothing is exchanged for the choice."""

    def choose(self, rule: Rule, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rule's scores and choice for this process' samples, from these alone."""
        scores = rule.scores(losses.cpu())  # a GPU is waited for once
        return scores, rule.choose(scores)


class GlobalSelection(DistributedSelection):
    """The rule sees the mini-batch of all processes: the losses are gathered, and there is one decision.

    A process may then learn from all of its samples, or from none. With `loss.GlobalNnUNetLoss` training is the same
    as that of one process with the whole mini-batch.
    """

    def choose(self, rule: Rule, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Return this process' part of the scores and the choice for the samples of all processes."""
        world, rank = idist.get_world_size(), idist.get_rank()
        if world == 1:
            return LocalSelection().choose(rule, losses)
        of_ranks = [torch.empty_like(losses) for _ in range(world)]
        distributed.all_gather(of_ranks, losses.contiguous())
        of_all = torch.stack(of_ranks, dim=2).flatten(1)  # (members, samples of all): place by place
        scores = rule.scores(of_all.cpu()).to(losses.device)
        distributed.broadcast(scores, src=0)  # one decision, also where the rule throws dice
        scores = scores.cpu()
        kept = rule.choose(scores)
        return scores[:, rank::world], kept[:, rank::world]


def nothing() -> None:
    """Do nothing: a process alone has no sum to wait for."""


def flat(tensor: Tensor, *, like: Tensor, into: Tensor | None = None) -> Tensor:
    """Return a gradient's numbers in the order of its parameter's memory, which is the same in all processes.

    Args:
        tensor: the gradient.
        like: the parameter.
        into: numbers in that order, which the gradient receives.
    """
    order = sorted(range(like.dim()), key=lambda axis: like.stride(axis), reverse=True)
    by_memory = tensor.permute(order)
    if into is not None:
        by_memory.copy_(into.view(by_memory.shape))
    return by_memory.reshape(-1)
