"""Intensity normalisation of images, by the data set or by the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..runtime.errors import BadInput

SMALL = 1e-3  # of a standard deviation: below that, a resampled voxel of a masked image counts as outside the mask


class Normalisation(Protocol):
    """How a channel is normalised; its `repr` tells apart what was prepared with different settings."""

    def fit(self, channel: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function for one image's channel, `(x, y, z)` on its own grid; it takes any part of it."""


@dataclass(frozen=True)
class ClipAndStandardise:
    """CT: clip, subtract the mean, divide by the standard deviation; all of the training set's foreground (nnU-Net).

    Args:
        clip: the 0.5 and 99.5 percentiles, in HU.
        mean: in HU.
        sd: in HU.

    Raises:
        BadInput: `sd` isn't above 0, or `clip` isn't two rising numbers.
    """

    clip: Sequence[float]
    mean: float
    sd: float

    def __post_init__(self) -> None:
        if len(self.clip) != 2 or not self.clip[0] < self.clip[1]:
            raise BadInput(f"clip must be a smaller and a larger number, got {self.clip}.")
        if not self.sd > 0:
            raise BadInput(f"sd must be above 0, got {self.sd}.")
        object.__setattr__(self, "clip", tuple(float(value) for value in self.clip))  # one repr for lists and tuples

    def fit(self, channel: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the same function for all images."""
        return self.apply

    def apply(self, image: Tensor) -> Tensor:
        """Return the normalised image."""
        return (image.clamp(*self.clip) - self.mean) / self.sd


@dataclass(frozen=True)
class StandardiseImage:
    """MR and all that isn't CT: each image by its own mean and standard deviation (nnU-Net).

    The two are taken on the image's own grid; nnU-Net v1 takes them after resampling, which hardly changes them.

    Args:
        nonzero: by the voxels that aren't 0 alone, and the others stay 0: for images that were masked, such as
            brains without skull.
    """

    nonzero: bool = False

    def fit(self, channel: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function with the image's mean and standard deviation in it."""
        voxels = channel[channel != 0] if self.nonzero else channel
        voxels = (voxels if voxels.numel() else torch.zeros(1)).double()
        mean, sd = float(voxels.mean()), float(voxels.std(correction=0)) + 1e-8

        def apply(image: Tensor) -> Tensor:
            normalised = (image - mean) / sd
            return torch.where(image.abs() > SMALL * sd, normalised, 0.0) if self.nonzero else normalised

        return apply


def fit_channels(image: Tensor, normalise: Sequence[Normalisation], *, name: str) -> list[Callable[[Tensor], Tensor]]:
    """Return the function of each channel of an image `(channels, x, y, z)`.

    Raises:
        BadInput: the image has another number of channels than there are normalisations; `name` says which image.
    """
    if len(image) != len(normalise):
        raise BadInput(
            f"{name}: has {len(image)} channels, but the configuration normalises {len(normalise)}. "
            "Give an image with as many, or correct channels and normalise in the configuration."
        )
    return [one.fit(channel) for one, channel in zip(normalise, image, strict=True)]


def nonzero_box(image: Tensor) -> tuple[slice, ...]:
    """Return the smallest box, x, y and z, with all voxels that aren't 0 in some channel; all of it if there is none.

    nnU-Net crops to it before anything else; on CT, whose air isn't 0, it is the whole image.
    """
    shown = (image != 0).any(dim=0)
    if not shown.any():
        return tuple(slice(0, n) for n in image.shape[1:])
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        places = shown.any(dim=others).nonzero()[:, 0]
        box.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(box)
