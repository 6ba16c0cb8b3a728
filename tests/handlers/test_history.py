"""Is an epoch's row what its handlers measured, and does it survive a stop?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.handlers import ValidationHandler

from cyclic_committee.scripts.handlers.history import History, epoch_row, read_history
from cyclic_committee.scripts.runtime.errors import BadInput


def make_trainer(*handlers: Any, first_epoch: int = 1) -> Engine:
    trainer = Engine(lambda engine, batch: None)
    trainer.state.epoch = first_epoch - 1

    @trainer.on(Events.EPOCH_COMPLETED)
    def measure(engine: Engine) -> None:
        engine.state.epoch_statistics = {"loss/member_0": 1 / engine.state.epoch, "kept/member_0": 0.75}

    for handler in handlers:
        handler.attach(trainer)
    return trainer


def make_validator(**metrics: Any) -> SupervisedEvaluator:
    validator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.zeros(1, 1, 2, 2)}],
        network=torch.nn.Identity(),
        iteration_update=lambda engine, batch: {"pred": batch["image"]},
    )
    validator.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.state.metrics.update(metrics))
    return validator


def test_every_epoch_adds_a_row_to_the_state_and_to_the_file(tmp_path: Path) -> None:
    trainer = make_trainer(History(tmp_path / "out"))
    trainer.run([0, 1], max_epochs=2)
    rows = [
        {"epoch": 1, "loss/member_0": 1.0, "kept/member_0": 0.75},
        {"epoch": 2, "loss/member_0": 0.5, "kept/member_0": 0.75},
    ]
    assert trainer.state.history == rows
    assert json.loads((tmp_path / "out" / "history.json").read_text()) == rows


def test_validation_is_only_in_the_rows_of_epochs_that_were_validated(tmp_path: Path) -> None:
    validator = make_validator(dsc_liver=0.9)
    trainer = make_trainer(ValidationHandler(interval=2, validator=validator), History(tmp_path, validator=validator))
    trainer.run([0], max_epochs=5)
    validated = [row["epoch"] for row in trainer.state.history if "validation/dsc_liver" in row]
    assert validated == [2, 4]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, {"m": 0.5}),
        (torch.tensor(0.5), {"m": 0.5}),
        (np.float32(0.5), {"m": 0.5}),
        (2, {"m": 2.0}),
        (torch.tensor([0.5, 0.5]), {}),
        ([0.5], {}),
        ("0.5", {}),
        (None, {}),
    ],
)
def test_a_row_holds_single_numbers_alone(value: object, expected: dict[str, float]) -> None:
    trainer = Engine(lambda engine, batch: None)
    trainer.state.epoch_statistics = {"m": value}
    assert epoch_row(trainer) == {"epoch": 0} | expected


def test_a_trainer_without_statistics_still_has_rows(tmp_path: Path) -> None:
    trainer = Engine(lambda engine, batch: None)
    History(tmp_path).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert trainer.state.history == [{"epoch": 1}, {"epoch": 2}]


def test_a_resumed_training_replaces_the_epochs_that_it_trains_again(tmp_path: Path) -> None:
    make_trainer(History(tmp_path)).run([0], max_epochs=5)
    trainer = make_trainer(History(tmp_path, resume=True), first_epoch=3)
    trainer.run([0], max_epochs=4)
    assert [row["epoch"] for row in read_history(tmp_path / "history.json")] == [1, 2, 3, 4]


def test_a_resumed_training_without_a_file_begins_anew(tmp_path: Path) -> None:
    trainer = make_trainer(History(tmp_path, resume=True))
    trainer.run([0], max_epochs=1)
    assert len(trainer.state.history) == 1


def test_a_new_training_in_an_old_folder_forgets_the_old_rows(tmp_path: Path) -> None:
    make_trainer(History(tmp_path)).run([0], max_epochs=3)
    make_trainer(History(tmp_path)).run([0], max_epochs=1)
    assert len(read_history(tmp_path / "history.json")) == 1


def test_nan_is_null_in_the_file_and_nan_again_when_it_is_read(tmp_path: Path) -> None:
    validator = make_validator(nsd_liver=math.nan)
    trainer = make_trainer(ValidationHandler(interval=1, validator=validator), History(tmp_path, validator=validator))
    trainer.run([0], max_epochs=1)
    path = tmp_path / "history.json"
    assert json.loads(path.read_text())[0]["validation/nsd_liver"] is None
    assert math.isnan(read_history(path)[0]["validation/nsd_liver"])


@pytest.mark.parametrize(
    "text",
    [
        *("", "[{", "3", '{"epoch": 1}', "[3]", "[{}]", '[{"epoch": "one"}]', '[{"epoch": null}]'),
        *('[{"epoch": 1, "loss": "x"}]', '[{"epoch": 1, "loss": [2]}]', '[{"epoch": 1, "loss": true}]'),
        *('[{"epoch": 1, "epoch": 2}]', '[{"epoch": 2}, {"epoch": 1}]', "[" * 100_000, "1" * 5000),
    ],
    ids=range(15),
)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "history.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"history\.json: isn't a history of epochs .* Delete it") as caught:
        make_trainer(History(tmp_path, resume=True)).run([0], max_epochs=1)
    assert "\n" not in str(caught.value)


def test_the_curves_are_drawn_when_the_training_ends_early_too(tmp_path: Path) -> None:
    trainer = make_trainer(History(tmp_path))
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda: trainer.terminate())
    trainer.run([0], max_epochs=9)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["curves.png", "history.json"]
