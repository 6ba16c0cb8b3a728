"""How do several threads and processes use MONAI Label's list of images and labels at once?"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import LocalDatastore

from ...scripts.runtime.atomic_files import flush, write_whole


class SharedStore(LocalDatastore):
    """MONAI Label's store, changed by one at a time; everybody else sees what was, whole, until a change is done.

    MONAI Label changes its list in place, while the thread that watches the folder and the requests read it, and writes
    it over what another process wrote: the server, a scoring and a training in the background are three.
    """

    _datastore: Any
    _config_ts: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self._auto_reload:
            self._handler.on_moved = self._on_any_event  # what is written whole gets its name by a rename

    def change(self, method: str, *arguments: Any) -> Any:
        """Run one of MONAI Label's methods on a copy of the newest list; if it succeeds, that is the list."""
        with self.turn():
            self._init_from_datastore_file()
            changed = copy.copy(self)
            changed._datastore = self._datastore.model_copy(deep=True)
            result = getattr(LocalDatastore, method)(changed, *arguments)
            self._datastore, self._config_ts = changed._datastore, changed._config_ts
        return result

    def turn(self) -> FileLock:
        """Return the lock of who changes the list, for all threads and processes; who has it may take it again."""
        return FileLock(f"{self._lock_file}.change", is_singleton=True)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save an image's label under a tag. When this returns it is on the disk: it may be an hour's work."""
        label_id = str(self.change("save_label", image_id, label_filename, label_tag, label_info))
        label = Path(LocalDatastore.get_label_uri(self, label_id, label_tag))
        flush(label)
        flush(label.parent)
        return label_id

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image."""
        return str(self.change("add_image", image_id, image_filename, image_info))

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image."""
        self.change("update_image_info", image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of a label."""
        self.change("update_label_info", label_id, label_tag, info)

    def _reconcile_datastore(self) -> None:
        self.change("_reconcile_datastore")

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        with self.turn():
            read = copy.copy(self)  # MONAI Label's new list has no folder for a moment
            LocalDatastore._init_from_datastore_file(read, throw_exception)
            self._datastore, self._config_ts = read._datastore, read._config_ts

    def _update_datastore_file(self, lock: bool = True) -> None:
        path = Path(self._datastore_config_path)
        write_whole(path, json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str))
        self._config_ts = os.stat(path).st_mtime

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = super()._list_files(path, patterns)
        return {name: file for name, file in found.items() if not name.startswith(".")}  # unfinished
