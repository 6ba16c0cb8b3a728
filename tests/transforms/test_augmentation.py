from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import BUNDLE, CONFIGS
from monai.bundle import ConfigParser
from monai.data import get_track_meta, set_track_meta
from monai.transforms import AdjustContrast, Compose, RandScaleIntensity, RandScaleIntensityd
from scipy import ndimage, stats
from torch import Tensor
from torch.nn.functional import interpolate

from cyclic_committee.scripts.runtime.errors import BadInput
from cyclic_committee.scripts.transforms.augmentation import (
    OneStreamCompose,
    RandEachChanneld,
    RandGamma,
    RandRotateScaleCropd,
    draw_factor,
)
from cyclic_committee.scripts.transforms.warping import (
    resample_image,
    resample_label,
    sampling_points,
    scale_image,
    spline_coefficients,
)

CONFIG = CONFIGS / "train.yaml"
SPATIAL, NOISE, BLUR, BRIGHTNESS, CONTRAST, LOW_RESOLUTION, GAMMA_INVERTED, GAMMA, MIRROR = range(9)
DRAWS = 3000
Sample = dict[str, Tensor]


@pytest.fixture(autouse=True)
def plain_tensors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in training; and targets of the configuration are found."""
    monkeypatch.syspath_prepend(str(BUNDLE))
    tracked = get_track_meta()
    set_track_meta(False)
    yield
    set_track_meta(tracked)


def configured(patch_size: tuple[int, int] = (32, 32)) -> list[Any]:
    read = yaml.safe_load(CONFIG.read_text())
    config = {**{key: read[key] for key in ("augmentation", "rotation_degrees")}, "patch_size": list(patch_size)}
    return ConfigParser(config).get_parsed_content("augmentation")


def noisy(channels: int, *size: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(channels, *size)).astype(np.float32))


def draws(number: int, image: Tensor, count: int = DRAWS) -> Iterator[Tensor]:
    """Yield what one of the configured transforms makes of an image, for as many seeds."""
    compose = OneStreamCompose([configured()[number]])
    sample = {"image": image, "label": torch.zeros(1, *image.shape[1:], dtype=torch.uint8)}
    for seed in range(count):
        compose.set_random_state(seed=seed)
        yield compose(dict(sample))["image"]


def acted(number: int, image: Tensor, count: int = DRAWS) -> list[Tensor]:
    return [out for out in draws(number, image, count) if not torch.equal(out, image)]


def assert_frequency(hits: int, probability: float, count: int = DRAWS) -> None:
    assert stats.binomtest(hits, count, probability).pvalue > 1e-3, f"{hits} of {count} at {probability}"


def assert_uniform(values: Any, low: float, high: float) -> None:
    gap = 10 * (high - low) / len(values)  # between a bound and the outermost value: e^-10 of the draws leave that
    assert low - 1e-3 <= min(values) < low + gap
    assert high - gap < max(values) <= high + 1e-3
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def assert_half_below_one(values: Any, low: float, high: float) -> None:
    below = [value for value in values if value < 1]
    assert_frequency(len(below), 0.5, len(values))
    assert_uniform(below, low, 1)
    assert_uniform([value for value in values if value >= 1], 1, high)


def test_the_transforms_stand_in_nnu_nets_order() -> None:
    names = [type(getattr(transform, "transform", transform)).__name__ for transform in configured()]
    assert names == [
        "RandRotateScaleCropd",
        "RandNoised",
        "RandGaussianBlur",
        "RandScaleIntensityd",
        "RandContrast",
        "RandLowResolution",
        "RandGamma",
        "RandGamma",
        "RandMirrord",
    ]


@pytest.mark.parametrize(
    ("number", "one", "both"),
    [
        (NOISE, 0.1, 0.1),
        (BLUR, 0.1, 0.05),  # 0.2 of the samples, 0.5 of their channels
        (BRIGHTNESS, 0.15, 0.15),
        (CONTRAST, 0.15, 0.15),
        (LOW_RESOLUTION, 0.125, 0.0625),  # 0.25 and 0.5
        (GAMMA_INVERTED, 0.1, 0.1),
        (GAMMA, 0.3, 0.3),
    ],
)
def test_intensities_change_as_often_as_nnu_net_has_it(number: int, one: float, both: float) -> None:
    image = noisy(2, 32, 32)
    changed = np.array(
        [[not torch.equal(*pair) for pair in zip(out, image, strict=True)] for out in draws(number, image)]
    )
    for channel in (0, 1):
        assert_frequency(int(changed[:, channel].sum()), one)
    assert_frequency(int(changed.all(1).sum()), both)


def test_noise_has_one_deviation_up_to_a_tenth() -> None:
    image = noisy(2, 64, 64)
    noise = [out - image for out in acted(NOISE, image)]
    assert_uniform([float(field.std()) for field in noise], 0, 0.1)
    for field in noise:
        assert abs(field.mean()) < 5 * field.std() / 64
        assert torch.allclose(field[0].std(), field[1].std(), rtol=0.1)


def test_blur_is_a_gaussian_of_one_width_for_both_axes() -> None:
    image = torch.zeros(2, 17, 17)
    image[:, 8, 8] = 1
    widths = []
    for out in acted(BLUR, image):
        for channel in out:
            if channel[8, 8] < 1:
                beside = torch.stack((channel[7, 8], channel[9, 8], channel[8, 7], channel[8, 9]))
                assert torch.allclose(beside, beside[0])
                widths.append(1 / math.sqrt(2 * math.log(channel[8, 8] / beside[0])))
    assert_uniform(widths, 0.5, 1)


def test_blur_leaves_the_border_as_bright_as_it_was() -> None:
    for out in draws(BLUR, torch.full((1, 16, 16), -3.0), 300):
        assert torch.allclose(out, torch.tensor(-3.0))


def test_brightness_is_one_factor_for_each_channel() -> None:
    image = noisy(2, 16, 16)
    factors = []
    for out in acted(BRIGHTNESS, image):
        factors += [float(factor) for factor in (out / image).flatten(1).median(1).values]
        assert torch.allclose(out, image * torch.tensor(factors[-2:]).reshape(2, 1, 1), rtol=1e-5)
    assert_uniform(factors, 0.75, 1.25)
    assert_different_channels(factors)


def test_contrast_turns_about_the_mean_and_keeps_the_range() -> None:
    image = noisy(2, 16, 16)
    factors = []
    for out in acted(CONTRAST, image):
        for before, after in zip(image, out, strict=True):
            near = (before - before.mean()).abs() < 1  # far from being clipped
            factors.append(float(((after - before.mean()) / (before - before.mean()))[near].median()))
            expected = (before.mean() + factors[-1] * (before - before.mean())).clamp(before.min(), before.max())
            assert torch.allclose(after, expected, atol=1e-4)
    assert_uniform(factors, 0.75, 1.25)
    assert_different_channels(factors)


def test_low_resolution_zooms_both_axes_alike_from_a_half() -> None:
    size = 67  # a prime: no pixel lies halfway between two
    image = noisy(1, size, size)
    candidates = {}
    for small in range(round(size / 2), size + 1):
        nearest = np.floor((np.arange(small) + 0.5) * size / small).astype(int)
        low = image[:, nearest][:, :, nearest]
        candidates[small] = interpolate(low[None].double(), (size, size), mode="bicubic", align_corners=False)[
            0
        ].float()
    found = []
    for out in acted(LOW_RESOLUTION, image):
        found.append([small for small, candidate in candidates.items() if torch.allclose(out, candidate, atol=1e-5)])
        assert len(found[-1]) == 1
    # sizes are whole numbers: spread over the zooms that lead to them, they are uniform again
    spread = np.random.default_rng(0).uniform(-0.5, 0.5, len(found))
    assert_uniform(np.clip((np.ravel(found) + spread) / size, 0.5, 1), 0.5, 1)


@pytest.mark.parametrize(("number", "sign"), [(GAMMA, 1), (GAMMA_INVERTED, -1)])
def test_gamma_keeps_mean_and_deviation_half_below_and_half_above_one(number: int, sign: int) -> None:
    image = noisy(2, 16, 16).clamp(-2, 2)
    image[:, 0, :3] = torch.tensor([-2.0, 0.0, 2.0])
    exponents = []
    for out in acted(number, image):
        for before, after in zip(image, out, strict=True):
            assert torch.allclose(after.mean(), before.mean(), atol=1e-4)
            assert torch.allclose(after.std(), before.std(), rtol=1e-4)
            dark, middle, bright = sorted((sign * after[0, :3]).tolist())  # were 0, 1/2 and 1 of the range
            exponents.append(math.log((middle - dark) / (bright - dark), 0.5))
    assert_half_below_one(exponents, 0.7, 1.5)
    assert_different_channels(exponents)


def assert_different_channels(values: list[float]) -> None:
    first, second = values[::2], values[1::2]
    assert not np.allclose(first, second, atol=1e-3)
    assert stats.pearsonr(first, second).pvalue > 1e-3


def test_each_axis_is_mirrored_in_half_of_the_samples_image_and_label_together() -> None:
    compose = OneStreamCompose([configured()[MIRROR]])
    image, label = noisy(1, 8, 9), (noisy(1, 8, 9) > 0).to(torch.uint8)
    mirrored = {(): 0, (1,): 0, (2,): 0, (1, 2): 0}
    for seed in range(DRAWS):
        compose.set_random_state(seed=seed)
        out = compose({"image": image, "label": label})
        [axes] = [axes for axes in mirrored if torch.equal(out["image"], image.flip(axes))]
        assert torch.equal(out["label"], label.flip(axes))
        mirrored[axes] += 1
    for count in mirrored.values():
        assert_frequency(count, 0.25)


def test_rotation_and_scaling_act_as_often_and_as_far_as_nnu_net_has_it() -> None:
    x, y = torch.meshgrid(torch.arange(60) - 29.5, torch.arange(60) - 29.5, indexing="ij")
    degrees, scales, both = [], [], 0
    for out in draws(SPATIAL, torch.stack((x, y))):  # it shows where its pixels come from
        middle = out[:, 14:18, 14:18].double()
        (xx, yx), (xy, yy) = (
            ((middle[:, -1] - middle[:, 0]) / 3).mean(1),
            ((middle[:, :, -1] - middle[:, :, 0]) / 3).mean(1),
        )
        assert middle.mean((1, 2)).abs().max() < 1e-4  # about the centre
        assert abs(xx - yy) < 1e-4
        assert abs(xy + yx) < 1e-4
        scale, angle = math.hypot(xx, yx), math.degrees(math.atan2(yx, xx))
        turned, scaled = abs(angle) > 1e-2, abs(scale - 1) > 1e-4
        degrees += [angle] * turned
        scales += [scale] * scaled
        both += turned and scaled
    assert_frequency(len(degrees), 0.2)
    assert_frequency(len(scales), 0.2)
    assert_frequency(both, 0.04)
    assert_uniform(degrees, -180, 180)
    assert_half_below_one(scales, 0.7, 1.4)


def test_without_rotation_and_scaling_pixels_are_copied() -> None:
    crop = RandRotateScaleCropd(size=(16, 20), rotate_prob=0, scale_prob=0)
    image, label = noisy(2, 19, 26), torch.randint(5, (1, 19, 26), dtype=torch.uint8)
    out = crop({"image": image, "label": label, "case": "a"})
    assert torch.equal(out["image"], image[:, 1:17, 3:23])
    assert torch.equal(out["label"], label[:, 1:17, 3:23])
    assert out["case"] == "a"


PLACES = pytest.mark.parametrize(
    ("degrees", "scale"), [(33, 1.1), (0, 0.7), (0, 1.4), (90, 1), (180, 1), (-100, 0.83), (45, 1.4)]
)


def places(shape: tuple[int, int], degrees: float, scale: float) -> tuple[tuple[Tensor, Tensor], np.ndarray]:
    """Return sampling points as we and as scipy count them."""
    points = sampling_points((141, 131), degrees=degrees, scale=scale)
    return points, np.stack([p.double().numpy() + (n - 1) / 2 for p, n in zip(points, shape, strict=True)])


def off_the_border(coordinates: np.ndarray) -> np.ndarray:
    """Return where rounding can't put a point on the other side of the border, beyond which all is 0."""
    return np.all(
        [(abs(c) > 1e-3) & (abs(c - (n - 1)) > 1e-3) for c, n in zip(coordinates, (147, 141), strict=True)], 0
    )


