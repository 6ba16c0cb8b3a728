from __future__ import annotations

from types import SimpleNamespace

import pytest
from ignite.engine import Engine

from cyclic_committee.scripts.handlers.validation import Validate


class Validator:
    """What runs, and when."""

    def __init__(self, cases: int) -> None:
        self.data_loader = [None] * cases
        self.state = SimpleNamespace(epoch=0)
        self.ran: list[int] = []

    def run(self, epoch: int) -> None:
        self.state.epoch = epoch
        self.ran.append(epoch)


@pytest.mark.parametrize(
    ("interval", "epochs", "ran"),
    [(2, 5, [2, 4, 5]), (2, 4, [2, 4]), (1, 3, [1, 2, 3]), (50, 3, [3]), (3, 1, [1])],
)
def test_it_validates_every_interval_and_once_after_the_last_epoch(interval: int, epochs: int, ran: list[int]) -> None:
    validator, trainer = Validator(cases=2), Engine(lambda engine, batch: None)
    Validate(validator, interval=interval).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    assert validator.ran == ran
    assert validator.state.epoch == epochs  # what the later handlers look at


def test_without_cases_nothing_is_validated() -> None:
    validator, trainer = Validator(cases=0), Engine(lambda engine, batch: None)
    Validate(validator, interval=1).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert validator.ran == []
