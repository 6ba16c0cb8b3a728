"""Reading NIfTI volumes and label maps, and refusing those that can't be used."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from monai.data import NibabelReader
from monai.transforms import LoadImaged, MapTransform
from monai.utils import convert_to_dst_type
from nibabel.affines import voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import SpatialImage

from ..runtime.errors import BadInput, find_bad_input
from .folders import other_format
from .headers import ROUNDING_MM, grid_shift_mm, require_all_voxels, require_number_width, require_voxel_sizes

SUFFIXES = (".nii.gz", ".nii")
TOLERABLE_SHIFT = 0.1  # of a voxel: label maps that lie that far off are taken to be on their image's grid
LARGEST = 1e30  # single numbers beyond become infinite when they are resampled
ROUNDING = 1e-4  # numbers in label maps that are nearer to a whole one are meant to be it: scale factors round
READ_AT_ONCE = 2**24  # bytes
Files = str | Path | Sequence[str | Path]


def case_name(path: str | os.PathLike[str]) -> str:
    """Return a file's name without folder and NIfTI suffix."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.endswith(suffix)), name)


def open_volume(path: str | Path, *, may_have_channels: bool = False) -> SpatialImage:
    """Open a NIfTI file of three dimensions; its voxels stay on disk. A fourth of length 1 is taken off.

    Args:
        path: of the file.
        may_have_channels: whether a fourth dimension, of channels, is right, too.

    Raises:
        BadInput: missing, unreadable, of other dimensions, or with voxels that have no size.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file. Check the path.")
    if other_format(path):
        raise BadInput(other_format(path))
    try:
        volume: SpatialImage = nib.load(path)  # type: ignore[assignment]
    except Exception as error:  # nibabel raises many kinds of errors on damaged files
        raise BadInput(f"{path}: not a readable NIfTI file ({error}). Replace it or take it out.") from error
    if volume.shape[3:] == (1,) and not may_have_channels:
        volume = _of_shape(volume, volume.shape[:3])
    dimensions = (3, 4) if may_have_channels else (3,)
    if len(volume.shape) not in dimensions or min(volume.shape) < 1:
        raise BadInput(f"{path}: has the shape {volume.shape}, expected three dimensions. Write one volume a file.")
    require_all_voxels(volume, path)
    require_voxel_sizes(volume)
    return volume


def _of_shape(volume: SpatialImage, shape: tuple[int, ...]) -> SpatialImage:
    """Return a file's volume with its voxels, still on disk, in another shape."""
    header: Any = volume.header.copy()
    header.set_data_shape(shape)
    kind: Any = type(volume)
    stored: Any = volume.dataobj
    shaped: SpatialImage = kind(stored.reshape(shape), volume.affine, header, file_map=volume.file_map)
    return shaped


def open_image(files: Files) -> list[SpatialImage]:
    """Open an image: a file a channel, or one file, where a fourth dimension is channels.

    Raises:
        BadInput: see `open_volume`; channels on different grids.
    """
    if isinstance(files, (str, Path)):
        return [open_volume(files, may_have_channels=True)]
    if len(files) == 1:
        return [open_volume(files[0], may_have_channels=True)]
    opened = [open_volume(file) for file in files]
    for other in opened[1:]:
        require_same_grid(opened[0], other)
    return opened


def read_image(files: Files) -> tuple[np.ndarray, SpatialImage]:
    """Return an image's voxels, `(channels, x, y, z)` float32 in the files' own order, and the file with its grid.

    Raises:
        BadInput: see `open_image` and `read_voxels`.
    """
    opened = open_image(files)
    channels = [read_voxels(volume).astype(np.float32) for volume in opened]
    if channels[0].ndim == 4:
        return np.moveaxis(channels[0], -1, 0), opened[0]
    return np.stack(channels), opened[0]


def first_file(files: Files) -> str:
    """Return the file that an image is named after."""
    return str(files if isinstance(files, (str, Path)) else files[0])


def read_voxels(volume: SpatialImage) -> np.ndarray:
    """Return a volume's voxels, scaled as its header says, in the file's own order: `(x, y, z)`.

    Raises:
        BadInput: see `load_voxels`; NaN or infinite.
    """
    voxels = load_voxels(volume)
    require_finite_voxels(voxels, str(volume.get_filename()))
    return voxels


