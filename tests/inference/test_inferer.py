from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from cyclic_committee.scripts.inference.inferer import SliceInferer, gaussian, tile_starts
from cyclic_committee.scripts.networks.committee import Committee
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.runtime.errors import BadInput
from cyclic_committee.scripts.transforms.normalisation import StandardiseImage
from cyclic_committee.scripts.transforms.resampling import NormaliseThenResample, ResampleThenNormalise, resample_slices


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


def inferer(kind: type[SliceInferer] = SliceInferer, **arguments: object) -> SliceInferer:
    settings = {
        "tile_size": [16, 16],
        "spacing_mm": [2.0, 2.0],
        "normalise": [Scale()],
        "resampling": ResampleThenNormalise(),
        "labels": {"1": "disc"},
        "precision": "float32",
    }
    return kind(**{**settings, **arguments})


def volume(shape: tuple[int, int, int] = (12, 20, 11)) -> Tensor:
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return torch.from_numpy(np.where((x - 5) ** 2 + (y - 8) ** 2 < 20 + 2 * z, 1.0, -1.0)).float()[None, None]


def tiny_committee() -> Committee:
    torch.manual_seed(0)
    network = Committee([UNet2d(in_channels=1, out_channels=3, features=[4, 8, 8]) for _ in range(3)]).eval()
    network.iterations_trained += 1
    return network


def in_tiles(image: Tensor, network: nn.Module, tile: int, starts: tuple[list[int], list[int]]) -> Tensor:
    pulse = np.zeros((tile, tile))
    pulse[tile // 2, tile // 2] = 1
    weight = torch.from_numpy(ndimage.gaussian_filter(pulse, tile / 8, mode="constant"))
    total, weights = torch.zeros(3, *image.shape[2:]), torch.zeros(image.shape[2:])
    for x, y in itertools.product(*starts):
        place = (..., slice(x, x + tile), slice(y, y + tile))
        total[place] += network(image[place])[0] * weight
        weights[place] += weight
    return total / weights


@torch.no_grad()
def plainly(
    image: Tensor,
    network: nn.Module,
    *,
    tile: int,
    starts: tuple[list[int], list[int]],
    size: Sequence[int],
    flips: Sequence[Sequence[int]] = ((),),
) -> Tensor:
    """One slice after another, all of them, `size` pixels in the network's spacing, tiles at `starts`."""
    label = torch.zeros(image.shape[1:], dtype=torch.uint8)
    for z in range(image.shape[3]):
        prepared = resample_slices(image[..., z].float(), size, order=3)[None]
        before = [max(0, tile - n) // 2 for n in size]
        padded = torch.zeros(1, 1, *(max(tile, n) for n in size))
        inner = (..., slice(before[0], before[0] + size[0]), slice(before[1], before[1] + size[1]))
        padded[inner] = prepared
        turned = [in_tiles(padded.flip(list(f)), network, tile, starts).flip([a - 1 for a in f]) for f in flips]
        probability = torch.stack(turned).mean(dim=0)[inner]
        label[..., z] = resample_slices(probability, image.shape[1:3], order=1).argmax(dim=0)
    return label


def noise(*shape: int) -> Tensor:
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape), 1.0)
    return torch.from_numpy(4 * smooth).float()


ALL_FLIPS = [[], [2], [3], [2, 3]]


