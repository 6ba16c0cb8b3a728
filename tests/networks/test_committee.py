from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SegResNet, UNet
from torch import nn

from cyclic_committee.scripts.networks.committee import Committee, require_training
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.runtime.errors import BadInput


def members(count: int = 3) -> list[nn.Module]:
    return [UNet2d(in_channels=1, out_channels=3, features=[4, 8, 8]) for _ in range(count)]


def test_the_committee_says_the_mean_of_the_softmaxes() -> None:
    committee = Committee(members()).eval()
    image = torch.rand(2, 1, 16, 16)
    expected = torch.stack([member(image).softmax(dim=1) for member in committee.members]).mean(dim=0)
    assert torch.allclose(committee(image), expected)


@pytest.mark.parametrize("ensemble_members", [[0], [2], [0, 2]])
def test_only_the_ensemble_members_speak(ensemble_members: list[int]) -> None:
    committee = Committee(members(), ensemble_members=ensemble_members).eval()
    image = torch.rand(1, 1, 16, 16)
    expected = sum(committee.members[k](image).softmax(dim=1) for k in ensemble_members) / len(ensemble_members)
    assert torch.allclose(committee(image), expected)


def test_members_may_differ_in_architecture() -> None:
    mixed = [
        UNet2d(in_channels=1, out_channels=3, features=[4, 8, 8]),
        UNet(2, 1, 3, channels=[4, 8], strides=[2]),
        SegResNet(2, init_filters=8, in_channels=1, out_channels=3),
        UNet2d(in_channels=1, out_channels=3, features=[4, 4]),
    ]
    probability = Committee(mixed).eval()(torch.rand(2, 1, 16, 16))
    assert torch.allclose(probability.sum(dim=1), torch.ones(2, 16, 16), atol=1e-5)


def test_it_can_be_scripted() -> None:
    committee = Committee(members()).eval()
    image = torch.rand(2, 1, 16, 16)
    assert torch.allclose(torch.jit.script(committee)(image), committee(image), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("members.0.heads.1.conv.weight"), r"lacks members\.0\.heads\.1\.conv\.weight \(1 of"),
        (lambda state: state.update(more=torch.ones(1)), r"has the unknown more \(1 of"),
        (lambda state: state.update({"members.0.heads.1.conv.weight": torch.ones(2, 2)}), "has another shape of"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_that_does_not_fit_is_refused_even_when_asked_loosely(change, message: str, strict: bool) -> None:
    state = dict(Committee(members()).state_dict())
    change(state)
    with pytest.raises(BadInput, match=message):
        Committee(members()).load_state_dict(state, strict=strict)


def test_random_weights_are_not_taken_for_trained_ones() -> None:
    committee = Committee(members())
    with pytest.raises(BadInput, match="never loaded or trained"):
        require_training(committee)
    committee.iterations_trained += 1
    require_training(committee)
    other = Committee(members())
    other.load_state_dict(committee.state_dict())
    require_training(other)


@pytest.mark.parametrize("ensemble_members", [[], [3], [-1]])
def test_ensemble_members_must_be_members(ensemble_members: list[int]) -> None:
    with pytest.raises(BadInput, match="ensemble_members must be indices of the 3 members"):
        Committee(members(), ensemble_members=ensemble_members)


def test_a_committee_of_nobody_is_refused() -> None:
    with pytest.raises(BadInput, match="members is empty"):
        Committee([])


def test_the_same_network_twice_is_refused() -> None:
    twice = members(1) * 3
    with pytest.raises(BadInput, match="same network twice"):
        Committee(twice)
