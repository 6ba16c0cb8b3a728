"""What does a reader get who asks for a DICOM segmentation?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from fastapi import HTTPException
from starlette.responses import Response

from ..scripts.dicom_segmentation import on_grid_of, write_segmentation
from .archive_store import ArchiveStore


def segmentation_answer(store: Any, image_id: str, label_file: Path) -> Response:
    """Return a label map as a DICOM segmentation of its series, names and codes by the labels' ids.

    400 where the studies are no archive, or nothing was found: there are no segmentations without segments.
    """
    try:
        if not isinstance(store, ArchiveStore):
            raise HTTPException(400, "Only an archive's series have DICOM segmentations.")
        series = store.series(image_id)
        found: Any = nib.load(label_file)
        label_map = on_grid_of(series, found).astype(np.uint8)
        about = {"algorithm": store.metadata["name"], "version": store.metadata["version"]}
        with tempfile.TemporaryDirectory() as folder:
            path = write_segmentation(label_map, series, store.labels, Path(folder, "labels.dcm"), **about)
            if path is None:
                raise HTTPException(400, "Nothing was found, and a DICOM segmentation can't be empty.")
            return Response(path.read_bytes(), media_type="application/dicom")
    finally:
        label_file.unlink(missing_ok=True)