@pytest.mark.parametrize(
    ("shape", "pixel_mm", "size", "starts", "mirror"),
    [
        pytest.param((16, 16, 5), (2, 2), (16, 16), ([0], [0]), False, id="a tile"),
        pytest.param((16, 16, 1), (2, 2), (16, 16), ([0], [0]), False, id="one slice"),
        pytest.param((11, 14, 19), (2, 2), (11, 14), ([0], [0]), False, id="smaller than the tile, more than a batch"),
        pytest.param((20, 26, 4), (1, 1), (10, 13), ([0], [0]), False, id="finer pixels"),
        pytest.param((13, 9, 4), (3, 4), (20, 18), ([0, 4], [0, 2]), False, id="coarser pixels"),
        pytest.param((17, 40, 3), (2, 2), (17, 40), ([0, 1], [0, 8, 16, 24]), False, id="tiles"),
        pytest.param((12, 38, 3), (2, 2), (12, 38), ([0], [0, 7, 15, 22]), False, id="a margin and tiles"),
        pytest.param((16, 16, 4), (2, 2), (16, 16), ([0], [0]), True, id="mirrored"),
        pytest.param((30, 13, 4), (1.5, 3), (22, 20), ([0, 6], [0, 4]), True, id="mirrored tiles of other pixels"),
    ],
)
def test_the_label_map_is_that_of_the_plain_way(
    shape: tuple[int, ...],
    pixel_mm: tuple[float, float],
    size: tuple[int, int],
    starts: tuple[list[int], list[int]],
    mirror: bool,
) -> None:
    network, image = tiny_committee(), noise(1, *shape)
    affine = torch.diag(torch.tensor([*pixel_mm, 5.0, 1.0]))
    label = inferer(labels={"1": "a", "2": "b"}, mirror=mirror)(MetaTensor(image[None], affine=affine), network)
    expected = plainly(image, network, tile=16, starts=starts, size=size, flips=ALL_FLIPS if mirror else [[]])
    assert len(expected.unique()) == 3
    assert (label[0, 0] != expected).float().mean() < 2e-3  # ties to rounding


@pytest.mark.parametrize(
    ("size", "tile", "starts"),
    [
        (512, 512, [0]),
        (513, 512, [0, 1]),
        (564, 512, [0, 52]),
        (768, 512, [0, 256]),
        (769, 512, [0, 128, 257]),
        (900, 512, [0, 194, 388]),
        (110, 64, [0, 23, 46]),
    ],
)
def test_tiles_are_as_few_and_lie_where_nnunets_do(size: int, tile: int, starts: list[int]) -> None:
    assert tile_starts(size, tile, 0.5) == starts


def test_tiles_lie_and_weigh_as_nnunet_v2s() -> None:
    theirs = pytest.importorskip("nnunetv2.inference.sliding_window_prediction")
    for size, tile in itertools.product(range(40, 200, 7), (16, 27, 40)):
        assert [tile_starts(size, tile, 0.5)] == theirs.compute_steps_for_sliding_window((size,), (tile,), 0.5)
    weights = theirs.compute_gaussian((48, 31), dtype=torch.float32, device=torch.device("cpu"))
    assert torch.allclose(gaussian(48)[:, None] * gaussian(31), weights, rtol=1e-5, atol=0)


