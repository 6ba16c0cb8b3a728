"""Which names may those who talk to the server give to images, labels and tags?"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from fastapi import HTTPException

PLAIN = re.compile(r"(?![.$@%])[^/\\\x00-\x1f\x7f]{1,200}")
UID = re.compile(r"[0-9]+(\.[0-9]+)*")
TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")
ENDINGS = (".nii.gz", ".nii")


def require_image_id(name: str) -> str:
    """Return a name that is a file's name without its ending, and leads nowhere else; else answer 400."""
    return require(PLAIN, name, "no image's id")


def require_uid(name: str) -> str:
    """Return a DICOM UID, or answer 400."""
    return require(UID, name if len(name) <= 64 else "", "no DICOM UID")


def require_tag(name: str) -> str:
    """Return a label's tag, such as final, or answer 400."""
    return require(TAG, name, "no tag: letters, digits, _ and - are allowed")


def require(pattern: re.Pattern[str], name: str, fault: str) -> str:
    """Return a name that fits a pattern, or answer 400."""
    if not pattern.fullmatch(name):
        raise HTTPException(400, f"{name[:100]!r} is {fault}.")
    return name


def require_ending(file: str) -> str:
    """Return the ending of a volume's file, .nii.gz or .nii, or answer 400."""
    name = PurePosixPath(file).name
    for ending in ENDINGS:
        if name.endswith(ending):
            return ending
    raise HTTPException(400, f"{name[:100]!r} is no NIfTI file: send .nii.gz or .nii.")
