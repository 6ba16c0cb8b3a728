from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import AttentionUnet, SegResNet, UNet
from torch import nn

from cyclic_committee.scripts.networks.committee import Committee
from cyclic_committee.scripts.networks.precision import autocast, narrow_weights
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.runtime.errors import BadInput

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ours": lambda: Committee([UNet2d(in_channels=1, out_channels=3, features=[4, 8, 8]) for _ in range(3)]),
    "UNet": lambda: UNet(2, 1, 3, channels=(4, 8), strides=(2,), norm="instance"),
    "SegResNet": lambda: SegResNet(spatial_dims=2, init_filters=8, in_channels=1, out_channels=3),
    "AttentionUnet": lambda: AttentionUnet(2, 1, 3, channels=(4, 8), strides=(2,)),
    "a linear layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_narrow_weights_change_no_bit_of_the_result(name: str) -> None:
    torch.manual_seed(0)
    network, image = NETWORKS[name]().eval(), torch.randn(2, 1, 16, 16)
    with autocast("cpu", "bfloat16"):
        before = network(image)
        after = narrow_weights(network, precision="bfloat16")(image)
    assert torch.equal(before, after)
    assert torch.bfloat16 in {weight.dtype for weight in network.parameters()}


def test_float32_leaves_weights_as_they_are() -> None:
    network = narrow_weights(NETWORKS["ours"](), precision="float32")
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_weights_that_are_loaded_later_are_cast() -> None:
    trained, network = NETWORKS["ours"](), narrow_weights(NETWORKS["ours"](), precision="bfloat16")
    network.load_state_dict(trained.state_dict())
    for loaded, weight in zip(network.parameters(), trained.parameters(), strict=True):
        assert torch.equal(loaded, weight.to(loaded.dtype))


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(BadInput, match="precision must be one of auto, float32"):
        narrow_weights(NETWORKS["ours"](), precision="half")
