"""The bundle's folder, its configurations, and copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from .atomic_files import put_in_place, unfinished_path
from .errors import BadInput

FILES_OF_USE = ("__pycache__", "*.pt", ".unfinished-*")
FOLDERS_OF_USE = {"data", "output", "predictions", "evaluation"}  # beside `scripts`, which has a room `data`


def bundle_root() -> str:
    """Return the folder that holds `configs`, `scripts` and `models`, wherever the bundle was copied to."""
    return str(Path(__file__).resolve().parents[2])


def copy_bundle(folder: Path) -> None:
    """Copy the bundle to a new folder, whole or not at all, without what was made by using it.

    Raises:
        BadInput: the folder exists.
    """
    if folder.exists():
        raise BadInput(f"{folder}: exists already. Choose a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(folder)
    try:
        copy_without_use(Path(bundle_root()), unfinished)
        put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def copy_without_use(bundle: Path, folder: Path) -> None:
    """Copy a bundle to a folder that doesn't exist, without what was made by using it."""
    everywhere = shutil.ignore_patterns(*FILES_OF_USE)

    def made_by_use(place: str, names: list[str]) -> set[str]:
        return everywhere(place, names) | (FOLDERS_OF_USE & set(names) if Path(place) == bundle else set())

    shutil.copytree(bundle, folder, ignore=made_by_use)
