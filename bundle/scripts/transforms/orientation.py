"""Reorientation of volumes, in their own memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd
from torch import Tensor


class InPlaceOrientationd(Orientationd):
    """MONAI's `Orientationd`, but the voxels are turned round within their own memory.

    MONAI turns a copy, so that a volume is in memory twice, and then its label map, on the way back: most CTs have axes
    that point to the left and to the back. What was given is changed: give a clone of what is needed as it was.
    Tensors that are on a GPU are left to MONAI, and so is what has no affine.
    """

    def __call__(self, data: Mapping[Hashable, Tensor], lazy: bool | None = None) -> dict[Hashable, Tensor]:
        """Return the data with their volumes `(channels, x, y, z)` turned; see `Orientationd`."""
        if self.lazy if lazy is None else lazy:
            return dict(super().__call__(data, lazy))
        turned = {key: turn(data[key], self.ornt_transform) for key in self.key_iterator(data)}  # type: ignore[type-var]
        return {**data, **turned}

    def inverse(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Return the data with their volumes turned back."""
        back = self.ornt_transform.inverse
        return {**data, **{key: turn(data[key], back) for key in self.key_iterator(data)}}  # type: ignore[type-var]


def turn(volume: Tensor, orientation: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a volume `(channels, x, y, z)` with its axes swapped and turned round as MONAI's transform does it."""
    if not isinstance(volume, MetaTensor) or volume.device.type != "cpu":
        return orientation(volume)
    turned = cast(MetaTensor, orientation(meta_copy(volume)))
    # whole numbers but for rounding: column j says from where, and in which direction, the new axis j comes
    swaps = np.linalg.solve(np.asarray(volume.affine)[:3, :3], np.asarray(turned.affine)[:3, :3]).round()
    come_from = np.abs(swaps).argmax(axis=0)
    turned_round = [int(axis) for axis in range(3) if swaps[axis].sum() < 0]
    voxels = volume.as_tensor()
    for channel in voxels.numpy() if turned_round else ():
        flip_in_place(channel, turned_round)
    reoriented: MetaTensor = MetaTensor(voxels.permute(0, *(1 + come_from).tolist())).copy_meta_from(turned)
    return reoriented


def meta_copy(volume: MetaTensor) -> MetaTensor:
    """Return a volume's shape, number format and meta data, without voxels."""
    copy: MetaTensor = MetaTensor(torch.empty_like(volume.as_tensor(), device="meta")).copy_meta_from(volume)
    return copy


def flip_in_place(voxels: np.ndarray, axes: Sequence[int]) -> None:
    """Turn an array `(x, y, z)` round along some of its axes, with memory for one plane across x beside it."""
    across = tuple(axis - 1 for axis in axes if axis > 0)
    for here in range((len(voxels) + 1) // 2 if 0 in axes else len(voxels)):
        there = len(voxels) - 1 - here if 0 in axes else here
        plane = np.flip(voxels[here], across).copy()
        if there != here:
            voxels[here] = np.flip(voxels[there], across)
        voxels[there] = plane
