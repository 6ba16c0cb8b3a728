"""SNOMED codes of organs for DICOM segmentations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.utils import optional_import

codes, _ = optional_import("pydicom.sr.codedict", name="codes")
Code, _ = optional_import("pydicom.sr.coding", name="Code")

OWN_SCHEME = "99CYCLIC"  # 99: private, as the standard has it
SYNONYMS: Mapping[str, str] = {
    "adrenal": "adrenalgland",
    "ivc": "inferiorvenacava",
    "oesophagus": "esophagus",
    "postcava": "inferiorvenacava",
    "smallbowel": "smallintestine",
    "largebowel": "largeintestine",
    "tumor": "neoplasm",
    "tumour": "neoplasm",
    "urinarybladder": "bladder",
}
SIDES: Mapping[str, str] = {"left": "Left", "right": "Right"}


@dataclass(frozen=True)
class OrganCode:
    """What a DICOM segment says of its organ: pydicom's `Code`s."""

    name: str  # as a viewer shows it
    category: Any
    organ: Any
    side: Any = None  # left or right, where the organ's own code doesn't say so
    region: Any = None  # of a lesion: the organ that it is in
    known: bool = True  # False: a private code


def organ_code(label: str) -> OrganCode:
    """Return the codes of a label by its name, such as liver, left_kidney, KidneyRight or pancreas_tumour.

    They are those of pydicom's dictionary: DICOM's context groups 7192 (anatomical structures) and 7194 (lesions).
    A name that isn't there gets a private code, with the name as its meaning.
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", label)]
    sides = [word for word in words if word in SIDES]
    others = [word for word in words if word not in SIDES]
    side = getattr(codes.cid244, SIDES[sides[0]]) if len(sides) == 1 else None
    name = shown_name(label)
    organs, lesions = folded_codes(codes.cid7192), folded_codes(codes.cid7194)
    anatomy, abnormal = codes.cid7150.AnatomicalStructure, codes.cid7150.MorphologicallyAbnormalStructure
    for organ, its_side in ((look_up(words, organs), None), (look_up(others, organs), side)):
        if organ is not None:
            return OrganCode(name, anatomy, organ, its_side)
    lesion, region = look_up(others[-1:], lesions), look_up(others[:-1], organs)
    if lesion is not None and (region is not None or len(others) == 1):
        return OrganCode(name, abnormal, lesion, side, region)
    return OrganCode(name, anatomy, Code(label, OWN_SCHEME, name[:64]), known=False)


def shown_name(label: str) -> str:
    """Return a label's name as a viewer shows it: Left kidney for left_kidney."""
    words = re.sub(r"[\s_]+", " ", label).strip()
    return words[:1].upper() + words[1:]


def folded_codes(group: Any) -> dict[str, Any]:
    """Return the codes of one of pydicom's context groups by their keywords in lower case."""
    return {keyword.lower(): code for keyword, code in group.concepts.items()}


def look_up(words: Sequence[str], table: Mapping[str, Any]) -> Any:
    """Return the code whose keyword is made of the words, singular or plural, or None."""
    whole = "".join(words)
    for key in (whole, whole.removesuffix("s")):
        code = table.get(SYNONYMS.get(key, key))
        if code is not None:
            return code
    return None
