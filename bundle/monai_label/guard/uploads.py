"""Files that are sent to the label server: received into a folder that goes with them, read, and only then kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from fastapi import HTTPException
from starlette.datastructures import UploadFile

from ...scripts.data.volumes import as_label_ids, open_image, open_volume, read_voxels, require_same_grid
from ...scripts.runtime.atomic_files import temporary_folder
from ...scripts.runtime.errors import BadInput
from .names import require_ending

AT_ONCE = 1 << 20  # bytes


@asynccontextmanager
async def received(upload: Any) -> AsyncIterator[Path]:
    """Give a form's file as one on the disk, for as long as the context lasts; 400 for what can't be a volume."""
    if not isinstance(upload, UploadFile):
        raise HTTPException(400, "Send a file along.")
    ending = require_ending(str(upload.filename))
    with temporary_folder() as folder:
        path = Path(folder, f"upload{ending}")
        with path.open("wb") as file:
            while block := await upload.read(AT_ONCE):
                file.write(block)
        yield path


def require_image(path: str | Path) -> None:
    """Read an image as training and inference do, or answer 400 with what is wrong with it."""
    with errors_without(path):
        for volume in open_image(str(path)):
            read_voxels(volume)


def require_label(path: str | Path, image: str | Path, labels: dict[str, str]) -> None:
    """Read a label map, of ids in `labels`, on its image's grid, or answer 400 with what is wrong with it."""
    with errors_without(path, image):
        volume = open_volume(path)
        require_same_grid(open_image(str(image))[0], volume)
        as_label_ids(read_voxels(volume), labels, path)


@contextmanager
def errors_without(*paths: str | Path) -> Iterator[None]:
    """Answer 400 for bad input, with names of files in place of their paths."""
    try:
        yield
    except BadInput as error:
        message = str(error)
        for path in paths:
            message = message.replace(str(path), PurePosixPath(path).name)
        raise HTTPException(400, message) from None
