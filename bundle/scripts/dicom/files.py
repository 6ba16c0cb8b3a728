"""The DICOM files among others, and what they say."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

from monai.utils import optional_import

from ..runtime.errors import BadInput

pydicom, _ = optional_import("pydicom")
charset, _ = optional_import("pydicom.charset")

Header = Any  # pydicom.Dataset
KIND = ("SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID")
READ_FREELY = 2**20  # bytes
SUFFIXES = (".dcm", ".dicom", ".dic", ".dc3", ".ima")
# How a file without a preamble begins: a tag of group 2 or 8, then a type in two letters or a small length
WITHOUT_PREAMBLE = re.compile(
    rb"[\x02\x08]\x00(?:\x00\x00(?:UL|\x04\x00\x00\x00)|[^\x00]\x00(?:[A-Z]{2}|.\x00\x00\x00))|\x00[\x02\x08]\x00.[A-Z]{2}",
    re.DOTALL,
)
ENDIAN_SYNTAXES = {  # implicit, little endian -> the transfer syntax of a file that doesn't say it
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}


@dataclass
class ReadFiles:
    """What DICOM files say, and which files aren't of them.

    Attributes:
        headers: DICOM files, with what they say but their pixels.
        unreadable: what is wrong with files that are DICOM, or have such names, and can't be read.
        others: what else lies in folders with DICOM files.
    """

    headers: list[tuple[Path, Header]] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)


class BoundedFile(BufferedReader):
    """A file that is asked for no more than it has: Python takes memory for all that a damaged length claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to so many bytes."""
        if size is not None and size > READ_FREELY:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def is_dicom(file: Path) -> bool:
    """Return whether a file is a DICOM file, with DICOM's preamble or without."""
    if not file.is_file():  # also what would wait for another process when it is opened
        return False
    try:
        with open(file, "rb") as opened:
            start = opened.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or WITHOUT_PREAMBLE.match(start) is not None


def read_dicom(file: Path, *, pixels: bool) -> Header:
    """Return what a DICOM file says, with its transfer syntax also where pydicom had to find it out.

    Names of character sets may be misspelt.

    Args:
        file: with DICOM's preamble or without.
        pixels: whether to read the pixel data, too.
    """
    with BoundedFile(FileIO(file)) as opened:
        header = pydicom.dcmread(opened, stop_before_pixels=not pixels, force=True)
    if not header.file_meta.get("TransferSyntaxUID"):
        header.file_meta.TransferSyntaxUID = ENDIAN_SYNTAXES[header.original_encoding]
    declared = header.get("SpecificCharacterSet") or []
    names = [declared] if isinstance(declared, str) else [*declared]
    meant = [*map(character_set, names)]
    if meant != names:
        header.SpecificCharacterSet = meant
        header.set_original_encoding(*header.original_encoding, charset.convert_encodings(meant))
    return header


def character_set(name: str) -> str:
    """Return DICOM's name of a character set that is misspelt, such as ISO_IR_192; any other as it is."""
    found = re.fullmatch(r"ISO[\W_]*(2022[\W_]*)?(?:IR)?[\W_]*(\d+)", name.upper())
    meant = f"ISO{' 2022 IR' if found[1] else '_IR'} {found[2]}" if found else name
    return meant if meant in charset.python_encoding and name not in charset.python_encoding else name


def read_header(file: Path) -> Header:
    """Return what a DICOM file says but its pixels.

    Raises:
        BadInput: damaged.
    """
    try:
        header = read_dicom(file, pixels=False)
        for tag in KIND:
            header.get(tag)  # which may fail: tags are read when they are asked for
    except Exception as error:  # pydicom raises many kinds of errors on damaged files
        raise BadInput(f"{file}: not a readable DICOM file ({error}).") from error
    if not header.get("SOPClassUID"):
        raise BadInput(f"{file}: not a readable DICOM file (it is cut off, or doesn't say its SOPClassUID).")
    return header


def read_headers(files: Iterable[Path]) -> ReadFiles:
    """Return what the DICOM files among some files say, and what the others are."""
    read = ReadFiles()
    dicom = {file: is_dicom(file) for file in files if file.name != "DICOMDIR"}
    suffixes_in: dict[Path, set[str]] = {}
    for file in (file for file, is_one in dicom.items() if is_one):
        suffixes_in.setdefault(file.parent, {*SUFFIXES}).add(suffix_of(file))
    for file, is_one in dicom.items():
        try:
            if is_one:
                read.headers.append((file, read_header(file)))
            elif may_be_slice(file, suffixes=suffixes_in.get(file.parent, {*SUFFIXES})):
                raise BadInput(f"{file}: not a readable DICOM file (it can't be opened, or is something else).")
            elif file.parent in suffixes_in and not file.name.startswith("."):
                read.others.append(file)
        except BadInput as error:
            read.unreadable[file] = str(error)
    return read


def suffix_of(file: Path) -> str:
    """Return a file's suffix, in small letters; a number, as at the end of a UID, is none."""
    suffix = file.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def may_be_slice(file: Path, *, suffixes: Container[str]) -> bool:
    """Return whether a file that isn't DICOM has a slice's name: one of the suffixes, or none and a number."""
    suffix = suffix_of(file)
    return suffix in suffixes and not file.name.startswith(".") and (suffix or re.search(r"\d", file.name)) is not None
