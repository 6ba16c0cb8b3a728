"""Validation at an interval of epochs."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events


class Validate:
    """Run a validator every so many epochs, and after the last one, so that the last weights have a score.

    As MONAI's `ValidationHandler` it leaves `validator.state.epoch` at the trainer's epoch. Without validation cases it
    does nothing.

    Args:
        validator: an evaluator whose `run` takes the epoch, with its cases in `data_loader`.
        interval: in epochs.
    """

    def __init__(self, validator: Any, *, interval: int) -> None:
        self.validator = validator
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Validate if this epoch's turn has come."""
        state: Any = engine.state
        due = state.epoch % self.interval == 0 or state.epoch == state.max_epochs
        if due and len(self.validator.data_loader) > 0:
            self.validator.run(state.epoch)
