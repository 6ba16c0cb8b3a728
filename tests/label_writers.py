"""A process of the label server's whose threads all use the studies at once; for another environment's tests.

`label_writers.py STUDIES NAME`: says `ready`, waits for a line, and prints what went wrong; after a second line, what
it knows of the images.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cyclic_committee.monai_label.stores.folder_store import FolderStore

IMAGES, THREADS = 20, 4


def use(store: FolderStore, image: Path, thread: str) -> list[str]:
    """Add images, mark each of all, and read; return what went wrong."""
    wrong = []
    for number in range(IMAGES):
        try:
            store.add_image(f"{thread}-{number}", str(image), {})
            store.update_image_info(f"{thread}-{number}", {"note": thread})
            store.update_image_info("first", {f"{thread}-{number}": True})
            if "first" not in store.get_unlabeled_images() or "first" not in store.list_images():
                wrong.append("an image is gone")
        except Exception as error:
            wrong.append(repr(error))
    return wrong


if __name__ == "__main__":
    studies, name = sys.argv[1:]
    store = FolderStore(studies, labels={"1": "liver"}, extensions=["*.nii.gz"], auto_reload=True)
    print("ready", flush=True)
    sys.stdin.readline()
    names = [f"{name}{number}" for number in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as threads:
        each = threads.map(lambda one: use(store, Path(studies, "first.nii.gz"), one), names)
        wrong = [line for lines in each for line in lines]
    print(json.dumps(wrong), flush=True)
    sys.stdin.readline()
    store.refresh()
    print(json.dumps({image: store.get_image_info(image) for image in store.list_images()}), flush=True)
