"""What does a reader get who asks for a DICOM segmentation?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import HTTPException
from starlette.responses import Response

from .stores.archive_store import ArchiveStore


def segmentation_answer(store: Any, image_id: str, label_file: Path) -> Response:
    """Return a label map as a DICOM segmentation of its series, names and codes by the labels' ids.

    400 where the studies are no archive, or nothing was found: there are no segmentations without segments.
    """
    try:
        if not isinstance(store, ArchiveStore):
            raise HTTPException(400, "Only an archive's series have DICOM segmentations.")
        return Response(store.segmentation(label_file, store.series(image_id)), media_type="application/dicom")
    finally:
        label_file.unlink(missing_ok=True)
