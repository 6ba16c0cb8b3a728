"""Pixel data of DICOM slices, compressed or not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import

from ..runtime.errors import BadInput
from .files import read_dicom

pydicom, _ = optional_import("pydicom")
encaps, _ = optional_import("pydicom.encaps")
pixels, _ = optional_import("pydicom.pixels")
imagecodecs, has_imagecodecs = optional_import("imagecodecs")

JPEG = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70))  # baseline, extended, lossless
# Named, so that no other takes over on damaged data: GDCM, if it is installed, then ends the whole process
PLUGINS: Mapping[str, str] = {
    **{f"1.2.840.10008.1.2.4.{number}": "pyjpegls" for number in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{number}": "pylibjpeg" for number in (90, 91, 201, 202, 203)},  # JPEG 2000, HTJ2K
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
}
PACKAGES: Mapping[str, str] = {"pyjpegls": "pyjpegls", "pylibjpeg": "pylibjpeg pylibjpeg-openjpeg"}


def syntax_of(header: Any) -> str:
    """Return how a DICOM file is stored: its transfer syntax."""
    return str(header.file_meta.TransferSyntaxUID)


def require_decoder(file: Path, header: Any) -> None:
    """Raise `BadInput` unless a slice's pixels can be decompressed."""
    syntax = syntax_of(header)
    name = pydicom.uid.UID(syntax).name
    try:
        there = pixels.get_decoder(syntax).available_plugins
    except NotImplementedError:
        raise BadInput(f"{file}: is stored as {name}, which can't be read. Export the series uncompressed.") from None
    plugin = PLUGINS.get(syntax)
    if syntax not in JPEG and plugin is None and pydicom.uid.UID(syntax).is_compressed:
        raise BadInput(f"{file}: is stored as {name}, which can't be read. Export the series uncompressed.")
    if not has_imagecodecs if syntax in JPEG else plugin not in (None, *there):
        needs = "imagecodecs" if plugin is None else PACKAGES.get(plugin, plugin)
        raise BadInput(
            f"{file}: is compressed as {name}, for which no decoder is installed. Install with: pip install {needs}"
        )


def stored_pixels(file: Path, header: Any) -> np.ndarray:
    """Return a slice's stored values, `(rows, columns)`.

    Raises:
        BadInput: truncated or damaged.
    """
    syntax = syntax_of(header)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about padding, and the like
            slice_ = read_dicom(file, pixels=True)  # pixel_array doesn't inflate a deflated file by itself
            if slice_["PixelData"].is_undefined_length and not pydicom.uid.UID(syntax).is_compressed:
                raise ValueError("they are compressed, and the file doesn't say how")  # they would be read as numbers
            require_agreement(slice_, syntax)
            if syntax in JPEG:
                stored = decode_jpeg(slice_)
            else:
                stored = pixels.pixel_array(slice_, raw=True, decoding_plugin=PLUGINS.get(syntax, ""))
        if stored.shape != (header.Rows, header.Columns):
            raise ValueError(f"they have the shape {stored.shape}, not {(header.Rows, header.Columns)}")
    except Exception as error:  # the decoders raise many kinds
        raise BadInput(f"{file}: its pixel data are truncated or damaged ({error}). Fetch it again.") from error
    return stored


def require_agreement(slice_: Any, syntax: str) -> None:
    """Raise ValueError if a header contradicts the pixel data or itself where pydicom drops what it can't use.

    That is bits above those that are said to be stored, and a row or more of uncompressed pixel data.
    """
    stored_bits, high_bit = int(slice_.BitsStored), int(slice_.get("HighBit") or 0)
    if high_bit >= stored_bits:
        raise ValueError(f"their highest bit is {high_bit}, but {stored_bits} bits are stored")
    if pydicom.uid.UID(syntax).is_encapsulated:
        return
    row = int(slice_.Columns) * max(1, int(slice_.BitsAllocated) // 8)
    left = len(slice_.PixelData) - int(slice_.Rows) * row
    if left >= max(row, 2):
        raise ValueError(f"the header says {int(slice_.Rows) * row} bytes, and there are {len(slice_.PixelData)}")


def decode_jpeg(slice_: Any) -> np.ndarray:
    """Return the stored values of a slice in one of the older JPEGs, `(rows, columns)`.

    By libjpeg-turbo: pydicom's own ways to them are GDCM and a package under the GPL.
    """
    frame = next(encaps.generate_frames(slice_.PixelData, number_of_frames=1))
    stored: np.ndarray = imagecodecs.jpeg8_decode(frame)
    if not slice_.PixelRepresentation:
        return stored
    unused = 16 - slice_.BitsStored  # bits, to which the sign is carried over
    return np.asarray((stored.astype(np.uint16) << unused).view(np.int16) >> unused)
