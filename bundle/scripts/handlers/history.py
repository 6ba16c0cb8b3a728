"""Training history: one row of numbers an epoch, and their curves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ..runtime.atomic_files import write_whole
from ..runtime.config_files import read_json
from ..runtime.errors import BadInput
from ..visualize.overlays import draw_curves
from ..visualize.slice_drawing import goes_on


class History:
    """Keeps one row of numbers an epoch: in `engine.state.history`, in `history.json`, and drawn as `curves.png`.

    It stands behind the handlers that make the numbers (the epoch's statistics, the validation), and before those
    that pass them on, such as MLflowTracking. With `resume` the rows of the same folder are continued: those of
    epochs that are trained once more are replaced. The curves are drawn when the training ends.
    """

    def __init__(
        self, output_dir: str | os.PathLike[str], *, validator: Engine | None = None, resume: bool = False
    ) -> None:
        self.path = Path(output_dir) / "history.json"
        self.curves = Path(output_dir) / "pictures" / "curves.png"
        self.validator = validator
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.record)
        engine.add_event_handler(Events.COMPLETED, self.draw)

    def begin(self, engine: Engine) -> None:
        """Start with no rows, or with those of the training that is continued."""
        state: Any = engine.state
        state.history = read_history(self.path) if self.resume else []

    def record(self, engine: Engine) -> None:
        """Add the row of the epoch that ended, and write all rows."""
        state: Any = engine.state
        earlier = [row for row in state.history if row["epoch"] < state.epoch]
        state.history = [*earlier, epoch_row(engine, self.validator)]
        write_history(state.history, self.path)

    def draw(self, engine: Engine) -> None:
        """Draw the curves of all rows."""
        state: Any = engine.state
        if state.history:
            with goes_on("the curves"):
                draw_curves(state.history, self.curves)


def epoch_row(engine: Engine, validator: Engine | None = None) -> dict[str, float]:
    """Return the numbers of the trainer's current epoch.

    They are "epoch", all of `engine.state.epoch_statistics`, and the validator's metrics as "validation/<name>" if it
    ran in this epoch: MONAI's `validator.run(epoch)` leaves its own `state.epoch` at that number.
    What isn't one number (a tensor with an entry a class, say) is left out.
    """
    row: dict[str, float] = {"epoch": engine.state.epoch}
    row |= _numbers(getattr(engine.state, "epoch_statistics", {}))
    if validator is not None and validator.state.epoch == engine.state.epoch:
        row |= {f"validation/{name}": value for name, value in _numbers(validator.state.metrics).items()}
    return row


def read_history(path: Path) -> list[dict[str, float]]:
    """Return the rows of a history file, none if there is no such file.

    Raises:
        BadInput: it is damaged, or holds other things than numbers, in rows of rising epochs.
    """
    if not path.exists():
        return []
    try:
        rows = read_json(path)
        values = [value for row in rows for value in row.values()]
        if any(isinstance(value, bool) or not isinstance(value, int | float | None) for value in values):
            raise ValueError("a value that is no number")
        epochs = [row["epoch"] for row in rows]
        if not all(math.isfinite(epoch) for epoch in epochs) or epochs != sorted(set(epochs)):
            raise ValueError("a row without epoch, or out of turn")
        return [{key: math.nan if value is None else float(value) for key, value in row.items()} for row in rows]
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise BadInput(f"{path}: isn't a history of epochs ({error}). Delete it to begin a new one.") from error


def write_history(rows: list[dict[str, float]], path: Path) -> None:
    """Write rows as JSON, one a line, whole or not at all. JSON has neither NaN nor infinity: they become null."""
    strict = [{key: value if math.isfinite(value) else None for key, value in row.items()} for row in rows]
    write_whole(path, "[\n" + ",\n".join(json.dumps(row) for row in strict) + "\n]\n")


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    numbers = {}
    for name, value in values.items():
        if getattr(value, "ndim", 0) == 0 and hasattr(value, "__float__"):
            numbers[name] = float(value)  # also a tensor or array without axes
    return numbers
