"""A process of the label server's that fetches a series from an archive; for another environment's tests.

`label_fetch.py URL SERIES CACHE`: says `ready`, waits for a line, fetches slowly, and prints the image's file.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from monailabel.datastore.dicom import DICOMwebClientX

from cyclic_committee.monai_label.stores.archive_store import ArchiveStore


class SlowClient(DICOMwebClientX):
    """An archive far away."""

    def retrieve_series(self, *arguments: Any, **options: Any) -> Any:
        """Return a series' slices, after a while."""
        time.sleep(2)
        return super().retrieve_series(*arguments, **options)


if __name__ == "__main__":
    url, series, cache = sys.argv[1:]
    store = ArchiveStore(SlowClient(url=url), labels={"1": "liver"}, metadata={}, cache=Path(cache))
    print("ready", flush=True)
    sys.stdin.readline()
    print(store.get_image_uri(series), *store._datastore.objects, flush=True)
