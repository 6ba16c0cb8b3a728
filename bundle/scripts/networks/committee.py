"""The committee: members that are trained together, and the mean of their softmaxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.errors import BadInput


class Committee(nn.Module):
    """Networks that are trained together and infer together; they may differ in architecture.

    Each member maps `(samples, channels, height, width)` to logits `(samples, classes, height, width)`; in train mode
    it may return a list of logits, finest first (deep supervision).

    Args:
        members: the networks, one or more. The rules that ask the peers need three or more.
        ensemble_members: indices of the members whose softmaxes are averaged; None: all.

    Raises:
        BadInput: no members, an index that isn't a member's, a state dict that doesn't fit.
    """

    def __init__(self, members: Sequence[nn.Module], *, ensemble_members: Sequence[int] | None = None) -> None:
        super().__init__()
        if not members:
            raise BadInput("members is empty: a committee needs at least one network.")
        if len({id(member) for member in members}) < len(members):
            raise BadInput("members holds the same network twice: write '%member' for each, not '@member'.")
        self.members = nn.ModuleList(members)
        everyone = range(len(members))
        self.ensemble_members = [int(k) for k in (everyone if ensemble_members is None else ensemble_members)]
        if not self.ensemble_members or not set(self.ensemble_members) <= set(everyone):
            raise BadInput(
                f"ensemble_members must be indices of the {len(members)} members, from 0, got {ensemble_members}."
            )
        # saved with the weights, so that random weights can be told from trained ones
        self.register_buffer("iterations_trained", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor) -> Tensor:
        """Return the ensemble's mean softmax: `(samples, channels, h, w)` to `(samples, classes, h, w)`."""
        total = torch.zeros(())
        for k, member in enumerate(self.members):
            if k in self.ensemble_members:
                probability = torch.softmax(member(image).float(), dim=1)
                if total.dim() == 0:
                    total = torch.zeros_like(probability)
                total += probability  # not stacked: one member's probabilities at a time
        total /= len(self.ensemble_members)
        return total

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, always strictly: MONAI Label asks for a loose match and would infer with random weights.

        Raises:
            BadInput: keys are missing or left over, or a tensor has another shape.
        """
        own = self.state_dict()
        reshaped = {key for key in own.keys() & state_dict.keys() if own[key].shape != state_dict[key].shape}
        for what, keys in (
            ("lacks", own.keys() - state_dict.keys()),
            ("has the unknown", state_dict.keys() - own.keys()),
            ("has another shape of", reshaped),
        ):
            if keys:
                raise BadInput(
                    f"The checkpoint doesn't fit the network: it {what} {min(keys)} ({len(keys)} of {len(own)} keys). "
                    "Use the network_def that it was trained with."
                )
        return super().load_state_dict(state_dict, strict=True, assign=assign)


def ensemble_attribute(committee: nn.Module) -> str:
    """Return the attribute that holds the indices of the ensemble members: a bundle of version 0.1 calls it voters."""
    return "ensemble_members" if hasattr(committee, "ensemble_members") else "voters"


def require_training(network: nn.Module) -> None:
    """Refuse to infer with weights that were neither loaded nor trained.

    Raises:
        BadInput: `network` is a committee and its weights are random.
    """
    iterations = getattr(network, "iterations_trained", None)
    if iterations is not None and int(iterations) == 0:
        raise BadInput("The committee's weights were never loaded or trained: give a checkpoint, --ckpt_path FILE.")
