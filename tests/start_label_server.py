"""Starts MONAI Label for tests: with pydicom 3, which its pydicom-seg doesn't know, and the viewer's settings."""

from __future__ import annotations

import sys
from types import ModuleType

if "pydicom._storage_sopclass_uids" not in sys.modules:
    stand_in = ModuleType("pydicom._storage_sopclass_uids")
    stand_in.SegmentationStorage = "1.2.840.10008.5.1.4.1.1.66.4"  # type: ignore[attr-defined]
    sys.modules[stand_in.__name__] = stand_in

if __name__ == "__main__":
    from monailabel.main import Main

    Main().run()
else:  # the web application, by the name that was given to the server
    from monailabel.app import app
    from monailabel.config import settings

    from cyclic_committee.scripts.archive_proxy import serve_archive
    from cyclic_committee.scripts.viewer_settings import serve_viewer_settings

    serve_viewer_settings(app, ["liver", "kidney", "spleen", "pancreas"])
    serve_archive(app, settings.MONAI_LABEL_STUDIES)
