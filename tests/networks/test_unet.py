from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DynUNet

from cyclic_committee.scripts.networks.unet import UNet2d

PAPER = [32, 64, 128, 256, 480, 480, 480, 480]


def test_the_default_network_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        network = UNet2d(in_channels=1, out_channels=5, features=PAPER)
    assert sum(parameter.numel() for parameter in network.parameters()) == 41_268_192


def test_it_differs_from_monais_network_only_by_convolution_and_head_biases() -> None:
    with torch.device("meta"):
        ours = UNet2d(in_channels=1, out_channels=5, features=PAPER)
        monais = DynUNet(
            2,
            1,
            5,
            kernel_size=[3] * 8,
            strides=[1] + [2] * 7,
            upsample_kernel_size=[2] * 7,
            filters=PAPER,
            norm_name=("INSTANCE", {"affine": True}),
            deep_supervision=True,
            deep_supr_num=6,
        )

    def shapes(network: torch.nn.Module) -> list[list[int]]:
        return sorted(list(parameter.shape) for parameter in network.parameters() if parameter.ndim == 4)

    assert shapes(ours) == shapes(monais)
    biases = sum(len(block.conv.bias) for block in ours.modules() if getattr(block, "conv", None) is not None
                 and block.conv.bias is not None)  # fmt: skip
    assert biases == 8640
    total = sum(parameter.numel() for parameter in monais.parameters())
    assert total + 8640 - 35 == 41_268_192


def test_in_training_every_stage_has_a_head_at_its_own_resolution() -> None:
    network = UNet2d(in_channels=2, out_channels=3, features=[4, 8, 16, 16])
    shapes = [tuple(head.shape) for head in network.train()(torch.rand(2, 2, 32, 48))]
    assert shapes == [(2, 3, 32, 48), (2, 3, 16, 24), (2, 3, 8, 12)]


def test_in_evaluation_only_the_finest_head_speaks() -> None:
    network = UNet2d(in_channels=1, out_channels=3, features=[4, 8, 16])
    image = torch.rand(2, 1, 16, 16)
    assert torch.equal(network.eval()(image), network.train()(image)[0])


def test_samples_do_not_influence_each_other() -> None:
    network = UNet2d(in_channels=1, out_channels=3, features=[4, 8, 16]).train()
    image = torch.rand(4, 1, 32, 32)
    assert torch.allclose(network(image)[0][1:3], network(image[1:3])[0], atol=1e-5)


def test_weights_start_as_he_initialised_and_biases_at_zero() -> None:
    network = UNet2d(in_channels=1, out_channels=5, features=[16, 32, 64])
    weight = network.decoders[0][0].conv.weight  # 64 channels in, 3 x 3
    assert weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (64 * 9)) ** 0.5, rel=0.05)
    assert network.decoders[0][0].conv.bias.abs().max() == 0


def test_a_size_that_cannot_be_halved_often_enough_is_refused() -> None:
    network = UNet2d(in_channels=1, out_channels=3, features=[4, 8, 16])
    with pytest.raises(ValueError, match="must be multiples of 4"):
        network(torch.rand(1, 1, 16, 18))