def load_voxels(volume: SpatialImage) -> np.ndarray:
    """Return a volume's voxels as `read_voxels` does, whether they are finite or not.

    Raises:
        BadInput: truncated or damaged, or colours instead of numbers.
    """
    with unpacked(volume) as stored:
        return np.asanyarray(stored)


@contextmanager
def unpacked(volume: SpatialImage) -> Iterator[ArrayProxy]:
    """Give a volume's voxels as they lie in the file, to be read once and in order; a .gz is read to its end.

    Raises:
        BadInput: see `load_voxels`.
    """
    path, kind = str(volume.get_filename()), type(volume)
    number: Any = volume.get_data_dtype()
    if number.kind not in "iuf":
        raise BadInput(f"{path}: holds colours or complex numbers ({number}). Write one real number a voxel.")
    try:
        if path.endswith(".gz"):
            with igzip.open(path) as file:  # takes half of the time that the standard library's does
                stored: Any = kind.from_file_map({"image": FileHolder(fileobj=file)}).dataobj  # type: ignore[misc]
                yield stored.reshape(volume.shape)
                unread = 0
                while part := file.read(2**20):  # to the checksum at the end: half of all damage shows only there
                    unread += len(part)
        else:
            stored = volume.dataobj
            yield stored
            unread = Path(path).stat().st_size - stored.offset - math.prod(volume.shape) * number.itemsize
        require_number_width(volume, unread)
    except Exception as error:  # zlib, EOFError, OSError, ...
        raise BadInput(f"{path}: damaged or truncated ({error}). Replace it or take it out.") from error


def require_finite_voxels(voxels: np.ndarray, path: str | Path) -> None:
    """Raise `BadInput` if a voxel is NaN, infinite, or as good as, with the first one's place."""
    if not np.issubdtype(voxels.dtype, np.inexact):
        return
    finite = np.abs(voxels) <= LARGEST
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        count = int((~finite).sum())
        raise BadInput(f"{path}: {count} voxels are NaN or infinite, the first at {where}. Mend the file.")


def require_same_grid(image: SpatialImage, other: SpatialImage) -> None:
    """Raise `BadInput` if a label map or another channel isn't on its image's grid, within a tenth of a voxel."""
    kind = f"its image {image.get_filename()}"
    if image.shape[:3] != other.shape[:3]:
        raise BadInput(
            f"{other.get_filename()}: has the shape {other.shape}, but {kind} has {image.shape}. "
            "Resample it onto the image's grid."
        )
    shift_mm = grid_shift_mm(image, other)
    if shift_mm > tolerable_shift_mm(image):
        raise BadInput(
            f"{other.get_filename()}: its voxels lie up to {shift_mm:.4g} mm from those of {kind}. "
            "Resample it onto the image's grid, or correct its header."
        )


def tolerable_shift_mm(image: SpatialImage) -> float:
    """Return how far off a grid may be and still be taken for the image's: a tenth of a voxel."""
    return max(ROUNDING_MM, TOLERABLE_SHIFT * float(voxel_sizes(image.affine).min()))


def label_ids(labels: Mapping[Any, str]) -> list[int]:
    """Return the ids of `labels` in rising order: the network's classes 1, 2, 3 and so on.

    Raises:
        BadInput: none, twice the same, or outside of 1 to 255.
    """
    ids = sorted(int(label) for label in labels)
    if not ids or len(set(ids)) < len(ids) or ids[0] < 1 or ids[-1] > 255:
        raise BadInput(f"labels must have different ids from 1 to 255, got {', '.join(map(str, labels)) or 'none'}.")
    return ids


def as_label_ids(voxels: np.ndarray, labels: Mapping[Any, str], path: str | Path) -> np.ndarray:
    """Return label ids as uint8.

    Raises:
        BadInput: an id that is neither 0 nor in `labels`, a number that isn't whole.
    """
    known = {0, *label_ids(labels)}
    if voxels.size == 0:  # cut to what is labelled, and nothing is
        return voxels.astype(np.uint8)
    voxels = whole_numbers(voxels)
    unknown = []
    all_ids_up_to_last = max(known) < len(known)
    if not (voxels.dtype.kind in "iu" and all_ids_up_to_last and 0 <= voxels.min() <= voxels.max() < len(known)):
        values = np.unique(voxels.ravel(order="K"))  # as they lie in memory
        unknown = [value for value in values.tolist() if value not in known]
    if unknown:
        raise BadInput(
            f"{path}: holds the label ids {', '.join(f'{value:g}' for value in unknown[:5])}, which are not in labels "
            f"({', '.join(str(label) for label in sorted(known))}). Correct the file, or labels in the configuration."
        )
    return voxels.astype(np.uint8, copy=False)


