"""What does a member minimise, and by which loss is a sample judged?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn import functional


class NnUNetLoss(nn.Module):
    """nnU-Net's loss: cross entropy plus soft Dice over the foreground classes, at every head's own resolution.

    The Dice sums run over the whole batch. The weight of a head halves with every stage and is 0 for the coarsest;
    the weights add up to 1. A network with a single head has the weight 1. It equals nnU-Net's loss + 1.
    Source: nnU-Net v1, `DC_and_CE_loss` and `MultipleOutputLoss2`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice_and_cross_entropy = DiceCELoss(
            include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
        )

    def forward(self, output: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            output: logits `(samples, classes, h, w)`, or a list of them, finest first.
            label: class ids `(samples, 1, height, width)`.
        """
        heads = [output] if isinstance(output, Tensor) else list(output)
        total = torch.zeros((), device=label.device)
        for logits, weight in zip(heads, head_weights(len(heads)), strict=True):
            if weight > 0:
                at_head = functional.interpolate(label.float(), size=logits.shape[2:], mode="nearest")
                total = total + weight * self.dice_and_cross_entropy(logits.float(), at_head)
        return total


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


def finest(output: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the full-resolution logits of a network's output."""
    return output if isinstance(output, Tensor) else output[0]