@PLACES
def test_images_are_resampled_by_scipys_cubic_spline(degrees: float, scale: float) -> None:
    image = noisy(2, 147, 141)
    points, coordinates = places((147, 141), degrees, scale)
    for channel, resampled in zip(image, resample_image(image, *points), strict=True):
        expected = ndimage.map_coordinates(channel.double().numpy(), coordinates, order=3, mode="constant")
        difference = np.abs(resampled.numpy() - expected)[off_the_border(coordinates)]  # of noise of sd 1
        assert difference.max() < 5e-4  # places are rounded to float32
        assert difference.mean() < 1e-5


@pytest.mark.parametrize("scale", [0.7, 0.9137, 1.0, 1.3, 1.4])
def test_scaling_alone_is_the_same_spline(scale: float) -> None:
    image = noisy(2, 147, 141)
    points = sampling_points((131, 141), degrees=0, scale=scale)
    coordinates = np.stack([p.double().numpy() + (n - 1) / 2 for p, n in zip(points, (147, 141), strict=True)])
    for channel, scaled in zip(image, scale_image(image, (131, 141), scale=scale), strict=True):
        expected = ndimage.map_coordinates(channel.double().numpy(), coordinates, order=3, mode="constant")
        np.testing.assert_allclose(
            np.where(off_the_border(coordinates), scaled.numpy(), 0),
            np.where(off_the_border(coordinates), expected, 0),
            atol=2e-4,  # scipy's places were rounded to float32
        )


