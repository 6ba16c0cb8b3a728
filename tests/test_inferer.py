from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from cyclic_committee.scripts.committee import Committee
from cyclic_committee.scripts.errors import BadInput
from cyclic_committee.scripts.inferer import SliceInferer
from cyclic_committee.scripts.network import UNet2d
from cyclic_committee.scripts.normalisation import StandardiseImage
from cyclic_committee.scripts.resampling import NormaliseThenResample, ResampleThenNormalise


class Threshold(nn.Module):
    """Class 1 where the image is above 0."""

    largest_batch = 0

    def forward(self, image: Tensor) -> Tensor:
        self.largest_batch = max(self.largest_batch, len(image))
        above = (image > 0).float()
        return torch.cat([1 - above, above], dim=1)


@dataclass(frozen=True)
class Scale:
    """A normalisation that the networks above don't notice, unless told to."""

    shift: float = 0.0

    def fit(self, channel: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda image: image + self.shift


def inferer(**arguments: object) -> SliceInferer:
    settings = {
        "tile_size": [16, 16],
        "spacing_mm": [2.0, 2.0],
        "normalise": [Scale()],
        "resampling": ResampleThenNormalise(),
        "labels": {"1": "disc"},
        "precision": "float32",
    }
    return SliceInferer(**{**settings, **arguments})


def volume(shape: tuple[int, int, int] = (12, 20, 11)) -> Tensor:
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return torch.from_numpy(np.where((x - 5) ** 2 + (y - 8) ** 2 < 20 + 2 * z, 1.0, -1.0)).float()[None, None]


@pytest.mark.parametrize("tile", [[16, 16], [32, 32], [8, 8], [12, 20]])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_label_map_does_not_depend_on_tiles_or_batches(tile: list[int], batch_size: int) -> None:
    label = inferer(tile_size=tile, batch_size=batch_size)(volume(), Threshold())
    assert label.dtype == torch.uint8
    assert torch.equal(label, (volume() > 0).to(torch.uint8))


def test_slices_go_through_the_network_batch_by_batch() -> None:
    network = Threshold()
    inferer(batch_size=3, tile_size=[12, 20])(volume(), network)
    assert network.largest_batch == 3


def test_a_volume_at_another_spacing_is_resampled_there_and_back() -> None:
    sizes: list[tuple[int, ...]] = []

    class Watch(Threshold):
        def forward(self, image: Tensor) -> Tensor:
            sizes.append(tuple(image.shape[2:]))
            return super().forward(image)

    finer = MetaTensor(volume((24, 40, 3)), affine=torch.diag(torch.tensor([1.0, 1.0, 5.0, 1.0])))
    label = inferer(tile_size=[12, 20])(finer, Watch())
    assert set(sizes) == {(12, 20)}
    assert label.shape == finer.shape
    disagreement = (label != (finer.as_tensor() > 0)).float().mean().item()
    assert disagreement < 0.03


def test_the_spacing_is_the_length_of_the_affines_columns() -> None:
    turned = torch.tensor([[0.0, -1.0, 0, 5], [2.0, 0, 0, 7], [0, 0, 3, 1], [0, 0, 0, 1]])
    image = MetaTensor(volume((12, 20, 2)), affine=turned)
    sizes: list[tuple[int, ...]] = []

    class Watch(Threshold):
        def forward(self, image: Tensor) -> Tensor:
            sizes.append(tuple(image.shape[2:]))
            return super().forward(image)

    inferer(tile_size=[12, 10])(image, Watch())
    assert sizes == [(12, 10)]  # 12 x 2 mm and 20 x 1 mm, at 2 mm


def test_mirroring_averages_over_four_images() -> None:
    torch.manual_seed(0)
    network = Committee([UNet2d(in_channels=1, out_channels=3, features=[4, 8, 8])]).eval()
    network.iterations_trained += 1
    image = torch.randn(1, 1, 16, 16, 2)
    slices = image[0].permute(3, 0, 1, 2)
    with torch.no_grad():
        mean = sum(network(slices.flip(flip)).flip(flip) for flip in ([], [2], [3], [2, 3])) / 4
    expected = mean.argmax(dim=1).permute(1, 2, 0)
    labelled = inferer(mirror=True, labels={"1": "a", "2": "b"})(image, network)
    assert torch.equal(labelled[0, 0].long(), expected)


def test_classes_are_written_as_the_ids_of_the_labels() -> None:
    label = inferer(labels={"7": "disc"})(volume(), Threshold())
    assert torch.equal(label, 7 * (volume() > 0).to(torch.uint8))


def test_the_network_sees_normalised_slices() -> None:
    assert (inferer(normalise=[Scale(shift=-5)])(volume(), Threshold()) == 0).all()


@pytest.mark.parametrize("order", [ResampleThenNormalise(), NormaliseThenResample()])
def test_beyond_the_zeros_around_an_image_there_is_background(order: object) -> None:
    image = torch.zeros(1, 1, 20, 20, 9)
    image[..., 4:12, 5:17, 2:8] = 3.0
    image[..., 6:9, 8:12, 4:6] = -3.0
    shifted = [Scale(shift=10)]  # everything that the network sees is foreground
    label = inferer(normalise=shifted, resampling=order)(image, Threshold())
    expected = torch.zeros_like(label)
    expected[..., 4:12, 5:17, 2:8] = 1
    assert torch.equal(label, expected)


def test_another_number_of_channels_is_refused_by_name() -> None:
    image = MetaTensor(torch.randn(1, 2, 16, 16, 2), meta={"filename_or_obj": "two.nii.gz"})
    with pytest.raises(BadInput, match=r"two\.nii\.gz: has 2 channels, but the configuration normalises 1"):
        inferer()(image, Threshold())


def test_each_image_can_be_normalised_by_itself() -> None:
    louder = 1000 * volume() + 5000
    assert torch.equal(inferer(normalise=[StandardiseImage()])(louder, Threshold()) > 0, volume() > 0)


def test_random_weights_do_not_infer() -> None:
    network = Committee([UNet2d(in_channels=1, out_channels=2, features=[4, 8, 8])])
    with pytest.raises(BadInput, match="never loaded or trained"):
        inferer()(volume(), network)


def test_memory_beyond_the_volume_does_not_grow_with_the_number_of_slices() -> None:
    class Record(Threshold):
        """Five classes; the largest tensor alive is one batch's."""

        def forward(self, image: Tensor) -> Tensor:
            return torch.cat([image, image, image, image, image], dim=1)

    def largest_allocation(slices: int) -> int:
        image = torch.zeros(1, 1, 32, 32, slices)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            inferer(tile_size=[32, 32], batch_size=4)(image, Record())
        allocated = [event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0]
        return max(size for size in allocated if size != image.numel())  # uint8 label map: the volume itself

    assert largest_allocation(64) == largest_allocation(16)
