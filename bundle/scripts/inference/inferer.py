"""Slice-by-slice inference of a volume: normalised, resampled, in overlapping tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ..data.volumes import label_ids
from ..networks.committee import require_training
from ..networks.precision import autocast
from ..transforms.normalisation import Normalisation, fit_channels, nonzero_box
from ..transforms.resampling import Resampling, resampled_size
from .slice_threads import sharing_cores

GAUSSIAN_SIGMA = 0.125  # of the tile's size: nnU-Net's weighting
PIXELS_AT_ONCE = 512 * 512  # in the networks: more is no faster on CPUs, and takes more memory
LARGEST_BATCH = 4  # by default, of small slices: 16 are no faster, and take twice the memory
ReadOut = Callable[[Tensor, Sequence[int]], Tensor]


class SliceInferer(Inferer):
    """Label a volume slice batch by slice batch: no float copy of the volume and no array of classes x volume is made.

    As in training, the image is cropped to what isn't 0, and each batch of slices is resampled in-plane to the
    training's spacing (cubic) and then normalised. It goes through the network in tiles, overlapping by half and
    weighted by a Gaussian, as in nnU-Net; the probabilities are resampled back (linear), and the largest gives the
    label. The volume keeps its own number format, int16 for most CTs, until a batch of slices is taken from it.

    Slices that are constant once they were prepared, such as air, are all the same to the network: it sees the first
    one of each value, and the others take its labels. Nothing else is skipped: InstanceNorm makes a pixel's label
    depend on the whole tile, margins included.

    Args:
        tile_size: x and y, in pixels at `spacing_mm`; slices that fit are one tile, padded with `padding`.
        spacing_mm: in-plane, x and y.
        normalise: of each channel.
        resampling: before or after the normalisation.
        labels: label id -> name; the network's classes are the background and the ids in rising order.
        batch_size: slices, or tiles of slices, that the network sees at a time; by default as many as have
            512 x 512 pixels, but 4 at most. More is no faster on CPUs; GPUs are better used by 4 or 8.
        overlap: of neighbouring tiles, as a share, at least; they are spread evenly.
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
        batch_size: int | None = None,
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
        self.batch_size = batch_size or min(LARGEST_BATCH, max(1, PIXELS_AT_ONCE // math.prod(tile_size)))
        self.overlap = overlap
        self.flips: list[list[int]] = [[], [2], [3], [2, 3]] if mirror else [[]]
        self.padding = padding
        self.precision = precision

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return label maps, uint8 `(volumes, 1, x, y, z)`, for images `(volumes, channels, x, y, z)`.

        The images have their slices along z, and intensities as in their files, in any number format. Their spacing is
        taken from the MetaTensor's affine; a plain tensor is taken to be at `spacing_mm`. The result is of the inputs'
        kind, with their meta data.

        Raises:
            BadInput: the network's weights were never loaded or trained; another number of channels than `normalise`
                has.
        """
        return self.run(inputs, network, self.to_labels, like=torch.zeros(1, dtype=torch.uint8, device=inputs.device))

    @torch.no_grad()
    def probabilities(self, inputs: Tensor, network: Any) -> Tensor:
        """Return the probabilities whose largest one is the label: `(volumes, classes, x, y, z)` float32.

        The classes are the background and the label ids in rising order. What lies beyond the box of all that isn't 0
        is background. All classes of a volume at once take memory, 4 bytes a voxel and class: they are on the CPU.

        Raises:
            BadInput: as when labelling.
        """
        return self.run(inputs, network, self.to_probabilities, like=torch.eye(len(self.label_ids))[0])

    def run(self, inputs: Tensor, network: Any, read_out: ReadOut, *, like: Tensor) -> Tensor:
        """Return what is read out of the network's probabilities, `(volumes, channels, x, y, z)`.

        Args:
            inputs: images `(volumes, channels, x, y, z)`.
            network: for slices.
            read_out: from a slice's `(classes, x, y)` and the image's size to `(channels, *size)`.
            like: the result's channels where there is no image, `(channels,)`, on the result's device.
        """
        require_training(network)
        spacing_mm = in_plane_spacing_mm(inputs) or self.spacing_mm
        volumes = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        boxes = [content_box(volume) for volume in volumes]  # beyond them nothing was seen in training: background
        shape = (len(volumes), len(like), *volumes.shape[2:])
        result = torch.zeros(shape, dtype=like.dtype, device=like.device)
        for channel in like.nonzero().flatten().tolist():
            result[:, channel] = like[channel]
        for volume, out, box in zip(volumes, result, boxes, strict=True):
            self.run_volume(volume[box], network, spacing_mm, read_out, name=name_of(inputs), out=out[box])
        if isinstance(inputs, MetaTensor):  # Invertd leaves a plain tensor as it is, in the wrong orientation
            with_meta: Tensor = MetaTensor(result).copy_meta_from(inputs)
            return with_meta
        return result

    def run_volume(
        self,
        volume: Tensor,
        network: nn.Module,
        spacing_mm: Sequence[float],
        read_out: ReadOut,
        *,
        name: str,
        out: Tensor,
    ) -> None:
        """Write what is read out for one image `(channels, x, y, z)` into `out`, with channels of its own."""
        fitted = fit_channels(volume, self.normalise, name=name)
        at_training = resampled_size(volume.shape[1:3], spacing_mm, self.spacing_mm)
        known: dict[tuple[float, ...], Tensor] = {}  # value of a constant slice, in each channel -> (channels, x, y)
        writing = Lock()  # of what is known

        def read(slices: Tensor) -> Iterator[Tensor]:
            for one in self.predict(slices, network):  # slice by slice: all classes at the image's own size are large
                yield read_out(one, volume.shape[1:3])

        def label(first: int) -> None:
            slices = self.prepare(volume[..., first : first + self.batch_size], fitted, at_training)
            values = constant_values(slices)
            varying = [n for n, value in enumerate(values) if value is None]
            if varying:
                for n, read_out_slice in zip(varying, read(slices[varying]), strict=True):
                    out[..., first + n] = read_out_slice
            for n, value in enumerate(values):
                if value is not None:
                    with writing:
                        if value not in known:
                            known[value] = next(read(slices[n : n + 1]))
                    out[..., first + n] = known[value]

        batches = range(0, volume.shape[3], self.batch_size)
        with sharing_cores(volume.device) as in_threads:
            labelled = in_threads(label, batches)
            for _ in tqdm(labelled, total=len(batches), desc="slices", unit="batch", leave=False, disable=None):
                pass

    def prepare(self, volume: Tensor, fitted: Sequence[Callable[[Tensor], Tensor]], size: Sequence[int]) -> Tensor:
        """Return slices as the network sees them, `(slices, channels, *size)` float32, of `(channels, x, y, z)`."""
        prepared = []
        for one in volume.permute(3, 0, 1, 2).split(1):  # (1, channels, x, y): as float all slices at once are large
            channels = zip(fitted, one.float().unbind(dim=1), strict=True)
            prepared.append(torch.stack([self.resampling(c, size, normalise) for normalise, c in channels], dim=1))
        return torch.cat(prepared)

    def to_labels(self, probability: Tensor, size: Sequence[int]) -> Tensor:
        """Return the ids of a slice's likeliest classes, `(1, *size)` uint8, for `(classes, x, y)`."""
        labels = torch.zeros((1, *size), dtype=torch.uint8, device=probability.device)
        largest = torch.full((1, *size), -math.inf, device=probability.device)
        for label, one in zip(self.label_ids.tolist(), probability.split(1), strict=True):
            one = self.to_probabilities(one, size)  # class by class: all at the image's own size are large
            labels.masked_fill_(one > largest, label)
            torch.maximum(one, largest, out=largest)
        return labels

    def to_probabilities(self, probability: Tensor, size: Sequence[int]) -> Tensor:
        """Return a slice's probabilities `(classes, x, y)` at the image's own size, `(classes, *size)`.

        Bilinear between pixel centres and constant beyond the outermost: what `resample_slices` does with order 1.
        """
        if list(probability.shape[1:]) == list(size):
            return probability
        one = probability[None].contiguous()  # channels last, a class alone would be rounded otherwise than all of them
        return functional.interpolate(one, size=list(size), mode="bilinear", align_corners=False)[0]

    def predict(self, slices: Tensor, network: nn.Module) -> Tensor:
        """Return the probabilities of slices at the training's spacing: `(slices, classes, x, y)` float32."""
        size = slices.shape[2:]
        pads = [max(0, tile - n) for tile, n in zip(self.tile_size, size, strict=True)]
        before = [pad // 2 for pad in pads]  # the slice lies in the middle, as in training
        padded = functional.pad(
            slices, (before[1], pads[1] - before[1], before[0], pads[0] - before[0]), value=self.padding
        )
        probability = self.predict_tiles(padded, network)
        for flip in self.flips[1:]:
            probability = probability + self.predict_tiles(padded.flip(flip), network).flip(flip)
        return probability[:, :, before[0] : before[0] + size[0], before[1] : before[1] + size[1]]

    def predict_tiles(self, slices: Tensor, network: nn.Module) -> Tensor:
        """Return the probabilities of slices that are at least a tile in size."""
        with autocast(slices.device, self.precision):
            if list(slices.shape[2:]) == self.tile_size:
                logits: Tensor = network(slices).float()
                return logits
            starts = [
                tile_starts(n, tile, self.overlap) for n, tile in zip(slices.shape[2:], self.tile_size, strict=True)
            ]
            weights = [gaussian(tile).to(slices.device) for tile in self.tile_size]  # along x and y
            weight = weights[0][:, None] * weights[1]
            total = torch.zeros(())
            for x, y in itertools.product(*starts):
                place = (..., slice(x, x + self.tile_size[0]), slice(y, y + self.tile_size[1]))
                probability = network(slices[place].contiguous()).float()
                if total.dim() == 0:
                    total = probability.new_zeros((*probability.shape[:2], *slices.shape[2:]))
                total[place].addcmul_(probability, weight)
        for axis, (along, tile) in enumerate(zip(starts, weights, strict=True), start=2):
            covered = torch.zeros(slices.shape[axis], device=slices.device)
            for start in along:
                covered[start : start + len(tile)] += tile
            total /= covered[:, None] if axis == 2 else covered
        return total


def tile_starts(size: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles begin along an axis: as few as overlap by that share, spread evenly (nnU-Net v2)."""
    number = math.ceil((size - tile) / (tile * (1 - overlap))) + 1
    return [round(i * (size - tile) / max(1, number - 1)) for i in range(number)]


def gaussian(tile: int) -> Tensor:
    """Return the weights of a tile's pixels along an axis, float32, 1 in the middle (nnU-Net v2)."""
    pulse = np.zeros(tile)
    pulse[tile // 2] = 1
    weights = ndimage.gaussian_filter1d(pulse, tile * GAUSSIAN_SIGMA, mode="constant")
    return torch.from_numpy((weights / weights.max()).astype(np.float32))


def constant_values(slices: Tensor) -> list[tuple[float, ...] | None]:
    """Return of each slice `(slices, channels, x, y)` the value of each channel, if none of them varies, or None."""
    low, high = slices.amin(dim=(2, 3)), slices.amax(dim=(2, 3))
    same = (low == high).all(dim=1).tolist()
    return [tuple(value) if constant else None for value, constant in zip(low.tolist(), same, strict=True)]


def content_box(volume: Tensor) -> tuple[slice, ...]:
    """Return `nonzero_box` and the channels before it; a look at the faces tells most CTs from masked images."""
    faces = [volume.select(axis, place) for axis in (1, 2, 3) for place in (0, -1)]
    if all(bool((face != 0).any()) for face in faces):
        return (slice(None),) * 4
    return (slice(None), *nonzero_box(volume))


def in_plane_spacing_mm(inputs: Tensor) -> list[float] | None:
    """Return the spacing along x and y from a MetaTensor's affine (that of the first volume of a batch), or None."""
    if not isinstance(inputs, MetaTensor):
        return None
    affine = torch.as_tensor(inputs.affine).reshape(-1, 4, 4)[0]
    spacing: list[float] | None = affine[:3, :2].norm(dim=0).tolist()
    return spacing


def name_of(inputs: Tensor) -> str:
    """Return the file that an image was read from, as far as its meta data tell."""
    meta = inputs.meta if isinstance(inputs, MetaTensor) else {}
    name = meta.get("filename_or_obj", "image")
    return str(name if isinstance(name, str) else name[0])
