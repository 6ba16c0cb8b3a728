"""Selection rules: which samples each committee member learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..runtime.errors import BadInput


@dataclass(frozen=True)
class Rule(ABC):
    """Each member learns from the `keep` share of a mini-batch's samples that its peers score lowest.

    A rule is a pure function of the members' losses: `(members, samples)` float in, `(members, samples)` bool out,
    on the same device. Round half up, at least one sample; ties go to the lower index.

    Args:
        keep: share of the samples that are kept, in (0, 1].
        warmup_epochs: the share falls linearly from 1 to `keep` over so many epochs; 0: `keep` from the start.

    Raises:
        BadInput: `keep` or `warmup_epochs` out of range; fewer losses than `min_members` members.
    """

    keep: float = 0.75  # the paper, section 2.2
    warmup_epochs: int = 0
    min_members = 3  # no annotation: the same for all objects of a class, not a field

    def __post_init__(self) -> None:
        if isinstance(self.keep, (str, bool)) or not 0 < self.keep <= 1:
            raise BadInput(f"keep must be in (0, 1], got {self.keep}.")
        if isinstance(self.warmup_epochs, (str, bool)) or self.warmup_epochs < 0:
            raise BadInput(f"warmup_epochs must be 0 or more, got {self.warmup_epochs}.")

    @abstractmethod
    def scores(self, losses: Tensor) -> Tensor:
        """Score every sample for every member, the lower the better: `(members, samples)` to the same."""

    def at_epoch(self, epoch: int) -> Rule:
        """Return the rule as it is in an epoch, counted from 0: without warm-up, `keep` as the ramp has it."""
        if self.warmup_epochs == 0:
            return self
        ramp = min(epoch / self.warmup_epochs, 1.0)
        return replace(self, keep=1 - (1 - self.keep) * ramp, warmup_epochs=0)

    def __call__(self, losses: Tensor) -> Tensor:
        """Return the mask of the samples that each member learns from: `(members, samples)` bool."""
        if len(losses) < self.min_members:
            raise BadInput(f"{type(self).__name__} needs {self.min_members} or more members, got {len(losses)}.")
        return self.choose(self.scores(losses))

    def choose(self, scores: Tensor) -> Tensor:
        """Return the mask of each member's samples with the lowest scores: `(members, samples)` bool."""
        kept = max(1, int(self.keep * scores.shape[1] + 0.5))
        order = scores.argsort(dim=1, stable=True)  # stable: ties go to the lower index
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order[:, :kept], True)


def peers_of(losses: Tensor) -> Tensor:
    """Return the losses of each member's peers: `(members, samples)` to `(members, members - 1, samples)`."""
    members = len(losses)
    return torch.stack([losses[[p for p in range(members) if p != k]] for k in range(members)])


@dataclass(frozen=True)
class LossDifference(Rule):
    """Keep the samples on which the peers' losses differ least (the paper, equation 1).

    With more than three members: the largest minus the smallest of the peers' losses, which is the same for three.
    """

    def scores(self, losses: Tensor) -> Tensor:
        """Return the spread of the peers' losses, `(members, samples)`."""
        peers = peers_of(losses)
        return peers.amax(dim=1) - peers.amin(dim=1)


@dataclass(frozen=True)
class SmallLoss(Rule):
    """Keep the samples on which the sum of the peers' losses is smallest (the paper's text: "small loss")."""

    def scores(self, losses: Tensor) -> Tensor:
        """Return the sum of the peers' losses, `(members, samples)`."""
        return peers_of(losses).sum(dim=1)


@dataclass(frozen=True)
class RandomSubset(Rule):
    """Keep a random share, drawn anew for every member from torch's generator: the control for any rule."""

    min_members = 1

    def scores(self, losses: Tensor) -> Tensor:
        """Return random numbers, `(members, samples)`; the losses give only the shape."""
        return torch.rand(losses.shape).to(losses.device)  # drawn on the CPU: the same choice on every device


@dataclass(frozen=True)
class EverySample(Rule):
    """Keep all samples: a plain ensemble."""

    keep: float = 1.0
    min_members = 1

    def __post_init__(self) -> None:
        if self.keep != 1 or self.warmup_epochs:
            raise BadInput(f"EverySample keeps all: keep must be 1 without warm-up, got keep {self.keep}.")

    def scores(self, losses: Tensor) -> Tensor:
        """Return zeros, `(members, samples)`: no sample is better than another."""
        return torch.zeros_like(losses)
