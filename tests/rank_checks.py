"""What two processes check together; `test_distributed.py` starts them. Each check says that it is reached."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from torch import nn

from cyclic_committee.scripts.audit.training_audit import LabelAgreement, LeaveOutSuspects
from cyclic_committee.scripts.data.slice_dataset import SliceSampler
from cyclic_committee.scripts.training.distributed import (
    GlobalSelection,
    LocalSelection,
    RankSampler,
    in_turn,
    join,
    leave,
)
from cyclic_committee.scripts.training.loss import GlobalNnUNetLoss, NnUNetLoss
from cyclic_committee.scripts.training.selection import LossDifference, RandomSubset


def gradients_count_by_their_samples() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    image = torch.randn(4, 2, 8, 8)  # (samples of both processes, ...)
    for counts in ([2, 2], [3, 1], [4, 0], [0, 4]):
        start = sum(counts[: idist.get_rank()])
        own = image[start : start + counts[idist.get_rank()]]
        layer.zero_grad()
        (
            layer(own).square().mean() if len(own) else layer(image).sum() * torch.nan
        ).backward()  # 0 samples, not 0 * NaN
        if idist.get_rank() == 1:  # another order of memory must do no harm
            layer.weight.grad = layer.weight.grad.contiguous()
        LocalSelection().average(layer, len(own))()
        expected = torch.autograd.grad(layer(image).square().mean(), list(layer.parameters()))
        for parameter, gradient in zip(layer.parameters(), expected, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-6), counts


def there_is_one_decision() -> None:
    losses = torch.tensor(
        [[0.1, 0.9, 0.3, 0.4, 0.5, 0.6], [0.2, 0.1, 0.8, 0.3, 0.1, 0.9], [0.7, 0.2, 0.2, 0.9, 0.4, 0.1]]
    )
    own = losses[:, idist.get_rank() :: 2]
    scores, kept = GlobalSelection().choose(LossDifference(keep=0.5), own)
    assert torch.equal(kept, LossDifference(keep=0.5)(losses)[:, idist.get_rank() :: 2])
    assert torch.equal(scores, LossDifference(keep=0.5).scores(losses)[:, idist.get_rank() :: 2])
    torch.manual_seed(idist.get_rank())  # processes that throw other dice agree all the same
    _, kept = GlobalSelection().choose(RandomSubset(keep=0.5), own)
    assert idist.all_reduce(kept.sum(dim=1)).tolist() == [3, 3, 3]
    _, kept = LocalSelection().choose(LossDifference(keep=0.67), own)
    assert torch.equal(kept, LossDifference(keep=0.67)(own))


def the_loss_is_that_of_all_samples() -> None:
    torch.manual_seed(1)
    heads = [torch.randn(5, 3, size, size) for size in (16, 8, 4)]
    label = torch.randint(0, 3, (5, 1, 16, 16)).to(torch.uint8)
    for split in (5, 3, 0):
        part = slice(0, split) if idist.get_rank() == 0 else slice(split, 5)
        own = [head[part].clone().requires_grad_() for head in heads]
        loss = GlobalNnUNetLoss()(own, label[part])
        whole = [head.clone().requires_grad_() for head in heads]
        expected = NnUNetLoss()(whole, label)
        assert torch.allclose(loss, expected, atol=1e-6)
        gradients = torch.autograd.grad(loss, own[:2])
        of_all = torch.autograd.grad(expected, whole[:2])
        samples = len(label[part])
        for gradient, reference in zip(gradients, of_all, strict=True):
            assert torch.allclose(gradient * samples / 5, reference[part], atol=1e-7)


def an_epoch_begins_with_one_network_and_several_dice() -> None:
    layer = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    layer[1].running_mean.fill_(idist.get_rank())
    torch.manual_seed(5)
    LocalSelection().agree(layer, 3)
    drawn = idist.all_gather(torch.rand(1))
    assert drawn[0] != drawn[1]
    torch.manual_seed(5)
    LocalSelection().agree(layer, 3)
    assert torch.equal(idist.all_gather(torch.rand(1)), drawn)
    for tensor in layer.state_dict().values():
        both = idist.all_gather(tensor.reshape(1, -1).float())
        assert torch.equal(both[0], both[1])


def cases_and_samples_are_shared_out() -> None:
    for cases in (0, 1, 2, 5):
        own = list(RankSampler(range(cases)))
        assert len(own) == len(RankSampler(range(cases)))
        everyone = idist.all_gather(torch.tensor([*own, *[-1] * (5 - len(own))]))
        assert set(everyone.tolist()) - {-1} == set(range(cases))
        assert bool(own) == (cases > 0)
    own = list(SliceSampler(batch_size=4, iterations_per_epoch=2, seed=1))
    seeds = torch.tensor([[draw.seed for draw in batch] for batch in own])
    forced = sum(draw.foreground for draw in own[0])
    assert len(set(idist.all_gather(seeds).flatten().tolist())) == 16
    assert idist.all_gather(forced) == [1, 2]  # of 8 samples three: places 5, 6 and 7


def folders_are_filled_once(folder: Path) -> None:
    def fill() -> list[str]:
        found = [path.name for path in folder.iterdir()]
        (folder / f"by_{idist.get_rank()}").touch()
        return found

    assert in_turn(fill) == ([] if idist.get_rank() == 0 else ["by_0"])


class Labelled:
    """An evaluator that has labelled this process' cases: all but the fourth, of ten, as their labels have it."""

    def __init__(self) -> None:
        metric = LabelAgreement(labels={"1": "liver"})
        right = torch.ones(1, 2, 2, 2)
        for number in range(10)[idist.get_rank() :: 2]:
            label = MetaTensor(right, meta={"filename_or_obj": f"{number}.nii.gz"})
            metric.update([{"label": label, "pred": right * (number != 3)}])
        self.state = SimpleNamespace(metric_details={"agreement": metric.all_counts()})

    def run(self) -> None:
        """Nothing is left to do."""


def all_leave_out_the_same(folder: Path) -> None:
    sampler = SliceSampler(batch_size=2, iterations_per_epoch=1)
    data = [{"image": "", "label": f"{number}.nii.gz"} for number in range(10)]
    handler = LeaveOutSuspects(
        evaluator=Labelled(), sampler=sampler, data=data, labels={"1": "liver"}, epoch=1, output_dir=str(folder)
    )
    trainer = Engine(lambda *_: None)
    handler.attach(trainer)
    trainer.run([0], max_epochs=2)
    assert sampler.left_out == (3,)


if __name__ == "__main__":
    join("cpu")
    for check in (
        gradients_count_by_their_samples,
        there_is_one_decision,
        the_loss_is_that_of_all_samples,
        an_epoch_begins_with_one_network_and_several_dice,
        cases_and_samples_are_shared_out,
    ):
        check()
        print(f"{check.__name__} {idist.get_rank()}", flush=True)
    folders_are_filled_once(Path(sys.argv[1]))
    print(f"folders_are_filled_once {idist.get_rank()}", flush=True)
    all_leave_out_the_same(Path(sys.argv[1]))
    print(f"all_leave_out_the_same {idist.get_rank()}", flush=True)
    leave()
