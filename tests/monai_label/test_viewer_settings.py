from __future__ import annotations

import json
import re
from typing import Any

import pytest

from cyclic_committee.monai_label.viewer_settings import NO_ORGANS, TEMPLATE, viewer_settings

pytest.importorskip("pydicom", reason="pydicom isn't installed: pip install '.[dicom]'")


def organs_in(settings: str) -> dict[str, dict[str, Any]]:
    [found] = re.findall(r"const organs = (\{.*\});", settings)
    organs: dict[str, dict[str, Any]] = json.loads(found)
    return organs


def test_the_template_has_a_place_for_the_organs() -> None:
    assert TEMPLATE.read_text().count(NO_ORGANS) == 1


def test_each_label_brings_what_its_dicom_segment_says() -> None:
    [liver] = organs_in(viewer_settings(["liver"])).values()
    assert liver["SegmentLabel"] == "Liver"
    assert liver["SegmentedPropertyCategoryCodeSequence"]["CodeMeaning"] == "Anatomical Structure"
    organ = {"CodeValue": "10200004", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Liver"}
    assert liver["SegmentedPropertyTypeCodeSequence"] == organ


def test_an_organ_says_its_side() -> None:
    [kidney] = organs_in(viewer_settings(["left_kidney"])).values()
    organ = kidney["SegmentedPropertyTypeCodeSequence"]
    assert organ["CodeValue"] == "64033007"
    assert organ["SegmentedPropertyTypeModifierCodeSequence"]["CodeMeaning"] == "Left"


def test_a_lesion_says_where_it_is() -> None:
    [lesion] = organs_in(viewer_settings(["pancreas_tumour"])).values()
    assert lesion["SegmentedPropertyTypeCodeSequence"]["CodeMeaning"] == "Neoplasm"
    assert lesion["AnatomicRegionSequence"]["CodeValue"] == "15776009"


def test_a_name_cannot_leave_its_string() -> None:
    name = '"}}; alert(1); //'
    assert list(organs_in(viewer_settings([name]))) == [name]
