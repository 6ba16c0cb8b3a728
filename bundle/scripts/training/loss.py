"""nnU-Net's loss, cross entropy plus soft Dice, and the cross entropy of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch
from monai.losses import DiceCELoss
from torch import Tensor, distributed, nn
from torch.nn import functional

SMOOTH = 1e-5  # of the Dice, above and below the line


class NnUNetLoss(nn.Module):
    """nnU-Net's loss: cross entropy plus soft Dice over the foreground classes, at every head's own resolution.

    The Dice sums run over the whole batch. The weight of a head halves with every stage and is 0 for the coarsest;
    the weights add up to 1. A network with a single head has the weight 1. It equals nnU-Net's loss + 1.
    Source: nnU-Net v1, `DC_and_CE_loss` and `MultipleOutputLoss2`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice_and_cross_entropy = DiceCELoss(
            include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH
        )

    def forward(self, output: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            output: logits `(samples, classes, h, w)`, or a list of them, finest first.
            label: class ids `(samples, 1, height, width)`.
        """
        total = torch.zeros((), device=label.device)
        for logits, weight in weighted_heads(output):
            if len(label) == 0:  # nothing was chosen for this process
                return logits.float().sum()
            total = total + weight * self.dice_and_cross_entropy(logits.float(), label_at(label, logits))
        return total


class GlobalNnUNetLoss(nn.Module):
    """`NnUNetLoss` over the samples that the processes have chosen together: what one process with all would have.

    Each process' sums are added up over all of them, and gradients go through the sums to each one's own samples. All
    processes have to call it, also those without a sample. In one process it is `NnUNetLoss`, to rounding.

    The value is that of all samples. Its gradients are as large as `DistributedSelection.average` expects them: their
    mean, weighted with each process' number of samples, is the gradient of the value.
    """

    def forward(self, output: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Return the loss, a scalar; the arguments are those of `NnUNetLoss`, maybe of no sample at all."""
        heads = weighted_heads(output)
        own = [head_sums(logits.float(), label_at(label, logits)[:, 0].long()) for logits, _ in heads]
        samples = own[0].new_tensor([len(label)])
        *of_all, samples_of_all = SumOverRanks.apply(torch.cat([*own, samples])).split([*map(len, own), 1])
        total = torch.zeros((), device=label.device)
        for (_, weight), sums in zip(heads, of_all, strict=True):
            total = total + weight * dice_and_cross_entropy_of(sums)
        share = samples_of_all[0] / max(1, len(label))  # DistributedSelection.average takes it back
        value: Tensor = total.detach() + share * (total - total.detach())
        return value


class SumOverRanks(torch.autograd.Function):
    """The sum of all processes' tensors; what follows is the same in each, and so is its derivative."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        """Return the sum over all processes."""
        total = own.clone()
        if idist.get_world_size() > 1:
            distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        """Pass the derivative on to this process' part."""
        return gradient


def head_sums(logits: Tensor, label: Tensor) -> Tensor:
    """Return the sums that a head's loss is made of: cross entropy, pixels, and three of the Dice for each class.

    Args:
        logits: `(samples, classes, height, width)`, samples may be 0.
        label: `(samples, height, width)`.
    """
    classes = logits.shape[1]
    probability = logits.softmax(dim=1)
    truth = functional.one_hot(label, classes).movedim(-1, 1).to(probability)
    by_class = [(probability * truth).sum((0, 2, 3)), probability.sum((0, 2, 3)), truth.sum((0, 2, 3))]
    cross_entropy = functional.cross_entropy(logits, label, reduction="sum")
    return torch.cat([cross_entropy[None], cross_entropy.new_tensor([label.numel()]), *(s[1:] for s in by_class)])


def dice_and_cross_entropy_of(sums: Tensor) -> Tensor:
    """Return cross entropy plus soft Dice of a head from `head_sums`."""
    cross_entropy, pixels = sums[0], sums[1]
    both, predicted, true = sums[2:].unflatten(0, (3, -1))  # (foreground classes,) each
    dice = (2 * both + SMOOTH) / (predicted + true + SMOOTH)
    loss: Tensor = cross_entropy / pixels + (1 - dice).mean()
    return loss


def weighted_heads(output: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, float]]:
    """Return the heads that count, finest first, with their weights."""
    heads = [output] if isinstance(output, Tensor) else list(output)
    return [(logits, weight) for logits, weight in zip(heads, head_weights(len(heads)), strict=True) if weight > 0]


def label_at(label: Tensor, logits: Tensor) -> Tensor:
    """Return the label map at a head's resolution: `(samples, 1, h, w)` float32."""
    return functional.interpolate(label.float(), size=logits.shape[2:], mode="nearest")


def head_weights(heads: int) -> list[float]:
    """Return the weight of each head, finest first: halved with every stage, 0 for the coarsest, 1 in all."""
    weights = [0.5**i for i in range(heads)]
    if heads > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


def cross_entropy_per_sample(logits: Tensor, label: Tensor) -> Tensor:
    """Return each sample's cross entropy, mean over its pixels: `(samples,)` float32.

    Args:
        logits: `(samples, classes, height, width)`.
        label: class ids `(samples, 1, height, width)`.
    """
    return functional.cross_entropy(logits.float(), label[:, 0].long(), reduction="none").mean(dim=(1, 2))
