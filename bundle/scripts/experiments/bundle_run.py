"""Running one of a bundle's workflows in a process of its own, as a user would."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..runtime.errors import BadInput

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1  # of Linux' prctl


def run_bundle(bundle: Path, workflow: str, configs: Sequence[str], **values: Path | int | str) -> None:
    """Run one of a bundle's workflows in a process of its own, and stop if it fails.

    On Linux it ends with this process, however this one ends: nobody else writes to its folders afterwards.

    Args:
        bundle: its folder.
        workflow: the id that is run.
        configs: names of files in the bundle's configs, overlays last.
        values: keys of the configuration with their values.

    Raises:
        BadInput: the workflow failed; it has said why.
    """
    command = bundle_command(bundle, workflow, configs, **values)
    if subprocess.run(command, env=quiet_environment(), check=False, preexec_fn=end_with_parent).returncode != 0:
        raise BadInput(f"The workflow {workflow} failed: the reason is in the lines above.")


def bundle_command(bundle: Path, workflow: str, configs: Sequence[str], **values: Path | int | str) -> list[str]:
    """Return the command that runs one of a bundle's workflows; see `run_bundle`."""
    files = [str(bundle / "configs" / config) for config in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", workflow, "--config_file", str(files)]
    for key, value in values.items():
        command += [f"--{key}", str(value)]
    return command


def quiet_environment() -> dict[str, str]:
    """Return this process's environment, without warnings: MONAI warns before the first line of ours is reached."""
    return {**os.environ, "PYTHONWARNINGS": "ignore"}


def end_with_parent() -> None:
    """Ask Linux to kill this process when the one that started it dies."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