class Count(nn.Module):
    """BackwardMode on what it sees, and remembers how much that was."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.batches: list[int] = []  # several threads add to it

    @property
    def seen(self) -> int:
        return sum(self.batches)

    def forward(self, image: Tensor) -> Tensor:
        self.batches.append(len(image))
        return self.network(image)


@pytest.mark.parametrize("size", [(16, 16), (12, 14), (20, 24)])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_slices_of_air_are_computed_once_and_labelled_all_the_same(size: tuple[int, int], batch_size: int) -> None:
    image = noise(1, *size, 41)
    image[..., [0, 1, 2, 17, 18, 39, 40]] = -2.5
    image[..., [3, 30]] = 1.5
    network = Count(tiny_committee())
    label = inferer(labels={"1": "a", "2": "b"}, batch_size=batch_size)(image[None], network)
    starts = tuple([0, n - 16] if n > 16 else [0] for n in size)
    expected = plainly(image, network.network, tile=16, starts=starts, size=size)  # type: ignore[arg-type]
    assert network.seen == (41 - 6 - 1) * len(starts[0]) * len(starts[1])
    assert (label[0, 0] != expected).float().mean() < 2e-3
    assert torch.equal(label[..., 0], label[..., 40])


def test_channels_that_are_constant_with_other_values_are_other_slices() -> None:
    class Second(Threshold):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image[:, 1:])

    image = torch.ones(1, 2, 16, 16, 4)
    image[:, 1, ..., 1] = image[:, 1, ..., 3] = -1
    network = Count(Second())
    label = inferer(normalise=[Scale(), Scale()])(image, network)
    assert label[0, 0, 0, 0].tolist() == [1, 0, 1, 0]
    assert network.seen == 2


@pytest.mark.parametrize("kind", [torch.int16, torch.uint8, torch.int32, torch.float64])
def test_an_image_may_come_in_any_number_format(kind: torch.dtype) -> None:
    image = (10 * noise(1, 1, 20, 24, 5) + 30).round().clamp(0, 255)
    settings = {"labels": {"1": "a", "2": "b"}, "normalise": [Scale(shift=-30)]}
    labels = [inferer(**settings)(one, tiny_committee()) for one in (image, image.to(kind))]
    assert torch.equal(*labels)


def test_volumes_of_a_batch_are_labelled_one_by_one() -> None:
    images = noise(3, 1, 20, 24, 5)
    images[1, ..., :4] = 0  # cropped by itself
    settings = {"labels": {"1": "a", "2": "b"}}
    together = inferer(**settings)(images, tiny_committee())
    assert torch.equal(together, torch.cat([inferer(**settings)(one[None], tiny_committee()) for one in images]))


def test_a_metatensor_gives_a_metatensor_and_a_tensor_a_tensor() -> None:
    image = MetaTensor(volume(), affine=torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0])))
    label, plain = inferer()(image, Threshold()), inferer()(volume(), Threshold())
    assert isinstance(label, MetaTensor)
    assert torch.equal(label.affine, image.affine)
    assert not isinstance(plain, MetaTensor)
    assert torch.equal(label.as_tensor(), plain)


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
    class Five(Threshold):
        def forward(self, image: Tensor) -> Tensor:
            return torch.cat([image, -image, image, image, image], dim=1)

    def largest_allocation(slices: int) -> int:
        image = noise(1, 1, 32, 32, slices)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            inferer(tile_size=[32, 32], batch_size=4, labels={1: "a", 2: "b", 3: "c", 4: "d"})(image, Five())
        allocated = [event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0]
        assert image.numel() in allocated  # the label map, uint8
        return max(size for size in allocated if size != image.numel())

    assert largest_allocation(96) == largest_allocation(48)


@pytest.mark.parametrize("size", [[5, 6], [11, 9]])
def test_of_logits_too_the_largest_gives_the_label(size: list[int]) -> None:
    labelling, logits = inferer(labels={"3": "a", "7": "b"}), -1 - noise(3, 5, 6).abs()  # below 0, all of them
    largest = labelling.to_probabilities(logits, size).argmax(dim=0, keepdim=True)
    assert torch.equal(labelling.to_labels(logits, size), torch.tensor([0, 3, 7], dtype=torch.uint8)[largest])
    assert len(largest.unique()) == 3


def test_the_likeliest_class_of_the_probabilities_is_the_label() -> None:
    network, image = tiny_committee(), noise(1, 30, 13, 5)
    image[:, :, :, 3] = image[:, :, :, 1] = -1000.0  # constant slices, which the network sees once
    framed = functional.pad(image[None], (1, 2, 0, 3, 2, 0))  # zeros around, where nothing is looked at
    volume = MetaTensor(framed, affine=torch.diag(torch.tensor([1.5, 3, 5, 1.0])))
    labelling = inferer(labels={"3": "a", "7": "b"})
    probability, label = labelling.probabilities(volume, network), labelling(volume, network)
    assert probability.dtype == torch.float32
    assert probability.shape == (1, 3, *volume.shape[2:])
    assert torch.equal(torch.tensor([0, 3, 7])[torch.as_tensor(probability).argmax(dim=1, keepdim=True)], label.long())
    assert len(label.unique()) == 3
    assert torch.allclose(torch.as_tensor(probability).sum(dim=1), torch.ones(1, *volume.shape[2:]), atol=1e-5)
    assert (probability[0, 0, :2] == 1).all()  # beyond the image: background
    assert torch.equal(probability.affine, volume.affine)
