from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TINY
from torch import nn

from cyclic_committee.scripts.inference.disagreement import MemberProbabilities, case_disagreement, disagreement
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.networks.committee import Committee
from cyclic_committee.scripts.phantoms.phantom import make_phantom
from cyclic_committee.scripts.runtime.errors import BadInput

VALUES = {key: value for key, value in TINY.items() if key != "crop_size"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom whose first axis runs to the back, its second to the left, its third down."""
    phantom = make_phantom(3)
    straight = nib.Nifti1Image(phantom.image_hu, phantom.affine)
    turn = nib.orientations.axcodes2ornt("PLI")
    path = tmp_path_factory.mktemp("image") / "turned.nii.gz"
    nib.save(straight.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(straight.affine), turn)), path)
    return path


@pytest.mark.parametrize("ensemble_members", [None, [0, 2]], ids=["all", "two"])
def test_the_first_channel_is_the_label_map_and_the_others_are_each_voters_own(
    process_state: None, model: Path, image: Path, ensemble_members: list[int] | None
) -> None:
    predictor = Predictor.from_config(ckpt_path=model, **VALUES, ensemble_members=ensemble_members)
    found = predictor.predict_members(image)
    members = [0, 1, 2] if ensemble_members is None else ensemble_members
    assert found.dtype == torch.uint8
    assert found.shape == (2 + len(members), *nib.load(image).shape)
    assert torch.equal(found[:1].as_tensor(), predictor.predict(image).as_tensor())  # type: ignore[attr-defined]
    for channel, member in enumerate(members, start=1):
        alone = Predictor.from_config(ckpt_path=model, **VALUES, ensemble_members=[member])
        assert torch.equal(found[channel].as_tensor(), alone.predict(image)[0].as_tensor())  # type: ignore[attr-defined]
    apart, labels = found[-1].numpy(), found[1:-1].numpy()
    differ = (labels != labels[0]).any(axis=0)
    assert differ.any()
    assert apart[differ].mean() > apart[~differ].mean()
    assert np.allclose(found.affine, nib.load(image).affine)  # type: ignore[attr-defined]


def test_one_voter_has_nobody_to_disagree_with(process_state: None, model: Path, image: Path) -> None:
    predictor = Predictor.from_config(ckpt_path=model, **VALUES, ensemble_members=[1])
    with pytest.raises(BadInput, match="ensemble_members: one member has nobody to disagree with"):
        predictor.predict_members(image)


def test_their_mean_is_the_committees_to_the_last_bit() -> None:
    torch.manual_seed(0)
    committee = Committee([nn.Conv2d(1, 4, 3, padding=1) for _ in range(3)])
    image = torch.randn(2, 1, 9, 9)
    assert torch.equal(MemberProbabilities(committee)(image)[:, :4], committee(image))


SURE = {0: [1.0, 0.0, 0.0], 1: [0.0, 1.0, 0.0], 2: [0.0, 0.0, 1.0]}


def test_a_committee_of_a_bundle_of_version_0_1_is_understood() -> None:
    committee: Any = Committee([nn.Conv2d(1, 2, 1) for _ in range(3)])
    committee.voters = [2, 0]
    del committee.ensemble_members
    assert MemberProbabilities(committee).ensemble_members == [0, 2]


@pytest.mark.parametrize(
    ("per_member", "expected"),
    [
        ([SURE[0], SURE[0]], 0.0),
        ([SURE[0], SURE[1]], 1.0),
        ([SURE[0], SURE[1], SURE[2]], 1.0),
        ([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]], 0.0),  # unsure alike
        ([SURE[0], SURE[0], SURE[1]], (np.log(3) - 2 / 3 * np.log(2)) / np.log(3)),
        ([[0.75, 0.25, 0.0], [0.25, 0.75, 0.0]], 0.75 * np.log2(3) - 1),
    ],
)
def test_members_disagree_that_are_sure_of_different_classes(per_member: list[list[float]], expected: float) -> None:
    pixels = torch.tensor(per_member)[None, :, :, None, None].expand(-1, -1, -1, 2, 3)  # (1, members, classes, 2, 3)
    found = disagreement(pixels)
    assert found.shape == (1, 2, 3)
    assert torch.allclose(found, torch.full((1, 2, 3), expected), atol=1e-6)


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ([[0, 0, 0, 0], [0, 0, 0, 0]], 0.0),  # nobody sees anything
        ([[1, 1, 2, 0], [1, 1, 2, 0]], 0.0),
        ([[1, 1, 0, 0], [0, 0, 1, 1]], 1.0),
        ([[1, 1, 0, 0], [1, 0, 0, 0]], 1 - 2 / 3),
        ([[1, 1, 2, 0], [1, 0, 0, 0]], 1 - (2 / 3 + 0) / 2),
        ([[1, 1], [1, 1], [0, 0]], 1 - (1 + 0 + 0) / 3),
        ([[2, 0], [2, 0], [1, 2]], 1 - (1 + 0 + 0 + 0 + 0) / 5),  # the first two don't see organ 1
    ],
)
def test_a_cases_disagreement_is_that_of_its_organs(maps: list[list[int]], expected: float) -> None:
    found = case_disagreement(torch.tensor(maps, dtype=torch.uint8)[:, None, None])
    assert found == pytest.approx(expected)
