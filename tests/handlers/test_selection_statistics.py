from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cyclic_committee.scripts.handlers import progress
from cyclic_committee.scripts.handlers.progress import epoch_line
from cyclic_committee.scripts.handlers.selection_statistics import epoch_statistics

KEPT = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
SCORES = torch.tensor([[1.0, 3.0, 5.0, 9.0], [2.0, 4.0, 6.0, 8.0], [1.0, 1.0, 1.0, 1.0]])
TRAINING_LOSSES = torch.tensor([[0.5, 1.0, 2.0], [0.7, 1.0, 4.0]])  # two iterations


def test_an_epochs_statistics_are_told_for_each_member() -> None:
    statistics = epoch_statistics(TRAINING_LOSSES, KEPT, SCORES)
    expected: dict[str, Any] = {
        "loss/member_0": 0.6,
        "loss/member_2": 3.0,
        "kept/member_0": 0.5,
        "kept/member_2": 1.0,
        "score_kept/member_0": 2.0,
        "score_dropped/member_0": 7.0,
        "score_kept/member_1": 4.0,
        "score_dropped/member_1": 6.0,
        "agreement/members_0_1": 0.5,
        "agreement/members_0_2": 0.5,
    }
    assert {name: statistics[name] for name in expected} == pytest.approx(expected)
    assert "score_dropped/member_2" not in statistics  # a mean over nothing


def test_a_person_can_read_an_epochs_line() -> None:
    statistics = epoch_statistics(TRAINING_LOSSES, KEPT, SCORES)
    metrics = {"mean_dsc": 0.84, "dsc_mean": 0.84, "dsc_liver": 0.95, "dsc_pancreas": 0.7, "nsd_liver": 0.6}
    line = epoch_line(3, 12, statistics=statistics, metrics=metrics, seconds=19.2)
    assert line == (
        "epoch  3/12  loss 0.600 1.000 3.000  kept 67 %  agreement 50 %  DSC 0.840 (liver 0.95, pancreas 0.70)  19 s"
    )


def test_an_epoch_without_validation_has_no_scores_in_its_line() -> None:
    assert epoch_line(1, 2, statistics={"loss/member_0": 1.0}, metrics={}, seconds=1.0) == "epoch 1/2  loss 1.000  1 s"


def test_progress_counts_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    monkeypatch.setattr(progress, "tqdm", lambda total, **_: opened.append(total))
    bar = progress.ProgressBar("training", unit="iteration")
    for state, left in [((0, 10, 250), 2500), ((7, 10, 250), 750), ((4, 5, 3), 3)]:
        epoch, max_epochs, length = state
        bar.start(SimpleNamespace(state=SimpleNamespace(epoch=epoch, max_epochs=max_epochs, epoch_length=length)))
        assert opened[-1] == left
