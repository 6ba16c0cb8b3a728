"""Data augmentation, as nnU-Net v1 has it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, MapTransform, Randomizable, RandomizableTransform
from monai.utils import convert_to_tensor
from torch import Tensor

from ..runtime.errors import BadInput
from .filtering import blur, lower_resolution
from .warping import EDGE, REACH, resample_image, resample_label, sampling_points, scale_image


class OneStreamCompose(Compose):
    """MONAI's `Compose`, its transforms drawing from one random stream.

    `Compose` makes up to two generators for each of its transforms whenever it is seeded: where a sample is a function
    of its seed that is 2 ms for each, a fifth of the time that nnU-Net's augmentation takes.
    """

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> OneStreamCompose:
        """Seed all random transforms."""
        if seed is not None:
            state = np.random.RandomState(np.random.PCG64(seed))  # the default one takes ten times as long to seed
        Randomizable.set_random_state(self, state=state)
        for transform in self.transforms:
            if isinstance(transform, Randomizable):
                transform.set_random_state(state=self.R)
        return self


class RandRotateScaleCropd(Randomizable, MapTransform):
    """Rotate about the centre, scale, and cut out the centre, in one resampling (nnU-Net v1's spatial augmentation).

    Rotation and scaling act independently of each other; where neither acts, pixels are copied. Else the image is
    resampled by a cubic spline and 0 outside, the label map class by class, see `resample_image` and `resample_label`.

    Args:
        image_key, label_key: of `(channels, x, y)` float32 and `(1, x, y)` integers, at least as large as `size`.
        size: of the result, x and y.
        rotate_prob: probability of a rotation.
        rotate_degrees: its angle is uniform within plus and minus this.
        scale_prob: probability of a scaling.
        scale_range: see `draw_factor`; 1.4 shows 1.4 times as much in the same number of pixels.

    Raises:
        BadInput: an option out of its range; when called: image and label differ in size, or are too small.
    """

    def __init__(
        self,
        *,
        image_key: Hashable = "image",
        label_key: Hashable = "label",
        size: Sequence[int],
        rotate_prob: float = 0.2,
        rotate_degrees: float = 180.0,
        scale_prob: float = 0.2,
        scale_range: Sequence[float] = (0.7, 1.4),
    ) -> None:
        super().__init__([image_key, label_key])
        if not 0 < scale_range[0] <= scale_range[1]:
            raise BadInput(f"scale_range must be two rising numbers above 0, got {scale_range}.")
        if len(size) != 2 or min(size) <= REACH + EDGE:
            raise BadInput(f"size must be two numbers above {REACH + EDGE}, got {size}.")
        for name, prob in (("rotate_prob", rotate_prob), ("scale_prob", scale_prob)):
            if not 0 <= prob <= 1:
                raise BadInput(f"{name} must be in [0, 1], got {prob}.")
        self.image_key = image_key
        self.label_key = label_key
        self.size = tuple(size)
        self.rotate_prob = rotate_prob
        self.rotate_degrees = rotate_degrees
        self.scale_prob = scale_prob
        self.scale_range = scale_range
        self.degrees, self.scale = 0.0, 1.0

    def randomize(self, data: Any = None) -> None:
        """Draw angle and scale."""
        self.degrees, self.scale = 0.0, 1.0
        if self.R.rand() < self.rotate_prob:
            self.degrees = self.R.uniform(-self.rotate_degrees, self.rotate_degrees)
        if self.R.rand() < self.scale_prob:
            self.scale = draw_factor(self.R, self.scale_range)

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Return the data with image and label cut to `size`."""
        image, label = (convert_to_tensor(data[key], track_meta=False) for key in self.keys)
        self._require_fit(image.shape[1:], label.shape[1:])
        self.randomize()
        if (self.degrees, self.scale) == (0, 1):
            starts = [(have - want) // 2 for have, want in zip(label.shape[1:], self.size, strict=True)]
            window = (..., *(slice(start, start + want) for start, want in zip(starts, self.size, strict=True)))
            return {**data, self.image_key: image[window], self.label_key: label[window]}
        x, y = sampling_points(self.size, degrees=self.degrees, scale=self.scale)
        image = resample_image(image, x, y) if self.degrees else scale_image(image, self.size, scale=self.scale)
        return {**data, self.image_key: image, self.label_key: resample_label(label[0], x, y)[None]}

    def _require_fit(self, image: Sequence[int], label: Sequence[int]) -> None:
        have, labelled, want = (" x ".join(map(str, size)) for size in (image, label, self.size))
        if have != labelled:
            raise BadInput(f"{self.label_key}: is {labelled}, but {self.image_key} is {have}. Cut them alike.")
        if any(n < m for n, m in zip(image, self.size, strict=True)):
            raise BadInput(f"{self.image_key}: is {have}, less than the {want} to be cut out of it. Pad it before.")


class RandEachChanneld(RandomizableTransform, MapTransform):
    """Act on a sample with one probability, then on each of its channels with another and draws of its own.

    Args:
        keys: of `(channels, x, y)`.
        prob: probability that the sample is acted on.
        transform: of one channel, `(1, x, y)`; it has a probability, too.
    """

    def __init__(self, keys: Any, *, prob: float, transform: RandomizableTransform) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandEachChanneld:
        """Seed this and the channels' transform."""
        super().set_random_state(seed, state)
        # one stream: with the same seed in both, the channels' first draw would be the sample's over again
        self.transform.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Return the data with the channels transformed."""
        self.randomize(None)
        if not self._do_transform:
            return dict(data)
        parts = {key: [self.transform(part) for part in data[key].split(1)] for key in self.keys}
        return {**data, **{key: one[0] if len(one) == 1 else torch.cat(one) for key, one in parts.items()}}


class RandNoised(RandomizableTransform, MapTransform):
    """Add Gaussian noise of one standard deviation to all channels.

    MONAI's `RandGaussianNoised` draws it in float64, which takes three times as long.

    Args:
        keys: of `(channels, x, y)` float32.
        prob: probability that it acts.
        std: the standard deviation is uniform from 0 to this.
    """

    def __init__(self, keys: Any, *, prob: float, std: float) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.std = std

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Return the data with noise."""
        self.randomize(None)
        if not self._do_transform:
            return dict(data)
        std = self.R.uniform(0, self.std)
        generator = torch.Generator().manual_seed(int(self.R.randint(2**32, dtype=np.uint64)))
        noisy = {key: torch.randn(data[key].shape, generator=generator).mul_(std).add_(data[key]) for key in self.keys}
        return {**data, **noisy}


class RandContrast(RandomizableTransform):
    """Spread the intensities about their mean, and clip them to the range that they had (nnU-Net).

    MONAI's `RandScaleIntensityFixedMean` does the same in twice as many passes over the image.

    Args:
        prob: probability that it acts.
        factors: range of the factor, uniform.
    """

    def __init__(self, *, prob: float, factors: Sequence[float]) -> None:
        super().__init__(prob)
        self.factors = factors

    def __call__(self, image: Tensor) -> Tensor:
        """Return `(channels, x, y)`, all channels taken together."""
        self.randomize(None)
        if not self._do_transform:
            return image
        factor = self.R.uniform(self.factors[0], self.factors[1])
        low, high = torch.aminmax(image)
        return torch.lerp(image.mean(), image, factor).clamp_(low, high)


class RandLowResolution(RandomizableTransform):
    """Make the image smaller and large again, see `filtering.lower_resolution` (nnU-Net v1's order 0 and order 3).

    MONAI's `RandSimulateLowResolution` interpolates both axes at once, which takes three times as long.

    Args:
        prob: probability that it acts.
        zoom_range: the zoom, the same for both axes, is uniform in this.
    """

    def __init__(self, *, prob: float, zoom_range: Sequence[float] = (0.5, 1.0)) -> None:
        super().__init__(prob)
        self.zoom_range = zoom_range

    def __call__(self, image: Tensor) -> Tensor:
        """Return `(channels, x, y)`, all channels alike."""
        self.randomize(None)
        if not self._do_transform:
            return image
        return lower_resolution(image, self.R.uniform(self.zoom_range[0], self.zoom_range[1]))


class RandGamma(RandomizableTransform):
    """Raise the intensities, brought to the range from 0 to 1, to a power (nnU-Net).

    MONAI's `RandAdjustContrast` draws the exponent otherwise, and takes twice as long.

    Args:
        prob: probability that it acts.
        gamma: range of the exponent, see `draw_factor`.
        invert_image: whether bright and dark change places before, and back afterwards.
        retain_stats: whether mean and standard deviation are what they were.
    """

    def __init__(
        self, *, prob: float, gamma: Sequence[float], invert_image: bool = False, retain_stats: bool = False
    ) -> None:
        super().__init__(prob)
        self.gamma = gamma
        self.invert_image = invert_image
        self.retain_stats = retain_stats

    def __call__(self, image: Tensor) -> Tensor:
        """Return `(channels, x, y)`, all channels taken together."""
        self.randomize(None)
        if not self._do_transform:
            return image
        exponent = draw_factor(self.R, self.gamma)
        low, high = torch.aminmax(image)
        extent = high - low + 1e-7
        raised = torch.sub(high, image) if self.invert_image else torch.sub(image, low)
        raised.div_(extent).pow_(exponent)
        sign = -1.0 if self.invert_image else 1.0
        if not self.retain_stats:
            return raised.mul_(sign * extent).add_(high if self.invert_image else low)
        raised.sub_(raised.mean())
        factor = deviation(image - image.mean()) / (deviation(raised) + 1e-8)
        return raised.mul_(sign * factor).add_(image.mean())


def deviation(centred: Tensor) -> Tensor:
    """Return the standard deviation of an image whose mean is 0: `Tensor.std` takes twenty times as long."""
    flat = centred.flatten()
    return (flat.dot(flat) / max(len(flat) - 1, 1)).sqrt()


class RandGaussianBlur(RandomizableTransform):
    """Blur with one width for both axes, and the image mirrored at its border, as in nnU-Net v1.

    MONAI's `RandGaussianSmooth` draws a width for each axis, and takes what lies beyond the border to be 0.

    Args:
        prob: probability that it acts.
        sigma: range of the width, in pixels.
    """

    def __init__(self, *, prob: float, sigma: Sequence[float] = (0.5, 1.0)) -> None:
        super().__init__(prob)
        self.sigma = sigma

    def __call__(self, image: Tensor) -> Tensor:
        """Return `(channels, x, y)`, all channels blurred alike."""
        self.randomize(None)
        if not self._do_transform:
            return image
        width = self.R.uniform(self.sigma[0], self.sigma[1])
        return blur(image, width)


class RandMirrord(Randomizable, MapTransform):
    """Mirror along each axis with a probability, along both at once where both are drawn.

    Args:
        keys: of `(channels, x, y)`, mirrored together.
        prob: probability of an axis.
    """

    def __init__(self, keys: Any, *, prob: float = 0.5) -> None:
        super().__init__(keys)
        self.prob = prob

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Return the data mirrored."""
        axes = [axis for axis in (1, 2) if self.R.rand() < self.prob]
        return {**data, **({key: data[key].flip(axes) for key in self.keys} if axes else {})}


def draw_factor(rng: np.random.RandomState, factors: Sequence[float]) -> float:
    """Return a uniform factor; of a range around 1, half of the draws are below 1 and half above (nnU-Net v1)."""
    low, high = factors
    if low < 1 < high:
        low, high = (low, 1) if rng.rand() < 0.5 else (1, high)
    return rng.uniform(low, high)
