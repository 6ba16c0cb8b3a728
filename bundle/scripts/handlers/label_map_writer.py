"""Writing predicted label maps to disk on the grid of their images."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events

from ..data.volumes import open_volume
from ..runtime.atomic_files import put_in_place, unfinished_path
from ..runtime.errors import BadInput


class LabelMapWriter:
    """Write each predicted label map under its image's name, on its image's grid: a handler for evaluators.

    The header is the image's, so shape, affine, spacing and codes are the same, whatever the orientation. A file
    appears whole or not at all. `state.output` is a list of dicts with `pred`, `(1, x, y, z)` on the image's grid,
    and `state.batch` one with `image`, whose meta data name the file.

    A thread writes while the next volume is computed; it holds one iteration's label maps, and the next ones wait for
    it. The run ends, by success or by error, only when all is written, and with what a write raised. It must stand
    before all handlers that let a run's errors through, such as `ProgressBar`: those end the row.

    Args:
        folder: where the label maps go.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.writing: list[Future[Path]] = []

    def attach(self, engine: Engine) -> None:
        """Write after every iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def __call__(self, engine: Engine) -> None:
        """Begin to write the label maps of one iteration.

        Raises:
            BadInput: those of the iteration before it could not be written; see `write_label_map`.
        """
        self.finish()
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        for case, prediction in zip(batch, output, strict=True):
            label = np.asarray(prediction["pred"][0].cpu())
            self.writing.append(self.thread.submit(write_label_map, label, image_path_of(case), self.folder))

    def finish(self, engine: Engine | None = None) -> None:
        """Wait until all is written.

        Raises:
            BadInput: a label map could not be written; see `write_label_map`.
        """
        writing, self.writing = self.writing, []
        wait(writing)
        for written in writing:
            written.result()

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Finish, and let the error through, or that of an earlier volume's label map with it as its cause."""
        try:
            self.finish()
        except Exception as earlier:
            raise earlier from error
        # ignite drops an error that no handler raises again. Others may have to close something first, so this one
        # goes to the end of the row that is being called.
        engine.add_event_handler(Events.EXCEPTION_RAISED, let_through)


def let_through(engine: Engine, error: BaseException) -> None:
    """Raise an error again."""
    raise error


def image_path_of(case: dict[str, Any]) -> str:
    """Return the file that a case's image was read from."""
    return str(case["image"].meta["filename_or_obj"])


def write_label_map(label: np.ndarray, image_path: str | Path, folder: Path) -> Path:
    """Write a label map `(x, y, z)` beside nothing else: under the image's name in a folder, with its header.

    Raises:
        ValueError: the label map isn't on the image's grid.
        BadInput: the folder is the image's own, or can't be written.
    """
    return write_label_file(label, image_path, folder / Path(image_path).name)


def write_label_file(label: np.ndarray, image_path: str | Path, path: Path) -> Path:
    """Write a label map `(x, y, z)` with its image's header to a file, whole or not at all, and return the file.

    Raises:
        ValueError: the label map isn't on the image's grid.
        BadInput: the file is the image, or can't be written.
    """
    image = open_volume(image_path, may_have_channels=True)
    if label.shape != image.shape[:3]:
        raise ValueError(f"{image_path}: the label map has the shape {label.shape}, its image {image.shape}.")
    if path.resolve() == Path(image_path).resolve():
        raise BadInput(f"{path}: the label map would replace its image. Choose another folder with --output_dir.")
    header: Any = image.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the display range of the image is none for labels
    unfinished = unfinished_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(type(image)(label.astype(np.uint8, copy=False), image.affine, header), unfinished)
        put_in_place(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise BadInput(f"{path}: can't be written ({error}). Make room, or choose another --output_dir.") from error
    return path
