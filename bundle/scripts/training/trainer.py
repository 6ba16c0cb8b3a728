"""The trainer: each iteration scores, selects and updates (the paper, section 2.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

from ..autograd.forward import BackwardMode, SharedForward
from ..networks.committee import Committee
from ..networks.precision import autocast
from ..runtime.errors import BadInput
from .distributed import DistributedSelection, LocalSelection
from .loss import cross_entropy_per_sample
from .selection import Rule
from .update import MemberUpdates


@dataclass(frozen=True)
class Selection:
    """What the committee chose in one iteration: `engine.state.selection`, on the CPU."""

    losses: Tensor  # (members, samples): each member's cross entropy, before the update
    scores: Tensor  # (members, samples): what the rule thinks of each sample
    kept: Tensor  # (members, samples) bool: the samples that each member learned from
    training_loss: Tensor  # (members,): each member's, on its chosen samples
    samples: list[tuple[str, int]]  # case and slice of each sample


class CommitteeTrainer(Trainer):
    """Train all members on each mini-batch, each on the samples that the rule chooses for it.

    An iteration scores, selects and updates (the paper, section 2.2): every member's cross entropy on every sample is
    taken before any update; then each member takes one optimiser step on its own samples only. How many forward passes
    that takes is the business of `backward_mode`, and changes nothing but time and memory. Afterwards
    `state.output` holds image, label, pred (the members' mean probability before the update) and loss (the mean of the
    members' training losses), and `state.selection` the `Selection`.

    Args:
        network: the committee.
        optimizer: over the parameters of all members.
        loss_function: `loss(output, label)`; output is what a member returns in train mode.
        select: the rule, `(members, samples)` losses to `(members, samples)` bool.
        backward_mode: runs a member over a mini-batch; `SharedForward` by default, `RecomputeForward` for less memory.
        distributed: what the processes of one training exchange, if there are several; `LocalSelection` by default.
        gradient_clip: the largest norm of one member's gradients.
        precision: "auto", "float32", "bfloat16" or "float16"; see `precision.autocast`.
        inferer: calls a member on a batch.
        device, max_epochs, train_data_loader, epoch_length: as in MONAI's `SupervisedTrainer`.
        train_handlers: as there; those with an `order` below 0 go before the others, and those above 0 after them.

    Raises:
        BadInput: too few members for the rule; a loss that isn't finite, naming the member and the case.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Mapping[str, Any]],
        network: Committee,
        optimizer: torch.optim.Optimizer,
        loss_function: nn.Module,
        select: Rule,
        backward_mode: BackwardMode | None = None,
        distributed: DistributedSelection | None = None,
        gradient_clip: float = 12.0,
        precision: str = "auto",
        epoch_length: int | None = None,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            handlers=sorted(train_handlers or (), key=lambda handler: getattr(handler, "order", 0)),
        )
        if len(network.members) < select.min_members:
            raise BadInput(
                f"network_def has {len(network.members)} members, but {type(select).__name__} needs "
                f"{select.min_members} or more: add members or choose another rule with select."
            )
        self.network = network
        self.select = select
        self.distributed = distributed or LocalSelection()
        self.backward_mode = backward_mode or SharedForward()
        self.inferer = inferer or SimpleInferer()
        self.autocast = autocast(self.state.device, precision)
        self.update = MemberUpdates(
            network,
            optimizer,
            loss_function,
            gradient_clip=gradient_clip,
            distributed=self.distributed,
            scaled=self.autocast.fast_dtype == torch.float16,
        )
        sampler: Any = getattr(train_data_loader, "batch_sampler", None)
        self.add_event_handler(
            Events.EPOCH_STARTED, lambda engine: self.distributed.agree(self.network, engine.state.epoch)
        )
        if hasattr(sampler, "set_epoch"):
            self.add_event_handler(Events.EPOCH_STARTED, lambda engine: sampler.set_epoch(engine.state.epoch - 1))

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Tensor]:
        image, label = self.prepare_batch(batchdata, engine.state.device, self.non_blocking)
        samples = list(zip(batchdata["case"], (int(i) for i in batchdata["slice"]), strict=True))
        self.network.train()

        # score: every member's cross entropy on every sample, before any update
        self.update.reserve_memory()  # before any result of the networks
        forwards = [
            self.backward_mode(member, image, inferer=self.inferer, autocast=self.autocast)
            for member in self.network.members
        ]
        losses, probability = score([forward.logits for forward in forwards], label)
        engine.state.output = {"image": image, "label": label, "pred": probability}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)

        # select: the samples that each member learns from, by its peers' losses
        rule = self.select.at_epoch(engine.state.epoch - 1)
        scores, kept = self.distributed.choose(rule, losses)  # (members, samples), on the CPU
        losses = losses.cpu()
        require_finite(losses, samples)

        # update: one optimiser step of each member, on its own samples
        training_losses = self.update.backward(forwards, label, kept)
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.update.step()
        require_finite(training_losses[:, None], samples)

        engine.state.selection = Selection(losses, scores, kept, training_losses.cpu(), samples)
        engine.state.output["loss"] = training_losses.mean()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        output: dict[str, Tensor] = engine.state.output
        return output


@torch.no_grad()
def score(logits: Sequence[Tensor], label: Tensor) -> tuple[Tensor, Tensor]:
    """Return every member's cross entropy on every sample, `(members, samples)`, and the mean probability."""
    losses, probability = [], torch.zeros(())
    for of_member in logits:
        wide = of_member.float().contiguous()
        losses.append(cross_entropy_per_sample(wide, label))
        probability = probability.to(wide.device) + wide.softmax(dim=1) / len(logits)
    return torch.stack(losses), probability


def require_finite(losses: Tensor, samples: Sequence[tuple[str, int]]) -> None:
    """Raise on the first loss that isn't finite: `(members, samples)`, or `(members, 1)` for the whole batch."""
    if bool(torch.isfinite(losses).all()):
        return
    member, sample = (~torch.isfinite(losses)).nonzero()[0].tolist()
    named = samples if losses.shape[1] == 1 else samples[sample : sample + 1]
    where = ", ".join(f"slice {index} of case {case}" for case, index in named)
    raise BadInput(
        f"The loss of member {member} is {losses[member, sample].item()} on {where}: look at the case, or lower "
        "learning_rate or set precision float32, and continue with --resume true."
    )
