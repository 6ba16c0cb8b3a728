"""How does a network for slices label a volume?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from .committee import require_training
from .normalisation import Normalisation, fit_channels, nonzero_box
from .precision import autocast
from .resampling import Resampling, resample_slices, resampled_size
from .volumes import label_ids

GAUSSIAN_SIGMA = 0.125  # of the tile's size: nnU-Net's weighting


class SliceInferer(Inferer):
    """Label a volume slice batch by slice batch: no array of classes x volume is ever made.

    As in training, the image is cropped to what isn't 0, and each batch of slices is resampled in-plane to the
    training's spacing (cubic) and then normalised. It goes through the network in tiles, overlapping by half and
    weighted by a Gaussian, as in nnU-Net; the probabilities are resampled back (linear), and the largest gives the
    label.

    Args:
        tile_size: x and y, in pixels at `spacing_mm`; slices that fit are one tile, padded with `padding`.
        spacing_mm: in-plane, x and y.
        normalise: of each channel.
        resampling: before or after the normalisation.
        labels: label id -> name; the network's classes are the background and the ids in rising order.
        batch_size: slices at a time.
        overlap: of neighbouring tiles, as a share.
        mirror: average over the four mirror images, too: four times the work.
        padding: the value beyond the border of a slice: 0 after normalisation, as in training.
        precision: see `precision.autocast`.
    """

    def __init__(
        self,
        *,
        tile_size: Sequence[int],
        spacing_mm: Sequence[float],
        normalise: Sequence[Normalisation],
        resampling: Resampling,
        labels: Mapping[Any, str],
        batch_size: int = 8,
        overlap: float = 0.5,
        mirror: bool = False,
        padding: float = 0.0,
        precision: str = "auto",
    ) -> None:
        super().__init__()
        self.tile_size = list(tile_size)
        self.spacing_mm = list(spacing_mm)
        self.normalise = normalise
        self.resampling = resampling
        self.label_ids = torch.tensor([0, *label_ids(labels)], dtype=torch.uint8)
        self.batch_size = batch_size
        self.overlap = overlap
        self.flips: list[list[int]] = [[], [2], [3], [2, 3]] if mirror else [[]]
        self.padding = padding
        self.precision = precision

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return label maps, uint8 `(volumes, 1, x, y, z)`, for images `(volumes, channels, x, y, z)`.

        The images have their slices along z, and intensities as in their files. Their spacing is taken from the
        MetaTensor's affine; a plain tensor is taken to be at `spacing_mm`. The result is of the inputs' kind, with
        their meta data.

        Raises:
            BadInput: the network's weights were never loaded or trained; another number of channels than `normalise`
                has.
        """
        require_training(network)
        spacing_mm = in_plane_spacing_mm(inputs) or self.spacing_mm
        volumes = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        labels = torch.zeros((len(volumes), 1, *volumes.shape[2:]), dtype=torch.uint8, device=volumes.device)
        for volume, label in zip(volumes, labels, strict=True):
            box = (slice(None), *nonzero_box(volume))  # beyond it nothing was seen in training: background
            label[box] = self.label_volume(volume[box], network, spacing_mm, name=name_of(inputs))
        if isinstance(inputs, MetaTensor):  # Invertd leaves a plain tensor as it is, in the wrong orientation
            return MetaTensor(labels).copy_meta_from(inputs)
        return labels

    def label_volume(self, volume: Tensor, network: nn.Module, spacing_mm: Sequence[float], *, name: str) -> Tensor:
        """Return the label map `(1, x, y, z)` uint8 of one image `(channels, x, y, z)`."""
        fitted = fit_channels(volume, self.normalise, name=name)
        ids = self.label_ids.to(volume.device)
        size = volume.shape[1:3]
        at_training = resampled_size(size, spacing_mm, self.spacing_mm)
        label = torch.empty((1, *volume.shape[1:]), dtype=torch.uint8, device=volume.device)
        starts = range(0, volume.shape[3], self.batch_size)
        for start in tqdm(starts, desc="slices", unit="batch", leave=False, disable=None):
            slices = volume[..., start : start + self.batch_size].permute(3, 0, 1, 2)  # (slices, channels, x, y)
            channels = zip(fitted, slices.float().unbind(dim=1), strict=True)
            prepared = [self.resampling(channel, at_training, normalise) for normalise, channel in channels]
            probability = self.predict(torch.stack(prepared, dim=1), network)
            largest = resample_slices(probability, size, order=1).argmax(dim=1)  # (slices, x, y)
            label[0, ..., start : start + self.batch_size] = ids[largest].permute(1, 2, 0)
        return label

    def predict(self, slices: Tensor, network: nn.Module) -> Tensor:
        """Return the probabilities of slices at the training's spacing: `(slices, classes, x, y)` float32."""
        size = slices.shape[2:]
        pads = [max(0, tile - n) for tile, n in zip(self.tile_size, size, strict=True)]
        before = [pad // 2 for pad in pads]  # the slice lies in the middle, as in training
        padded = functional.pad(
            slices,
            (before[1], pads[1] - before[1], before[0], pads[0] - before[0]),
            value=self.padding,
        )
        total = torch.zeros(())
        for flip in self.flips:
            flipped = self.predict_tiles(padded.flip(flip) if flip else padded, network)
            total = total.to(flipped.device) + (flipped.flip(flip) if flip else flipped)
        return (total / len(self.flips))[:, :, before[0] : before[0] + size[0], before[1] : before[1] + size[1]]

    def predict_tiles(self, slices: Tensor, network: nn.Module) -> Tensor:
        """Return the probabilities of slices that are at least a tile in size."""
        with autocast(slices.device, self.precision):
            if list(slices.shape[2:]) == self.tile_size:
                return network(slices).float()
            probability: Any = sliding_window_inference(
                slices,
                roi_size=self.tile_size,
                sw_batch_size=self.batch_size,
                predictor=network,
                overlap=self.overlap,
                mode="gaussian",
                sigma_scale=GAUSSIAN_SIGMA,
            )
            return probability.float()


def in_plane_spacing_mm(inputs: Tensor) -> list[float] | None:
    """Return the spacing along x and y from a MetaTensor's affine (that of the first volume of a batch), or None."""
    if not isinstance(inputs, MetaTensor):
        return None
    affine = torch.as_tensor(inputs.affine).reshape(-1, 4, 4)[0]
    return affine[:3, :2].norm(dim=0).tolist()


def name_of(inputs: Tensor) -> str:
    """Return the file that an image was read from, as far as its meta data tell."""
    meta = inputs.meta if isinstance(inputs, MetaTensor) else {}
    found = meta.get("filename_or_obj", "image")
    return str(found if isinstance(found, str) else found[0])