def whole_numbers(voxels: np.ndarray) -> np.ndarray:
    """Return a label map's voxels with 1.00000001, as a scale factor makes of 1, rounded; what is far from it stays."""
    if voxels.dtype.kind != "f":
        return voxels
    rounded = np.rint(voxels)
    if np.array_equal(rounded, voxels) or not rounded.any():  # a tiny scale factor would make 0 of every label
        return voxels
    return np.where(np.abs(rounded - voxels) < ROUNDING, rounded, voxels)


class CompactReader(NibabelReader):
    """MONAI's reader, but whole numbers of one or two bytes stay so, as in most CTs; all else becomes float32.

    The affine is nibabel's, as everywhere here. MONAI's takes the qform where pixdim contradicts the sform.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Return the opened file, or a list of several."""
        self.filenames = [data] if isinstance(data, (str, os.PathLike)) else list(data)
        opened = [nib.load(name, **{**self.kwargs, **kwargs}) for name in self.filenames]
        return opened if len(opened) > 1 else opened[0]

    def _get_array_data(self, img: Any, filename: Any = None) -> np.ndarray:
        kept = img.get_data_dtype() in (np.uint8, np.int8, np.int16) and (img.dataobj.slope, img.dataobj.inter) == (
            1,
            0,
        )
        voxels = np.empty(img.shape, img.get_data_dtype().newbyteorder("=") if kept else np.float32)
        at_once = max(1, READ_AT_ONCE * img.shape[-1] // max(1, voxels.nbytes))
        with unpacked(img) as stored:  # part by part into MONAI's order: it would hold the whole volume twice else
            for first in range(0, img.shape[-1], at_once):
                voxels[..., first : first + at_once] = stored[..., first : first + at_once]
        return voxels


class LoadVolumed(LoadImaged):
    """MONAI's `LoadImaged` for NIfTI volumes, with our checks: every error is one line that names the file.

    `image` may have channels: a file each, or a fourth dimension. The others are on its grid, of three dimensions.
    Volumes keep the number format that their file has, as far as `CompactReader` does.
    """

    def __init__(self, keys: Any, **arguments: Any) -> None:
        logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
        with warnings.catch_warnings():  # MONAI makes all of its readers, and tells that a GPU's for DICOM lacks parts
            warnings.simplefilter("ignore")
            super().__init__(keys, **{"reader": CompactReader(), "dtype": None, **arguments})

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        """Return the data with each key's files replaced by their volume, a MetaTensor."""
        opened = [
            open_image(data[key])[0] if key == "image" else open_volume(data[key])  # a label map has no channels
            for key in self.keys
        ]
        for other in opened[1:]:
            require_same_grid(opened[0], other)
        try:
            loaded: dict[Hashable, Any] = super().__call__(data, reader)
        except Exception as error:
            if find_bad_input(error) is not None:
                raise
            names = ", ".join(first_file(data[key]) for key in self.keys)
            raise BadInput(f"{names}: damaged or truncated ({error}). Replace it or take it out.") from error
        for key in self.keys:
            require_finite_voxels(np.asarray(loaded[key]), first_file(data[key]))
        return loaded


class LabelIdsd(MapTransform):
    """Refuse label maps with ids that the configuration doesn't know; numbers as good as whole become whole."""

    def __init__(self, keys: Any, *, labels: Mapping[Any, str]) -> None:
        super().__init__(keys)
        self.labels = dict(labels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with whole label ids.

        Raises:
            BadInput: see `as_label_ids`.
        """
        checked = dict(data)
        for key in self.keys:
            ids = as_label_ids(np.asarray(data[key]), self.labels, data[key].meta["filename_or_obj"])
            if data[key].is_floating_point():
                checked[key] = convert_to_dst_type(ids, data[key])[0]
        return checked
