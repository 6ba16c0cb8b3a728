"""Progress bars, and a line of text for each epoch."""

from __future__ import annotations

import time
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm


class ProgressBar:
    """A bar with the time left over all of an engine's iterations; nothing where no terminal listens.

    Args:
        description: in front of the bar.
        unit: what an iteration is.
    """

    def __init__(self, description: str, *, unit: str) -> None:
        self.description = description
        self.unit = unit
        self.bar: Any = None

    def attach(self, engine: Engine) -> None:
        """Show the bar from start to end, also to an end by error."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
        engine.add_event_handler(Events.COMPLETED, self.close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def start(self, engine: Engine) -> None:
        """Open the bar: a resumed training has only its rest before it."""
        epochs_left = (engine.state.max_epochs or 1) - engine.state.epoch
        total = epochs_left * (engine.state.epoch_length or 0)
        self.bar = tqdm(total=total, desc=self.description, unit=self.unit, leave=False, disable=None)

    def step(self, engine: Engine) -> None:
        """Go one iteration on."""
        self.bar.update(1)

    def close(self, engine: Engine) -> None:
        """Take the bar away."""
        self.bar.close()

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Take the bar away and let the error through."""
        if self.bar is not None:
            self.bar.close()
        raise error


class EpochLine:
    """One line an epoch: losses, what was kept, validation, time.

    Args:
        validator: the evaluator that ran in this epoch, or None.
    """

    def __init__(self, validator: Engine | None = None) -> None:
        self.validator = validator
        self.began_s = 0.0

    def attach(self, engine: Engine) -> None:
        """Print at every epoch's end."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.print_line)

    def start(self, engine: Engine) -> None:
        """Take the time."""
        self.began_s = time.monotonic()

    def print_line(self, engine: Engine) -> None:
        """Print the line above the bar."""
        metrics: dict[str, float] = {}
        if self.validator is not None and self.validator.state.epoch == engine.state.epoch:
            metrics = self.validator.state.metrics
        tqdm.write(
            epoch_line(
                engine.state.epoch,
                engine.state.max_epochs or 0,
                statistics=getattr(engine.state, "epoch_statistics", {}),
                metrics=metrics,
                seconds=time.monotonic() - self.began_s,
            )
        )


def epoch_line(
    epoch: int, max_epochs: int, *, statistics: dict[str, float], metrics: dict[str, float], seconds: float
) -> str:
    """Return the line of an epoch, such as `epoch  3/12  loss 0.81 0.83 0.80  kept 75 %  DSC 0.84 (...)  19 s`."""

    def values(prefix: str) -> list[float]:
        return [value for name, value in statistics.items() if name.startswith(prefix)]

    parts = [f"epoch {epoch:{len(str(max_epochs))}d}/{max_epochs}"]
    if losses := values("loss/"):
        parts.append("loss " + " ".join(f"{loss:.3f}" for loss in losses))
    if kept := values("kept/"):
        parts.append(f"kept {100 * sum(kept) / len(kept):.0f} %")
    if overlap := values("agreement/"):
        parts.append(f"agreement {100 * sum(overlap) / len(overlap):.0f} %")
    if "dsc_mean" in metrics:
        organs = {name.removeprefix("dsc_"): value for name, value in metrics.items() if name.startswith("dsc_")}
        of_organs = ", ".join(f"{organ} {value:.2f}" for organ, value in organs.items() if organ != "mean")
        parts.append(f"DSC {metrics['dsc_mean']:.3f} ({of_organs})")
    parts.append(f"{seconds:.0f} s")
    return "  ".join(parts)
