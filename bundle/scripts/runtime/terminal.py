"""What the terminal shows: our lines, and none that libraries have for programmers."""

from __future__ import annotations

import logging
import warnings

NOISE = ("monai", "ignite", "torch", "mlflow", "alembic")  # their warnings are for programmers, not for users


def quiet() -> None:
    """Keep from the terminal what libraries tell programmers."""
    for module in NOISE:
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
        logging.getLogger(module).setLevel(logging.CRITICAL)  # errors come as exceptions
