"""Where does this bundle lie?"""

from __future__ import annotations

from pathlib import Path


def bundle_root() -> str:
    """Return the folder that holds `configs`, `scripts` and `models`, wherever the bundle was copied to."""
    return str(Path(__file__).resolve().parents[1])
