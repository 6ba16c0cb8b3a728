from __future__ import annotations

import dataclasses

import pytest
import torch

from cyclic_committee.scripts.runtime.errors import BadInput
from cyclic_committee.scripts.training.selection import EverySample, LossDifference, RandomSubset, Rule, SmallLoss

LOSSES = torch.tensor(
    [
        [1.0, 2.0, 3.0, 4.0],  # A
        [1.0, 1.0, 5.0, 5.0],  # B
        [0.0, 0.0, 0.0, 9.0],  # C
    ]
)
RULES = [LossDifference(), SmallLoss(), EverySample(), RandomSubset()]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        # |B - C| = 1 1 5 4, |A - C| = 1 2 3 5, |A - B| = 0 1 2 1
        (LossDifference(keep=0.5), [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]),
        (LossDifference(keep=0.75), [[1, 1, 0, 1], [1, 1, 1, 0], [1, 1, 0, 1]]),
        # B + C = 1 1 5 14, A + C = 1 2 3 13, A + B = 2 3 8 9
        (SmallLoss(keep=0.5), [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]),
        (SmallLoss(keep=0.75), [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]),
        (EverySample(), [[1, 1, 1, 1]] * 3),
    ],
)
def test_each_rule_keeps_the_samples_that_its_peers_score_lowest(rule: Rule, kept: list[list[int]]) -> None:
    assert rule(LOSSES).int().tolist() == kept


def test_a_member_never_votes_on_its_own_samples() -> None:
    for rule in (LossDifference(keep=0.5), SmallLoss(keep=0.5)):
        for member in range(3):
            other = LOSSES.clone()
            other[member] = torch.tensor([9.0, 0.0, 7.0, 1.0])
            assert torch.equal(rule(LOSSES)[member], rule(other)[member])


@pytest.mark.parametrize(
    ("keep", "samples", "kept"),
    [(0.75, 8, 6), (0.75, 4, 3), (0.75, 2, 2), (0.5, 5, 3), (0.25, 2, 1), (0.01, 8, 1), (1.0, 7, 7), (0.75, 1, 1)],
)
def test_the_share_is_rounded_half_up_and_one_sample_always_stays(keep: float, samples: int, kept: int) -> None:
    losses = torch.rand(3, samples)
    for rule in (LossDifference(keep=keep), SmallLoss(keep=keep), RandomSubset(keep=keep)):
        assert rule(losses).sum(dim=1).tolist() == [kept] * 3


def test_ties_go_to_the_lower_index() -> None:
    assert LossDifference(keep=0.5)(torch.ones(3, 6)).int().tolist() == [[1, 1, 1, 0, 0, 0]] * 3


def test_with_more_than_three_members_the_score_is_the_spread_of_the_peers() -> None:
    losses = torch.tensor([[0.0, 5.0], [1.0, 1.0], [4.0, 1.0], [2.0, 1.0]])
    assert LossDifference().scores(losses).tolist() == [[3.0, 0.0], [4.0, 4.0], [2.0, 4.0], [4.0, 4.0]]


def test_for_three_members_the_score_is_equation_one() -> None:
    a, b, c = losses = torch.rand(3, 8)
    expected = torch.stack([(b - c).abs(), (a - c).abs(), (a - b).abs()])
    assert torch.allclose(LossDifference().scores(losses), expected)


@pytest.mark.parametrize(("epoch", "keep"), [(0, 1.0), (1, 0.9), (5, 0.5), (50, 0.5)])
def test_warm_up_is_a_straight_ramp_from_all_samples_to_the_share(epoch: int, keep: float) -> None:
    assert LossDifference(keep=0.5, warmup_epochs=5).at_epoch(epoch).keep == pytest.approx(keep)


def test_without_warm_up_the_share_holds_from_the_first_epoch() -> None:
    rule = SmallLoss(keep=0.75)
    assert rule.at_epoch(0) == rule


def test_a_random_subset_differs_between_members_and_repeats_with_the_seed() -> None:
    torch.manual_seed(0)
    first = RandomSubset(keep=0.5)(torch.zeros(3, 64))
    torch.manual_seed(0)
    assert torch.equal(first, RandomSubset(keep=0.5)(torch.zeros(3, 64)))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_returns_a_mask_and_leaves_the_losses_alone(rule: Rule) -> None:
    before = LOSSES.clone()
    mask = rule(LOSSES)
    assert mask.dtype == torch.bool
    assert mask.shape == LOSSES.shape
    assert torch.equal(before, LOSSES)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_cannot_be_changed_once_made(rule: Rule) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.keep = 0.1  # type: ignore[misc]


def test_a_rule_prints_as_its_settings() -> None:
    assert repr(LossDifference(keep=0.75)) == "LossDifference(keep=0.75, warmup_epochs=0)"


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan"), "0.75", True])
@pytest.mark.parametrize("kind", [LossDifference, SmallLoss, RandomSubset])
def test_a_share_out_of_range_is_refused(kind: type[Rule], keep: float) -> None:
    with pytest.raises(BadInput, match=r"keep must be in \(0, 1\], got"):
        kind(keep=keep)


def test_a_negative_warm_up_is_refused() -> None:
    with pytest.raises(BadInput, match="warmup_epochs must be 0 or more, got -1"):
        LossDifference(warmup_epochs=-1)


def test_every_sample_knows_no_share() -> None:
    with pytest.raises(BadInput, match="keep must be 1"):
        EverySample(keep=0.5)


@pytest.mark.parametrize("rule", [LossDifference(), SmallLoss()])
def test_two_members_have_no_peers_to_ask(rule: Rule) -> None:
    with pytest.raises(BadInput, match="needs 3 or more members, got 2"):
        rule(torch.rand(2, 8))
