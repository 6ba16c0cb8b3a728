"""The members' updates: gradients on the chosen samples, their mean over processes, clipping, one optimiser step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.forward import Forward
from ..autograd.traced import KeptSamples
from ..networks.committee import Committee
from .distributed import DistributedSelection


class MemberUpdates:
    """Takes one optimiser step of every member, each on its own samples.

    Args:
        network: the committee.
        optimizer: over the parameters of all members.
        loss_function: `loss(output, label)`; output is what a member returns in train mode.
        gradient_clip: the largest norm of one member's gradients.
        distributed: averages gradients over the processes of one training.
        scaled: whether losses are scaled for float16's small range.
    """

    def __init__(
        self,
        network: Committee,
        optimizer: torch.optim.Optimizer,
        loss_function: nn.Module,
        *,
        gradient_clip: float,
        distributed: DistributedSelection,
        scaled: bool,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.loss_function = loss_function
        self.gradient_clip = gradient_clip
        self.distributed = distributed
        device = next(network.parameters()).device
        self.grad_scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.memory: dict[nn.Parameter, Tensor] = {}  # of each gradient, for all iterations

    def reserve_memory(self) -> None:
        """Take the gradients' memory, the first time.

        Wherever there was room for them, they would stay until the next iteration amid memory that is freed meanwhile.
        What is left between them is too small for the networks' results, and a CPU's memory grew by a tenth to a half.
        """
        if not self.memory:
            self.memory = {parameter: torch.empty_like(parameter) for parameter in self.network.parameters()}

    def backward(self, forwards: Sequence[Forward], label: Tensor, kept: Tensor) -> Tensor:
        """Give each member the gradients of its loss on its chosen samples; return the losses, `(members,)`.

        Args:
            forwards: each member's run over the mini-batch.
            label: of all samples.
            kept: (members, samples) bool, on the CPU.
        """
        self.optimizer.zero_grad(set_to_none=True)  # None, not 0: momentum must not move a member without gradients
        losses: list[Tensor] = []
        averages = []
        for member, forward, chosen in zip(self.network.members, forwards, kept, strict=True):
            samples = chosen.nonzero()[:, 0].tolist()
            losses.append(self.backward_of(forward, label, samples))
            self.keep_in_memory(member)
            averages.append(self.distributed.average(member, len(samples)))
        for finish in averages:
            finish()
        return torch.stack(losses)

    def backward_of(self, forward: Forward, label: Tensor, samples: Sequence[int]) -> Tensor:
        """Give one member its gradients; of no samples, as one of several processes may have, they are 0."""
        kept_samples, count = KeptSamples.of(samples or [0]), len(samples)
        label_kept = label[kept_samples.order][:count]
        losses: list[Tensor] = []

        def scaled_loss(output: Any) -> Tensor:
            heads = [head[:count] for head in ([output] if isinstance(output, Tensor) else output)]
            loss = self.loss_function(heads if len(heads) > 1 else heads[0], label_kept)
            losses.append(loss.detach())
            scaled: Tensor = self.grad_scaler.scale(loss)
            return scaled

        forward.backward(kept_samples, scaled_loss)
        return losses[0]

    @torch.no_grad()
    def keep_in_memory(self, member: nn.Module) -> None:
        """Move a member's gradients to their own memory."""
        for parameter in member.parameters():
            if parameter.grad is not None:
                parameter.grad = self.memory[parameter].copy_(parameter.grad)

    def step(self) -> None:
        """Clip each member's gradients and take the optimiser's step."""
        self.grad_scaler.unscale_(self.optimizer)
        for member in self.network.members:
            nn.utils.clip_grad_norm_(member.parameters(), self.gradient_clip)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self.network.iterations_trained += 1  # type: ignore[operator, assignment]  # a buffer
