"""Member predictions and their disagreement: mutual information by pixel, DSC by case."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..networks.committee import Committee, ensemble_attribute
from ..runtime.errors import BadInput
from .inferer import SliceInferer

FULL_SCALE = 255  # disagreement of 1, in the numbers that are stored


class MemberProbabilities(nn.Module):
    """The probabilities of a committee's ensemble members beside their mean, for the same inferer.

    Args:
        committee: with two ensemble members or more.

    Raises:
        BadInput: one ensemble member, which has none to disagree with.
    """

    def __init__(self, committee: Committee) -> None:
        super().__init__()
        self.ensemble_members = sorted(getattr(committee, ensemble_attribute(committee)))
        if len(self.ensemble_members) < 2:
            raise BadInput(
                "ensemble_members: one member has nobody to disagree with. Give two or more, or null for all."
            )
        self.committee = committee
        self.iterations_trained = committee.iterations_trained  # what tells trained weights from random ones

    def forward(self, image: Tensor) -> Tensor:
        """Return softmaxes `(samples, (1 + members) x classes, h, w)`: the mean, then each member's."""
        each = [torch.softmax(self.committee.members[k](image).float(), dim=1) for k in self.ensemble_members]
        total = torch.zeros_like(each[0])
        for probability in each:  # one after another, as Committee has it: the same mean to the last bit
            total += probability
        return torch.cat([total / len(each), *each], dim=1)


@torch.no_grad()
def member_predictions(images: Tensor, network: MemberProbabilities, inferer: SliceInferer) -> Tensor:
    """Return what each ensemble member predicts for volumes, uint8 `(volumes, 2 + members, x, y, z)`.

    Channel 0 is the committee's label map, the same as `SliceInferer` gives; then comes each member's own; the last is
    the members' disagreement in 255ths, see `disagreement`.

    Args:
        images: see `SliceInferer.__call__`.
        network: of a committee.
        inferer: of inference.yaml.

    Raises:
        BadInput: see `SliceInferer.__call__`.
    """
    classes = len(inferer.label_ids)

    def read_out(probability: Tensor, size: Sequence[int]) -> Tensor:
        # (1 + members, classes, *size)
        per_member = inferer.to_probabilities(probability, size).unflatten(0, (-1, classes))
        apart = (FULL_SCALE * disagreement(per_member[1:])).round().to(torch.uint8)
        return torch.cat([inferer.label_ids.to(probability.device)[per_member.max(dim=1).indices], apart[None]])

    channels = 2 + len(network.ensemble_members)
    like = torch.zeros(channels, dtype=torch.uint8, device=images.device)
    return inferer.run(images, network, read_out, like=like)


def disagreement(per_member: Tensor) -> Tensor:
    """Return how much members disagree on pixels, in [0, 1]: `(..., members, classes, h, w)` to `(..., h, w)`.

    It is the mutual information of member and class: the entropy of the mean softmax less the mean entropy of the
    softmaxes, as a share of the most that is possible. Members that are unsure alike don't disagree; members that are
    sure of different classes do. (Houlsby et al., Bayesian active learning for classification, 2011.)
    """
    most = math.log(min(per_member.shape[-4:-2]))
    return ((entropy(per_member.mean(dim=-4)) - entropy(per_member).mean(dim=-3)) / most).clamp(0, 1)


def entropy(probability: Tensor) -> Tensor:
    """Return the entropy over classes, in nats: `(..., classes, h, w)` to `(..., h, w)`."""
    nats: Tensor = torch.special.entr(probability).sum(dim=-3)
    return nats


def case_disagreement(label_maps: Tensor) -> float:
    """Return how much members disagree on a case, in [0, 1]: 1 less the mean DSC of each two members' organs.

    An organ that none of the two sees counts for nothing; where no member sees any organ, all agree: 0.

    Args:
        label_maps: ids, one map a member, `(members, x, y, z)`.
    """
    ids = [int(label) for label in label_maps.unique() if label != 0]
    scores = []
    for one, other in itertools.combinations(label_maps, 2):
        for label in ids:
            of_one, of_other = one == label, other == label
            areas = int(of_one.sum()) + int(of_other.sum())
            if areas:
                scores.append(2 * int((of_one & of_other).sum()) / areas)
    return 1 - sum(scores) / len(scores) if scores else 0.0
