"""SIGTERM as an exception: a process that is told to end closes what is open first.

A batch system that wants its machine back sends it, and torchrun, to the others when a process is lost. Python would
end on the spot; here SystemExit is raised instead, so that what is open is closed. While a process waits for another
one in PyTorch's C++ code it is raised when the wait is over; torchrun kills whoever is left after 30 seconds.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any


class Termination:
    """Turns the first SIGTERM between `begin` and `ignore` into SystemExit; later ones are ignored until `end`.

    Where somebody else handles SIGTERM, and outside of the main thread, it does nothing.
    """

    def __init__(self) -> None:
        self.before: Any = None  # the handler that `end` puts back

    def begin(self) -> None:
        """Handle SIGTERM from here to `end`."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self.before = signal.signal(signal.SIGTERM, self.leave)

    def leave(self, number: int, frame: FrameType | None) -> None:
        """Raise SystemExit with the exit code that shells give for the signal."""
        self.ignore()
        sys.exit(128 + number)

    def ignore(self) -> None:
        """From here to `end` what is open is closed, which takes a moment and isn't to be cut short."""
        if self.before is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def end(self) -> None:
        """Put back the handler that was there before."""
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
            self.before = None
