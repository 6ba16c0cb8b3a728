"""What is OHIF told of this server, the viewer in MONAI Label's package?

Its own settings let a reader see a segmentation, but neither correct nor store it; see viewer_settings.js.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from monai.utils import optional_import

from ..scripts.dicom.codes import OrganCode, organ_code

Response, _ = optional_import("starlette.responses", name="Response")
Route, _ = optional_import("starlette.routing", name="Route")

PACKAGED = "endpoints/static/ohif/app-config.js"
TEMPLATE = Path(__file__).with_name("viewer_settings.js")
NO_ORGANS = "const organs = {};"  # as it stands in the template


def serve_viewer_settings(app: Any, labels: Iterable[str]) -> None:
    """Let MONAI Label's web application hand these settings to OHIF, after those in its package's app-config.js.

    Args:
        app: `monailabel.app.app`.
        labels: the names that the server's models give, as in metadata.json.
    """
    settings = (files("monailabel") / PACKAGED).read_text(encoding="utf-8") + viewer_settings(labels)

    async def answer(request: Any) -> Any:
        return Response(settings, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    app.router.routes.insert(0, Route("/ohif/app-config.js", answer))  # the first that fits is taken


def viewer_settings(labels: Iterable[str]) -> str:
    """Return what is new in the settings, JavaScript, with the DICOM codes of the labels in it."""
    organs = {label: segment_tags(organ_code(label)) for label in labels}
    return TEMPLATE.read_text(encoding="utf-8").replace(NO_ORGANS, f"const organs = {json.dumps(organs)};")


def segment_tags(code: OrganCode) -> dict[str, Any]:
    """Return what a DICOM segment says of its organ, by the tags' keywords; see `dicom.segmentation`."""
    organ = code_tags(code.organ)
    tags: dict[str, Any] = {
        "SegmentLabel": code.name[:64],
        "SegmentedPropertyCategoryCodeSequence": code_tags(code.category),
        "SegmentedPropertyTypeCodeSequence": organ,
    }
    if code.region is not None:
        tags["AnatomicRegionSequence"] = code_tags(code.region)
        if code.side is not None:
            tags["AnatomicRegionSequence"]["AnatomicRegionModifierSequence"] = code_tags(code.side)
    elif code.side is not None:
        organ["SegmentedPropertyTypeModifierCodeSequence"] = code_tags(code.side)
    return tags


def code_tags(code: Any) -> dict[str, Any]:
    """Return one of pydicom's codes by the keywords of a code sequence."""
    return {"CodeValue": code.value, "CodingSchemeDesignator": code.scheme_designator, "CodeMeaning": code.meaning}
