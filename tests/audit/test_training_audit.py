"""The audit inside a training: which cases are left out and why, and that a stopped training goes on the same."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from cyclic_committee.scripts.audit.training_audit import (
    LabelAgreement,
    LeaveOutSuspects,
    RestartedPolynomial,
    read_judged,
    told_of,
)
from cyclic_committee.scripts.data.slice_dataset import SliceSampler
from cyclic_committee.scripts.runtime.errors import BadInput

LABELS = {"1": "liver", "2": "kidney"}
NAMES = [f"case_{number:02d}" for number in range(10)]
Train = Callable[..., Path]


class Evaluator(Engine):
    """Says what it was given, as the evaluator does after it has labelled all cases."""

    def __init__(self, dsc: np.ndarray) -> None:
        super().__init__(lambda *_: None)
        counts = {f"{name}.nii.gz": [[100, 50], [100, 50], agreed(row)] for name, row in zip(NAMES, dsc, strict=True)}
        self.state.metric_details = {"agreement": counts}
        self.runs = 0

    def run(self, *_: Any, **__: Any) -> Any:
        self.runs += 1


def agreed(dsc: np.ndarray) -> list[float]:
    return (np.array([100, 50]) * dsc).tolist()


def audited(folder: Path, dsc: np.ndarray, *, epochs: int = 3, **settings: Any) -> tuple[Evaluator, Any, Engine]:
    """Train for some epochs that do nothing, with an audit after the second."""
    evaluator, sampler = Evaluator(dsc), SliceSampler(batch_size=2, iterations_per_epoch=1)
    data = [{"image": "", "label": f"{name}.nii.gz"} for name in NAMES]
    usual = {"labels": LABELS, "epoch": 2, "output_dir": str(folder)}
    handler = LeaveOutSuspects(evaluator=evaluator, sampler=sampler, data=data, **{**usual, **settings})
    trainer = Engine(lambda *_: None)
    handler.attach(trainer)
    trainer.run([0], max_epochs=epochs)
    return evaluator, sampler, trainer


def right(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal([0.95, 0.9], 0.01, (10, 2))


def test_a_case_with_one_wrong_organ_is_left_out_and_told_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dsc = right()
    dsc[3, 1], dsc[7, 0] = 0.4, 0.7
    evaluator, sampler, trainer = audited(tmp_path, dsc)
    assert evaluator.runs == 1
    assert sampler.left_out == (3, 7)
    assert trainer.state_dict()["left_out"] == [3, 7]
    judged = {one.case: one for one in read_judged(tmp_path / "left_out.csv")}
    assert list(judged) == NAMES
    one = judged["case_03"]
    assert (one.left_out, one.label, one.epoch) == ("yes", "kidney", 2)
    assert one.dsc < one.least_dsc < one.usual_dsc
    told = told_of(tmp_path)
    assert told.startswith("label audit: 2 of 10 cases are left out from epoch 3 on: case_03 (kidney: DSC 0.4")
    assert capsys.readouterr().out.strip().endswith(told)


def test_half_of_the_cases_may_be_wrong(tmp_path: Path) -> None:
    dsc = right()
    dsc[:5] -= np.linspace(0.15, 0.6, 5)[:, None]
    assert audited(tmp_path, dsc)[1].left_out == (0, 1, 2, 3, 4)


def test_nothing_is_left_out_where_all_are_alike_and_nothing_before_the_audit(tmp_path: Path) -> None:
    evaluator, sampler, trainer = audited(tmp_path, right())
    assert (sampler.left_out, trainer.state.left_out) == ((), [])
    assert told_of(tmp_path) == "label audit: no case is left out from epoch 3 on, of 10"
    evaluator, sampler, trainer = audited(tmp_path / "short", right(), epochs=2)  # no epoch is left to train
    assert (evaluator.runs, trainer.state.left_out) == (0, None)
    assert told_of(tmp_path / "short") == ""
    evaluator, sampler, trainer = audited(tmp_path, right(), epochs=2)  # nor is an earlier training's table believed
    assert told_of(tmp_path) == ""


def test_more_than_six_in_ten_are_too_many_to_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dsc = right()
    dsc[:4, 0] -= 0.4
    dsc[4:7, 1] -= 0.4
    with caplog.at_level(logging.WARNING):
        sampler = audited(tmp_path, dsc)[1]
    assert sampler.left_out == ()
    assert "7 of 10 training cases" in caplog.text
    assert {one.left_out for one in read_judged(tmp_path / "left_out.csv")} == {"no"}


def test_what_a_person_trusts_stays(tmp_path: Path) -> None:
    dsc = right()
    dsc[[3, 7]] = 0.4
    assert audited(tmp_path, dsc, trusted=["case_07"])[1].left_out == (3,)
    assert {one.case: one.left_out for one in read_judged(tmp_path / "left_out.csv")}["case_07"] == "trusted"
    (tmp_path / "names.txt").write_text("case_03\ncase_07  # I looked\n")
    assert audited(tmp_path, dsc, trusted=str(tmp_path / "names.txt"))[1].left_out == ()
    with pytest.raises(BadInput, match="trusted: case_99 is no training case"):
        audited(tmp_path, dsc, trusted=["case_99"])


def test_the_set_stays_as_it_is_when_a_training_goes_on(tmp_path: Path) -> None:
    dsc = right()
    dsc[3] = 0.4
    _, _, begun = audited(tmp_path, dsc)
    evaluator, sampler = Evaluator(right()), SliceSampler(batch_size=2, iterations_per_epoch=1)
    data = [{"image": "", "label": f"{name}.nii.gz"} for name in NAMES]
    handler = LeaveOutSuspects(
        evaluator=evaluator, sampler=sampler, data=data, labels=LABELS, epoch=2, output_dir=str(tmp_path)
    )
    trainer = Engine(lambda *_: None)
    handler.attach(trainer)
    trainer.load_state_dict(begun.state_dict() | {"max_epochs": 5})
    trainer.run([0])
    assert (evaluator.runs, sampler.left_out) == (0, (3,))


def test_a_table_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "left_out.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match=r"left_out\.csv: is no table of left-out cases"):
        told_of(tmp_path)


def test_voxels_are_counted_by_label() -> None:
    metric = LabelAgreement(labels={"2": "kidney", "5": "spleen"})
    label = MetaTensor(torch.tensor([[[[0, 2, 2, 5]]]]), meta={"filename_or_obj": "a.nii.gz"})
    pred = torch.tensor([[[[2, 2, 0, 5]]]])
    metric.update([{"label": label, "pred": pred}])
    assert metric.all_counts() == {"a.nii.gz": [[2, 1], [2, 1], [1, 1]]}
    assert 0 < metric.compute() < 1


def test_the_learning_rate_begins_anew_at_half() -> None:
    factor = RestartedPolynomial(max_epochs=30, restart=20)
    assert [factor(0), factor(20), factor(30)] == [1, 0.5, 0]
    assert factor(10) == pytest.approx((2 / 3) ** 0.9)
    assert factor(25) == pytest.approx(0.5 * 0.5**0.9)


OVERLAY = "variants/audited.yaml"
SETTINGS: dict[str, Any] = {"max_epochs": 3, "fold": "none"}
ALL_TRUSTED = {"trusted": [f"train_00{number}" for number in range(5)]}


def same_weights(one: Path, two: Path) -> bool:
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (one, two))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_without_suspects_it_trains_as_a_plain_ensemble_with_that_schedule(train: Train, tmp_path: Path) -> None:
    audited_run = train(tmp_path / "audited", OVERLAY, **SETTINGS)
    with (audited_run / "left_out.csv").open() as file:
        assert {row["left_out"] for row in csv.DictReader(file)} == {"no"}
    schedule = {
        "_target_": "torch.optim.lr_scheduler.LambdaLR",
        "optimizer": "@optimizer",
        "lr_lambda": "$lambda epoch: (1 - epoch / 3) ** 0.9 if epoch < 2 else 0.5",
    }
    plain = train(tmp_path / "plain", "variants/every_sample.yaml", **SETTINGS, lr_scheduler=schedule)
    assert same_weights(audited_run, plain)


def test_a_training_stopped_after_its_audit_goes_on_to_the_same_weights(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped_after: Callable[[int], AbstractContextManager[None]],
) -> None:
    def one_suspect(dsc: np.ndarray, *, shown: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
        usual = np.full(dsc.shape[1], -1.0)
        usual[0] = dsc[:, 0].min() + 0.08 + 1e-6
        return usual, np.zeros(dsc.shape[1])

    monkeypatch.setattr("scripts.audit.training_audit.usual_dsc", one_suspect)  # a tiny training finds none by itself
    settings = {**SETTINGS, "max_epochs": 4, "audit_epoch": 2}
    whole = train(tmp_path / "whole", OVERLAY, **settings)
    assert [one.left_out for one in read_judged(whole / "left_out.csv")].count("yes") == 1
    stopped = tmp_path / "stopped"
    with stopped_after(3):
        train(stopped, OVERLAY, **settings)
    assert not (stopped / "model.pt").exists()
    train(stopped, OVERLAY, **settings, resume=True)
    assert same_weights(whole, stopped)
    assert not same_weights(whole, train(tmp_path / "all", OVERLAY, **settings, **ALL_TRUSTED))
