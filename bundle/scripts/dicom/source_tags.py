"""What a segmentation takes over from its source about patient and study, with odd values repaired or left out."""

from __future__ import annotations

import copy
import re
from datetime import date
from typing import Any

import numpy as np
from monai.utils import optional_import

from .files import Header

DSfloat, _ = optional_import("pydicom.valuerep", name="DSfloat")

UNICODE = "ISO_IR 192"  # UTF-8, which has all characters
TEXTS = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")
# of study and patient: these may be empty, but not missing
MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
ESCAPE = re.compile(r"\x1b[ -/]+[0-~]")  # pydicom decodes ISO 2022 IR 58, but leaves its escape sequences in
DATE = re.compile(r"(\d{4})([-./]?)(\d{2})\2(\d{2})(?:[ T]?\d.*)?")  # ACR-NEMA had points, others write ISO 8601
TIME = re.compile(r"([01]\d|2[0-3]):?([0-5]\d)?(?::?([0-5]\d|60)(?:[.,](\d{1,6})\d*)?)?(?:Z|[+-]\d\d:?\d\d)?")


def usable_date(text: str) -> str:
    """Return a date as DICOM has it, YYYYMMDD, or nothing for what is none."""
    found = DATE.fullmatch(text.strip())
    try:
        return "" if found is None else date(*map(int, found.group(1, 3, 4))).strftime("%Y%m%d").zfill(8)
    except ValueError:
        return ""


def usable_time(text: str) -> str:
    """Return a time as DICOM has it, HHMMSS.FFFFFF or the beginning of that, or nothing for what is none."""
    found = TIME.fullmatch(text.strip())
    if found is None:
        return ""
    hours, minutes, seconds, parts = found.groups()
    return "".join([hours, minutes or "", seconds or "", f".{parts}" if parts else ""])


def usable_source(header: Header, spacing_mm: float) -> Header:
    """Return a copy of a slice's header that has all that highdicom asks for, and nothing that it can't use.

    Dates and times in other notations are written in DICOM's. What can't be read, such as a birth date REMOVED, is
    left out.

    Args:
        header: of a slice of the series.
        spacing_mm: between slices, for the slices' thickness if they don't say it.
    """
    whole = copy.deepcopy(header)  # a shallow copy of pydicom's shares all tags with the original
    for tag in list(whole.keys()):
        try:
            element = whole[tag]
            if element.VR in ("DS", "IS") and element.VM:
                np.asarray(element.value, float)  # pydicom keeps what is no number as text
        except Exception:  # pydicom raises many kinds of errors: tags are read when they are asked for
            del whole[tag]
            continue
        if element.VR in ("DA", "TM") and element.VM == 1:
            element.value = (usable_date if element.VR == "DA" else usable_time)(str(element.value))
        elif element.VR in TEXTS and element.VM:
            texts = element.value if element.VM > 1 else [element.value]
            element.value = [ESCAPE.sub("", str(text)) for text in texts]
    missing = {tag: "" for tag in MAY_BE_EMPTY if tag not in whole}
    if whole.get("PatientSex", "") not in ("", "M", "F", "O"):
        missing["PatientSex"] = ""
    if not whole.get("SliceThickness"):
        missing["SliceThickness"] = DSfloat(spacing_mm, auto_format=True)
    for tag, value in missing.items():
        setattr(whole, tag, value)
    return whole


def set_character_set(dataset: Any) -> None:
    """Let a data set say UTF-8 if one of its texts needs more than ASCII; it doesn't say another."""
    texts = (str(element.value) for element in dataset.iterall() if element.VR in TEXTS)
    if not all(map(str.isascii, texts)):
        dataset.SpecificCharacterSet = UNICODE
