"""Volumes are turned as MONAI turns them, within their own memory."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd
from torch import Tensor

from cyclic_committee.scripts.transforms.orientation import InPlaceOrientationd

ALL = ["".join(codes) for order in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*order)]


def volume(axcodes: str, *, oblique: bool = False) -> MetaTensor:
    """Return two channels with axes that point as said, voxels of three sizes."""
    orientation = nib.orientations.axcodes2ornt(axcodes)
    shape = (3, 4, 5)
    affine = np.diag([0.8, 0.7, 2.5, 1]) @ nib.orientations.inv_ornt_aff(orientation, shape)
    if oblique:
        turned = 0.3
        turn = np.array([[np.cos(turned), -np.sin(turned), 0], [np.sin(turned), np.cos(turned), 0], [0, 0, 1]])
        affine[:3] = turn @ affine[:3]
    voxels = torch.arange(2 * 60, dtype=torch.int16).reshape(2, *shape)
    return MetaTensor(voxels.clone(), affine=torch.from_numpy(affine), meta={"filename_or_obj": "ct.nii.gz"})


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("axcodes", ALL)
def test_voxels_and_meta_data_are_those_of_monai(axcodes: str, oblique: bool) -> None:
    ours, theirs = (
        InPlaceOrientationd("image", axcodes="RAS", labels=None),
        Orientationd("image", axcodes="RAS", labels=None),
    )
    turned = ours({"image": volume(axcodes, oblique=oblique)})
    expected = theirs({"image": volume(axcodes, oblique=oblique)})
    require_same(turned["image"], expected["image"])
    back = ours.inverse(turned)["image"]
    require_same(back, theirs.inverse(expected)["image"])
    require_same(back, volume(axcodes, oblique=oblique))


def require_same(one: Tensor, other: Tensor) -> None:
    assert isinstance(one, MetaTensor)
    assert isinstance(other, MetaTensor)
    assert torch.equal(one.as_tensor(), other.as_tensor())
    assert one.dtype == other.dtype
    assert torch.allclose(one.affine, other.affine)
    assert one.meta["filename_or_obj"] == other.meta["filename_or_obj"]
    assert len(one.applied_operations) == len(other.applied_operations)


def test_no_other_memory_is_taken() -> None:
    image = volume("PRI")
    place = image.data_ptr()
    transform = InPlaceOrientationd("image", axcodes="RAS", labels=None)
    turned = transform({"image": image})
    assert turned["image"].data_ptr() == place
    assert transform.inverse(turned)["image"].data_ptr() == place


def test_a_tensor_without_an_affine_is_left_to_monai() -> None:
    plain = volume("RAS").as_tensor()
    with pytest.warns(UserWarning, match="identity"):
        found = InPlaceOrientationd("image", axcodes="LAS", labels=None)({"image": plain, "case": "a"})
    assert torch.equal(torch.as_tensor(found["image"]), plain.flip(1))
    assert found["case"] == "a"


def test_turning_can_wait_as_with_monai() -> None:
    found = InPlaceOrientationd("image", axcodes="LAS", labels=None, lazy=True)({"image": volume("RAS")})
    assert len(found["image"].pending_operations) == 1
