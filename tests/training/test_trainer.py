from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.networks.nets import SegResNet, UNet
from torch import Tensor, nn

from cyclic_committee.scripts.networks.committee import Committee
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.runtime.errors import BadInput
from cyclic_committee.scripts.training.loss import NnUNetLoss, cross_entropy_per_sample
from cyclic_committee.scripts.training.selection import EverySample, LossDifference, Rule, SmallLoss
from cyclic_committee.scripts.training.trainer import CommitteeTrainer, Selection


def batch(samples: int = 4, size: int = 16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(samples, 1, size, size, generator=generator),
        "label": torch.randint(0, 3, (samples, 1, size, size), generator=generator, dtype=torch.uint8),
        "case": [f"case_{i}" for i in range(samples)],
        "slice": torch.arange(samples),
    }


def make(rule: Rule, *, members: list[nn.Module] | None = None, batches: int = 1, **arguments: Any) -> CommitteeTrainer:
    torch.manual_seed(0)
    members = members or [UNet2d(in_channels=1, out_channels=3, features=[4, 8, 8]) for _ in range(3)]
    network = Committee(members)
    return CommitteeTrainer(
        **{
            "device": "cpu",
            "max_epochs": 1,
            "train_data_loader": [batch()] * batches,
            "network": network,
            "optimizer": torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True),
            "loss_function": NnUNetLoss(),
            "select": rule,
            "precision": "float32",
            **arguments,
        }
    )


def selection_of(trainer: CommitteeTrainer) -> Selection:
    return trainer.state.selection


def test_an_iteration_is_score_select_and_update_as_the_paper_has_it() -> None:
    trainer = make(LossDifference(keep=0.5))
    members = [copy.deepcopy(member).train() for member in trainer.network.members]
    trainer.run()

    image, label = batch()["image"], batch()["label"]
    losses = torch.stack([cross_entropy_per_sample(member(image)[0], label) for member in members]).detach()
    assert torch.allclose(selection_of(trainer).losses, losses, atol=1e-6)
    for k, member in enumerate(members):
        p, q = (peer for peer in range(3) if peer != k)
        chosen = (losses[p] - losses[q]).abs().argsort()[:2].sort().values
        assert selection_of(trainer).kept[k].nonzero()[:, 0].tolist() == chosen.tolist()
        optimizer = torch.optim.SGD(member.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        NnUNetLoss()(member(image[chosen]), label[chosen]).backward()
        nn.utils.clip_grad_norm_(member.parameters(), 12.0)
        optimizer.step()
        for ours, expected in zip(trainer.network.members[k].parameters(), member.parameters(), strict=True):
            assert torch.allclose(ours, expected, atol=1e-6)


def test_all_scores_are_taken_before_any_update() -> None:
    trainer = make(SmallLoss())
    before = copy.deepcopy(trainer.network).train()
    trainer.run()
    image, label = batch()["image"], batch()["label"]
    for k, member in enumerate(before.members):
        expected = cross_entropy_per_sample(member(image)[0], label)
        assert torch.allclose(selection_of(trainer).losses[k], expected, atol=1e-6)


def test_the_gradients_of_each_member_are_clipped_by_its_own_norm() -> None:
    class Steep(NnUNetLoss):
        def forward(self, output: Any, label: Tensor) -> Tensor:
            return 1e4 * super().forward(output, label)

    trainer = make(LossDifference(), loss_function=Steep(), gradient_clip=0.5)
    trainer.run()
    for member in trainer.network.members:
        norm = torch.stack([parameter.grad.norm() for parameter in member.parameters() if parameter.grad is not None])
        assert norm.norm().item() == pytest.approx(0.5, rel=1e-3)


def test_gradients_stay_where_they_were_and_no_others_appear() -> None:
    trainer = make(LossDifference(), batches=3)
    seen: list[dict[str, Any]] = []

    def look(engine: Any) -> None:
        gradients = {name: parameter.grad for name, parameter in trainer.network.named_parameters()}
        seen.append({name: None if g is None else (g.data_ptr(), g.clone()) for name, g in gradients.items()})

    trainer.add_event_handler("ITERATION_COMPLETED", look)
    trainer.run()
    first, second, third = seen
    for name, found in first.items():
        if found is None:
            assert name.endswith("heads.0.conv.weight")  # the coarsest: its weight in the loss is 0
            assert second[name] is third[name] is None
        else:
            assert found[0] == second[name][0] == third[name][0]
            assert not torch.equal(found[1], second[name][1])  # not added up, and not the last ones


def test_the_output_is_what_monais_handlers_expect() -> None:
    trainer = make(LossDifference())
    trainer.run()
    output = trainer.state.output  # decollated: a list of samples
    assert len(output) == 4
    assert set(output[0]) == {"image", "label", "pred", "loss"}
    assert output[0]["pred"].shape == (3, 16, 16)
    assert torch.allclose(output[0]["pred"].sum(dim=0), torch.ones(16, 16), atol=1e-5)
    assert float(output[0]["loss"]) == pytest.approx(selection_of(trainer).training_loss.mean().item())


def test_the_rule_sees_the_epoch() -> None:
    trainer = make(LossDifference(keep=0.25, warmup_epochs=2), max_epochs=3)
    kept: list[int] = []
    trainer.add_event_handler("EPOCH_COMPLETED", lambda engine: kept.append(int(engine.state.selection.kept[0].sum())))
    trainer.run()
    assert kept == [4, 3, 1]  # 1.0, 0.625 and 0.25 of 4


def test_any_architecture_can_be_a_member() -> None:
    members: list[nn.Module] = [
        UNet(2, 1, 3, channels=[4, 8], strides=[2]),
        SegResNet(2, init_filters=8, in_channels=1, out_channels=3),
        UNet2d(in_channels=1, out_channels=3, features=[4, 8, 8]),
        UNet2d(in_channels=1, out_channels=3, features=[4, 4]),
    ]
    before = [copy.deepcopy(member.state_dict()) for member in members]
    trainer = make(LossDifference(), members=members)
    trainer.run()
    for member, old in zip(members, before, strict=True):
        assert any(not torch.equal(value, old[name]) for name, value in member.state_dict().items())
    assert int(trainer.network.iterations_trained) == 1


def test_training_lowers_the_loss() -> None:
    trainer = make(EverySample(), batches=30)
    seen: list[float] = []
    trainer.add_event_handler(
        "ITERATION_COMPLETED", lambda engine: seen.append(engine.state.selection.training_loss.mean())
    )
    trainer.run()
    assert seen[-1] < 0.9 * seen[0]


def test_bfloat16_chooses_and_learns_nearly_as_float32() -> None:
    full, half = make(SmallLoss()), make(SmallLoss(), precision="bfloat16")
    full.run(), half.run()
    assert torch.allclose(selection_of(full).losses, selection_of(half).losses, rtol=0.05)
    assert selection_of(half).training_loss.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in half.network.parameters())