def test_noise_is_gaussian_and_new_in_each_sample() -> None:
    image = torch.zeros(1, 64, 64)
    fields = [out.flatten() / out.std() for out in acted(NOISE, image, 400)]
    assert stats.kstest(torch.cat(fields).numpy(), stats.norm.cdf).pvalue > 1e-3
    likeness = np.corrcoef(torch.stack(fields).numpy())
    np.fill_diagonal(likeness, 0)
    assert np.abs(likeness).max() < 6 / 64  # sd 1/64


@pytest.mark.parametrize("number", [NOISE, BLUR, BRIGHTNESS, CONTRAST, LOW_RESOLUTION, GAMMA_INVERTED, GAMMA, MIRROR])
def test_what_comes_in_stays_as_it_was(number: int) -> None:
    image = noisy(2, 32, 32)
    before = image.clone()
    acted(number, image, 60)
    assert torch.equal(image, before)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("retain", [False, True])
def test_gamma_is_monais(invert: bool, retain: bool) -> None:
    image = noisy(1, 40, 40).clamp(-1, 2)
    ours = RandGamma(prob=1, gamma=(1.3, 1.3), invert_image=invert, retain_stats=retain)
    theirs = AdjustContrast(1.3, invert_image=invert, retain_stats=retain)
    assert torch.allclose(ours(image), theirs(image), atol=1e-5)
    level = torch.full((1, 8, 8), 3.0)
    assert torch.allclose(ours(level), level)


