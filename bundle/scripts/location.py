"""Where does this bundle lie, and how does it get elsewhere?"""

from __future__ import annotations

import shutil
from pathlib import Path

from .errors import BadInput

MADE_BY_USE = ("__pycache__", "*.pt", "data", "output", "predictions", "evaluation")


def bundle_root() -> str:
    """Return the folder that holds `configs`, `scripts` and `models`, wherever the bundle was copied to."""
    return str(Path(__file__).resolve().parents[1])


def copy_bundle(folder: Path) -> None:
    """Copy the bundle to a new folder, without what was made by using it.

    Raises:
        BadInput: the folder exists.
    """
    if folder.exists():
        raise BadInput(f"{folder}: exists already. Choose a new folder.")
    shutil.copytree(bundle_root(), folder, ignore=shutil.ignore_patterns(*MADE_BY_USE))


def find_config(name: str) -> Path:
    """Return a configuration file by its path, or by its name in the bundle's configs.

    Raises:
        BadInput: there is none.
    """
    for path in (Path(name), Path(bundle_root(), "configs", name)):
        if path.is_file():
            return path
    raise BadInput(f"{name}: no such configuration file, neither here nor in the bundle's configs. Check the path.")