def test_two_members_with_a_committee_rule_are_refused_before_training() -> None:
    two: list[nn.Module] = [UNet2d(in_channels=1, out_channels=3, features=[4, 8]) for _ in range(2)]
    with pytest.raises(BadInput, match="network_def has 2 members, but LossDifference needs 3 or more"):
        make(LossDifference(), members=two)


@pytest.mark.parametrize(("poison", "where"), [("image", "member 0"), ("weights", "member 2")])
def test_a_loss_that_is_not_a_number_names_the_member_and_the_case(poison: str, where: str) -> None:
    data = batch()
    trainer = make(LossDifference(), train_data_loader=[data])
    if poison == "image":
        data["image"][2] = float("nan")
    else:
        with torch.no_grad():
            next(trainer.network.members[2].parameters()).fill_(float("nan"))
    before = {name: value.clone() for name, value in trainer.network.members[0].named_parameters()}
    case = "slice 2 of case case_2" if poison == "image" else "slice 0 of case case_0"
    with pytest.raises(BadInput, match=f"The loss of {where} is nan on {case}"):
        trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.members[0].named_parameters())


def test_the_sampler_learns_the_epoch() -> None:
    epochs: list[int] = []

    class Sampler:
        def set_epoch(self, epoch: int) -> None:
            epochs.append(epoch)

    class Loader(list):
        batch_sampler = Sampler()

    make(EverySample(), train_data_loader=Loader([batch()]), max_epochs=3, epoch_length=1).run()
    assert epochs == [0, 1, 2]


@pytest.mark.parametrize(
    ("precision", "message"),
    [("half", "precision must be one of auto, float32, bfloat16, float16, got half"), ("float16", "needs a GPU")],
)
def test_an_impossible_precision_is_refused(precision: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make(LossDifference(), precision=precision)


def test_handlers_with_an_order_go_before_or_after_the_others() -> None:
    ran = []

    class Handler:
        def __init__(self, order: int | None) -> None:
            self.name = order
            if order is not None:
                self.order = order

        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.STARTED, lambda: ran.append(self.name))

    make(EverySample(), train_handlers=[Handler(1), Handler(None), Handler(0), Handler(-1)]).run()
    assert ran == [-1, None, 0, 1]
