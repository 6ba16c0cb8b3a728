"""Releasing weights: their address and hash in large_files.yml.

`large_files.yml` says so: MONAI's `download_large_files` and the Model Zoo read it, and compare the hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..inference.predictor import Predictor
from ..runtime.atomic_files import write_whole
from ..runtime.errors import BadInput

LARGE_FILES = "large_files.yml"
MODEL = "models/model.pt"
HEADER = """\
# Files above the Model Zoo's limit of 25 MB, each with path, url, hash_val and hash_type: MONAI's download_large_files
# and the zoo fetch them. `cyclic-committee release` enters the weights.
"""


def enter_weights(bundle: str | Path, url: str) -> dict[str, str]:
    """Enter a bundle's weights into its large_files.yml, with their SHA-256, and return the entry.

    Nothing is uploaded. An earlier entry of the weights gives way; other files' entries stay.

    Args:
        bundle: the bundle's folder, with models/model.pt.
        url: where that file can be fetched.

    Raises:
        BadInput: no such address; no weights, or others than configs/inference.yaml alone describes: who fetches them
            has nothing else.
    """
    bundle = Path(bundle)
    if not re.match(r"https?://[^/\s]+/\S+$", url):
        raise BadInput(f"url must be the http(s) address of a file, got {url!r}.")
    weights = bundle / MODEL
    if not weights.is_file():
        raise BadInput(f"{weights}: no such file. Train first; training puts the weights there.")
    Predictor.from_config(bundle=bundle, ckpt_path=weights, device="cpu")
    entry = {"path": MODEL, "url": url, "hash_val": sha256_of(weights), "hash_type": "sha256"}
    write_entries(bundle, [*entries_without_weights(bundle), entry])
    return entry


def forget_weights(bundle: Path) -> None:
    """Take the weights out of a bundle's large_files.yml: a copy is to be trained to others."""
    write_entries(bundle, entries_without_weights(bundle))


def entries_without_weights(bundle: Path) -> list[dict[str, str]]:
    """Return what large_files.yml lists beside the weights; nothing if it isn't there.

    Raises:
        BadInput: it isn't such a list.
    """
    path = bundle / LARGE_FILES
    if not path.is_file():
        return []
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["large_files"] or []
        return [dict(entry) for entry in entries if entry["path"] != MODEL]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: isn't a list of large_files with paths ({error}). Correct it.") from error


def write_entries(bundle: Path, entries: Sequence[dict[str, str]]) -> None:
    """Write large_files.yml, whole or not at all."""
    write_whole(bundle / LARGE_FILES, HEADER + yaml.safe_dump({"large_files": list(entries)}, sort_keys=False))


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