@PLACES
def test_labels_take_the_class_whose_linear_mask_is_at_least_a_half(degrees: float, scale: float) -> None:
    label = ndimage.zoom(np.random.default_rng(0).choice([0, 1, 3, 255], (8, 7)), (147 / 8, 141 / 7), order=0)
    label = label.astype(np.uint8)
    points, coordinates = places((147, 141), degrees, scale)
    expected = np.zeros((141, 131), np.uint8)
    sure = off_the_border(coordinates)
    for value in (0, 1, 3, 255):
        mask = ndimage.map_coordinates((label == value).astype(float), coordinates, order=1, mode="constant")
        expected[mask >= 0.5] = value
        sure &= np.abs(mask - 0.5) > 1e-4  # a tie is a matter of rounding
    resampled = resample_label(torch.from_numpy(label), *points).numpy()
    assert resampled.dtype == np.uint8
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(resampled[sure], expected[sure])


def test_coefficients_are_those_of_scipys_filter() -> None:
    image = noisy(2, 70, 33)
    coefficients = spline_coefficients(image)
    for channel, found in zip(image, coefficients, strict=True):
        expected = np.pad(ndimage.spline_filter(channel.double().numpy(), order=3), 2, mode="reflect")
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "label", "wrong"),
    [
        ((1, 30, 40), (1, 30, 40), r"image: is 30 x 40, less than the 32 x 32 to be cut out of it"),
        ((1, 40, 40), (1, 40, 41), r"label: is 40 x 41, but image is 40 x 40"),
    ],
)
def test_a_sample_of_the_wrong_size_is_refused(image: tuple[int, ...], label: tuple[int, ...], wrong: str) -> None:
    crop = RandRotateScaleCropd(size=(32, 32))
    with pytest.raises(BadInput, match=wrong):
        crop({"image": torch.zeros(image), "label": torch.zeros(label, dtype=torch.uint8)})


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"scale_range": (1.4, 0.7)}, r"scale_range must be two rising numbers above 0, got \(1\.4, 0\.7\)"),
        ({"scale_range": (0, 1)}, "scale_range must be two rising numbers above 0"),
        ({"size": (8, 32)}, r"size must be two numbers above 14, got \(8, 32\)"),
        ({"rotate_prob": 20}, r"rotate_prob must be in \[0, 1\], got 20"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(BadInput, match=wrong):
        RandRotateScaleCropd(**{"size": (32, 32), **options})


@pytest.mark.parametrize(("low", "high"), [(1.1, 1.5), (0.5, 0.9)])
def test_factors_on_one_side_of_one_stay_there(low: float, high: float) -> None:
    rng = np.random.RandomState(0)
    assert_uniform([draw_factor(rng, (low, high)) for _ in range(DRAWS)], low, high)


@pytest.mark.parametrize("compose", [Compose, OneStreamCompose])
def test_a_sample_is_a_function_of_its_seed(compose: type[Compose]) -> None:
    pipeline = compose(configured())
    sample = {"image": noisy(2, 40, 40), "label": torch.randint(3, (1, 40, 40), dtype=torch.uint8)}

    def make(seed: int) -> Sample:
        pipeline.set_random_state(seed=seed)
        return pipeline(dict(sample))

    first = [make(seed) for seed in range(40)]
    for seed in reversed(range(40)):
        again = make(seed)
        assert all(torch.equal(again[key], first[seed][key]) for key in sample)
    assert len({out["image"].sum().item() for out in first}) > 30


@pytest.mark.parametrize("compose", [Compose, OneStreamCompose])
def test_a_channels_draw_is_independent_of_its_samples(compose: type[Compose]) -> None:
    each = RandEachChanneld("image", prob=0.25, transform=RandScaleIntensity(0.25, prob=0.5))
    pipeline = compose([each])
    changed = 0
    for seed in range(1000):
        pipeline.set_random_state(seed=seed)
        changed += float(pipeline({"image": torch.ones(1, 2, 2)})["image"][0, 0, 0]) != 1
    assert_frequency(changed, 0.125, 1000)


def test_transforms_of_one_stream_act_independently_of_each_other() -> None:
    pipeline = OneStreamCompose([RandScaleIntensityd("image", factors=(1, 1), prob=0.5), configured()[MIRROR]])
    corners = noisy(1, 2, 2)
    found = []
    for seed in range(DRAWS):
        pipeline.set_random_state(seed=seed)
        out = pipeline({"image": corners, "label": corners})
        found.append((int((out["label"].flatten() == corners[0, 0, 0]).nonzero()), torch.equal(*out.values())))
    for place, scaled in itertools.product(range(4), (True, False)):
        assert_frequency(found.count((place, scaled)), 0.125)


def disc(shift: float) -> Sample:
    """A soft disc whose level of 1/2 is the label's border, the image moved by `shift` pixels; in its middle 1/2."""
    axis = torch.arange(150) - 74.5
    radius = torch.hypot(axis[:, None] - shift, axis)
    image = ((40 - radius) / 2 + 0.5).clamp(0, 1)
    image[radius < 10] = 0.5
    return {"image": image[None], "label": (torch.hypot(axis[:, None], axis) < 40)[None].to(torch.uint8)}


def edge_offsets(sample: Sample, *, low_resolution: bool) -> np.ndarray:
    """Return how far the image's disc is off the label's after the pipeline: x, y and radius, in pixels, per seed."""
    transforms = configured((128, 128))
    if not low_resolution:
        del transforms[LOW_RESOLUTION]
    pipeline = OneStreamCompose(transforms)
    x, y = torch.meshgrid(torch.arange(128) - 63.5, torch.arange(128) - 63.5, indexing="ij")
    offsets = []
    for seed in range(400):
        pipeline.set_random_state(seed=seed)
        out = pipeline(dict(sample))
        image, label = out["image"][0], out["label"][0]
        half = image[x.hypot(y) < 5].median()  # what became of 1/2, whatever was done to the intensities
        radius = math.sqrt(label.sum() / math.pi)
        excess = ((image > half).float() - label) * ((x.hypot(y) - radius).abs() < 5)
        # over the angle, a shift is the excess' first moment, and a wider radius is its mean
        shift = [float((excess * axis).sum()) / (math.pi * radius**2) for axis in (x, y)]
        offsets.append([*shift, float(excess.sum()) / (2 * math.pi * radius)])
    return np.array(offsets)


def test_the_whole_pipeline_keeps_image_and_label_aligned_to_a_tenth_of_a_pixel() -> None:
    offsets = np.abs(edge_offsets(disc(0), low_resolution=True))
    assert np.quantile(offsets, 0.97) < 0.1
    # nnU-Net's low resolution takes the nearest pixel: that alone can be up to a half beside the place
    offsets = edge_offsets(disc(0), low_resolution=False)
    assert np.abs(offsets[:, :2]).max() < 0.1
    assert np.abs(offsets[:, 2]).max() < 0.2  # a label's border lies between pixels: the radius comes in steps
    assert np.abs(offsets.mean(0)).max() < 0.01


@pytest.mark.parametrize("low_resolution", [True, False])
def test_a_shift_of_half_a_pixel_would_be_seen(low_resolution: bool) -> None:
    offsets = edge_offsets(disc(0.5), low_resolution=low_resolution)
    assert np.hypot(offsets[:, 0], offsets[:, 1]).min() > 0.25
