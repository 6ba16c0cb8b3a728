"""How do images and labels lie in a folder, and nothing beside it be reached?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import DefaultLabelTag

from ..guard.names import PLAIN, require_ending, require_image_id, require_tag
from ..guard.uploads import require_image, require_label
from .shared_store import SharedStore

logger = logging.getLogger(__name__)


class FolderStore(SharedStore):
    """MONAI Label's store, with names that can't lead out of its folder, and 404 for what isn't there.

    A link that lies in the folder is followed: who owns the folder has put it there.

    Args:
        studies: the folder.
        labels: label id -> name.
        options: of MONAI Label's store.
    """

    def __init__(self, studies: str, *, labels: Mapping[str, str], **options: Any) -> None:
        self.labels = dict(labels)
        super().__init__(studies, **options)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image; 400 for a name that isn't one, or a file that can't be used."""
        require_ending(image_filename)
        require_image_id(image_id)
        require_image(image_filename)
        return str(super().add_image(image_id, image_filename, image_info))

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels."""
        super().remove_image(self.known(image_id))

    def get_image_uri(self, image_id: str) -> str:
        """Return an image's file."""
        return str(super().get_image_uri(self.known(image_id)))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what is known of an image."""
        return dict(super().get_image_info(self.known(image_id)))

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image."""
        super().update_image_info(self.known(image_id), info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save an image's label under a tag; 400 for a file that can't be used as its label."""
        require_ending(label_filename)
        tag = plain_tag(label_tag)
        require_label(label_filename, self.get_image_uri(image_id), self.labels)
        return str(super().save_label(image_id, label_filename, tag, label_info))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return a label's file."""
        uri = str(super().get_label_uri(self.known(label_id), plain_tag(label_tag)))
        if not uri:
            raise HTTPException(404, f"{label_id!r} has no label {label_tag!r}.")
        return uri

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return what is known of a label."""
        self.get_label_uri(label_id, label_tag)
        return dict(super().get_label_info(label_id, plain_tag(label_tag)))

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of a label."""
        self.get_label_uri(label_id, label_tag)
        super().update_label_info(label_id, plain_tag(label_tag), info)

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        files = super()._list_files(path, patterns)
        for name in [name for name in files if not PLAIN.fullmatch(name)]:
            logger.warning(f"{name!r} isn't used: rename it, without $, @, % or . at its beginning.")
            del files[name]
        return files

    def known(self, image_id: str) -> str:
        """Return the id of an image that is there; else answer 404, or 400 for what is no id."""
        if self._datastore.objects.get(require_image_id(image_id)) is None:
            raise HTTPException(404, f"There is no image {image_id!r}.")
        return image_id


def plain_tag(tag: str | DefaultLabelTag) -> str:
    """Return a tag as a string, or answer 400."""
    return require_tag(tag.value if isinstance(tag, DefaultLabelTag) else tag)
