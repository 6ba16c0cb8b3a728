from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cyclic_committee.scripts.autograd.forward import finest
from cyclic_committee.scripts.training.loss import NnUNetLoss, cross_entropy_per_sample, head_weights


def soft_dice_and_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """nnU-Net's loss written out: CE over all classes, soft Dice over the foreground classes of the whole batch."""
    probability = logits.softmax(dim=1)
    hot = torch.nn.functional.one_hot(label[:, 0].long(), logits.shape[1]).permute(0, 3, 1, 2)
    overlap = (probability * hot).sum(dim=(0, 2, 3))[1:]
    sizes = (probability + hot).sum(dim=(0, 2, 3))[1:]
    cross_entropy = -(hot * probability.log()).sum(dim=1).mean()
    return cross_entropy + 1 - ((2 * overlap + 1e-5) / (sizes + 1e-5)).mean()


def test_the_loss_of_one_head_is_nnunets_plus_one() -> None:
    logits, label = torch.randn(4, 5, 16, 16), torch.randint(0, 5, (4, 1, 16, 16), dtype=torch.uint8)
    assert NnUNetLoss()(logits, label).item() == pytest.approx(
        soft_dice_and_cross_entropy(logits, label).item(), rel=1e-5
    )


def test_heads_weigh_as_in_nnunet() -> None:
    assert head_weights(7) == pytest.approx([0.50794, 0.25397, 0.12698, 0.06349, 0.03175, 0.01587, 0], abs=1e-5)
    assert head_weights(1) == [1]


def test_each_head_is_judged_at_its_own_resolution() -> None:
    label = torch.randint(0, 3, (2, 1, 16, 16), dtype=torch.uint8)
    heads = [torch.randn(2, 3, 16 // 2**i, 16 // 2**i) for i in range(3)]
    fine = soft_dice_and_cross_entropy(heads[0], label)
    coarse = soft_dice_and_cross_entropy(heads[1], label[:, :, ::2, ::2])
    assert NnUNetLoss()(heads, label).item() == pytest.approx((2 * fine / 3 + coarse / 3).item(), rel=1e-5)


def test_a_sample_is_judged_by_the_mean_over_its_pixels() -> None:
    logits, label = torch.randn(3, 4, 8, 8), torch.randint(0, 4, (3, 1, 8, 8))
    expected = [torch.nn.functional.cross_entropy(logits[i : i + 1], label[i]).item() for i in range(3)]
    assert cross_entropy_per_sample(logits, label).tolist() == pytest.approx(expected, rel=1e-5)


def test_losses_are_computed_in_full_precision() -> None:
    logits = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    label = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert cross_entropy_per_sample(logits, label).dtype == torch.float32
    assert NnUNetLoss()(logits, label).dtype == torch.float32


def test_the_finest_head_comes_first() -> None:
    heads = [torch.ones(1), torch.zeros(1)]
    assert finest(heads) is heads[0]
    assert finest(heads[1]) is heads[1]
