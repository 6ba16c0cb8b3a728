"""Are damaged files read rightly or refused in one line, and never believed, crashed on or waited for?

    python benchmarks/damaged_files.py [--kinds nifti,dicom,json,weights,store,arrow,plan] [--seed 0] [--share 1.0]
        [--number N] [--list_refusals true]

Makes damaged copies of good files, each from the seed, its kind and its number, and reads them by the functions that
the commands read them by. Batches run in a child process, so that one that dies, takes 2 GB more or 20 s is found. What
becomes of a copy is one of:

- read: its values are those of the undamaged file, or those that an independent reader finds in the changed one;
- refused: `BadInput`, in one line;
- traceback: any other error;
- wrong: values that are neither, or can't be: NaN, absurd geometry;
- crash, memory, time.

All but the first two are faults: a line each with the number that repeats it (`--kinds KIND --number N`), and exit code
1. Prints a table of all kinds at the end.

What no reader can see is no fault:

- an uncompressed .nii and a DICOM file have no checksum: a voxel or a header's field that was changed to another
  sensible value is read as it stands there. The independent readers say what that is: for NIfTI one of this file, which
  knows the format's definition alone, with the standard library's gzip; for DICOM pydicom's values, and for pixels
  numpy's of the stored bytes, if there are as many as the header says;
- a DICOM series that lacks its first or last slice is whole: only one within it leaves a gap;
- a training's record of losses that is cut off within its last epoch is one that a killed training leaves: the epochs
  before are read. A file cut between two epochs, likewise.

JSON and YAML have no checksum either, so what is right there are rules: text that is no JSON, or names a key twice, is
refused; what is the same content gives the same; what else is accepted has the types that are meant, whole label ids,
names that can be written down and hold no code. Linux only.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and numpy are imported: what is forked must have no threads
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import contextlib
import gzip
import io
import itertools
import json
import logging
import math
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import fire
import nibabel as nib
import numpy as np
import pydicom
import torch
import yaml
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

from cyclic_committee.monai_label.scores import Scores
from cyclic_committee.scripts.data.case_files import Case
from cyclic_committee.scripts.data.cases import find_images, split_cases
from cyclic_committee.scripts.data.headers import header_remarks
from cyclic_committee.scripts.data.layouts import read_data_set
from cyclic_committee.scripts.data.slice_store import Preparation, prepare_case, store_case
from cyclic_committee.scripts.data.volumes import (
    LoadVolumed,
    as_label_ids,
    label_ids,
    open_volume,
    read_image,
    read_voxels,
    require_same_grid,
)
from cyclic_committee.scripts.handlers.checkpoint import load_file, load_parts
from cyclic_committee.scripts.handlers.history import read_history
from cyclic_committee.scripts.handlers.loss_record import append, as_batch, read_losses
from cyclic_committee.scripts.inference.prediction import notes_on_series, read_metadata
from cyclic_committee.scripts.inference.prediction_inputs import find_volumes
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.metrics.score_table import write_csv
from cyclic_committee.scripts.networks.committee import Committee
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.planning.case_check import check_case
from cyclic_committee.scripts.planning.fingerprint import ForegroundIntensities
from cyclic_committee.scripts.planning.plan import Plan
from cyclic_committee.scripts.planning.plan_file import plan_text
from cyclic_committee.scripts.report.runs import read_runs
from cyclic_committee.scripts.runtime.atomic_files import read_with_checksum, with_checksum
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.runtime.config_files import require_plan
from cyclic_committee.scripts.runtime.configuration import open_config
from cyclic_committee.scripts.runtime.errors import find_bad_input
from cyclic_committee.scripts.transforms.normalisation import StandardiseImage
from cyclic_committee.scripts.transforms.resampling import ResampleThenNormalise

OUTCOMES = ("read", "refused", "traceback", "wrong", "crash", "memory", "time")
FINE = ("read", "refused")
LIMIT_BYTES, LIMIT_S = 2 * 2**30, 20.0
LABELS = {1: "liver", 2: "kidney", 3: "spleen", 4: "pancreas"}
SHAPE = (16, 14, 6)
AFFINE = np.array([[-0.8, 0, 0, 60], [0, 0.9, 0, -70], [0, 0, 2.5, 20], [0, 0, 0, 1]])
PLAUSIBLE_MM = (1e-3, 100.0)
FARTHEST_MM = 1e5  # 100 m from the origin
Dice = random.Random


@dataclass
class Outcome:
    """What became of a damaged copy."""

    kind: str
    number: int
    damage: str
    outcome: str
    message: str = ""

    def line(self) -> str:
        """Return it in one line."""
        line = " ".join(f"{self.kind} {self.number}: {self.outcome}: {self.damage}: {self.message}".split())
        return line.encode(errors="backslashreplace").decode()


# ---- Damage


def damaged_bytes(data: bytes, dice: Dice, *, first: int = 0, last: int | None = None) -> tuple[bytes, str]:
    """Return bytes with some of them changed, within a range or, where the length changes, anywhere; and what it is."""
    last = len(data) if last is None else min(last, len(data))
    changed = bytearray(data)
    kind = dice.choice(("flip", "flip", "flip", "flips", "set", "zero", "truncate", "truncate", "cut", "add", "random"))
    where = dice.randrange(first, last)
    if kind == "flip":
        changed[where] ^= 1 << dice.randrange(8)
        return bytes(changed), f"a bit of byte {where} flipped"
    if kind == "flips":
        for place in (dice.randrange(first, last) for _ in range(dice.randint(2, 16))):
            changed[place] ^= dice.randint(1, 255)
        return bytes(changed), "several bytes changed"
    if kind in ("set", "zero"):
        end = min(last, where + dice.choice((1, 2, 4, 8, 64)))
        changed[where:end] = bytes(end - where) if kind == "zero" else dice.randbytes(end - where)
        return bytes(changed), f"bytes {where} to {end} {'zeroed' if kind == 'zero' else 'at random'}"
    if kind == "truncate":
        size = dice.choice((0, 1, dice.randrange(len(data)), dice.randrange(len(data)), len(data) - 1))
        return data[:size], f"cut off after {size} of {len(data)} bytes"
    if kind == "cut":
        end = min(len(data), where + dice.randint(1, 64))
        return data[:where] + data[end:], f"bytes {where} to {end} taken out"
    if kind == "add":
        more = dice.randbytes(dice.randint(1, 64))
        return data[:where] + more + data[where:], f"{len(more)} bytes put in at {where}"
    return dice.randbytes(dice.choice((1, 100, len(data)))), "random bytes"


# ---- NIfTI

FIELDS = {  # place and format in a NIfTI-1 header
    "sizeof_hdr": (0, "i"),
    "dim": (40, "h"),
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    "pixdim": (76, "f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern": (256, "f"),
    "qoffset": (268, "f"),
    "srow": (280, "f"),
    "magic": (344, "4s"),
}
COUNTS = {"dim": 8, "pixdim": 8, "quatern": 3, "qoffset": 3, "srow": 12}
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
EXTREMES: dict[str, tuple[Any, ...]] = {
    "h": (-32768, -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 128, 256, 512, 1024, 1280, 1536, 1792, 2304, 4096, 32767),
    "i": (0, -1, 347, 540, 2**31 - 1, 0x5C010000),
    "B": (0, 1, 2, 3, 4, 7, 8, 10, 17, 18, 255),
    "4s": (b"n+2\0", b"ni1\0", b"n+1 ", b"\0\0\0\0", b"abcd"),
    "f": (
        *(0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 351.0, 352.0, 353.0, 360.0, 368.0, 1e-30, 1e-6, 1e-3, 99.0, 100.0, 101.0),
        *(-352.0, 1e6, 1e9, 1e20, 1e30, 3e38, -3e38, math.inf, -math.inf, math.nan),
    ),
}


@dataclass
class Volume:
    """What an independent reader finds: voxels as they are meant, and the affine or, without one, the voxel sizes."""

    voxels: np.ndarray
    affine: np.ndarray | None
    sizes_mm: np.ndarray


def nifti_volume(data: bytes) -> Volume | None:
    """Return what the definition of NIfTI-1 says of a file's bytes, None if they make no volume."""
    if len(data) < 352 or data[344:347] not in (b"n+1",):
        return None
    for order in "<>":
        if 1 <= struct.unpack_from(f"{order}h", data, 40)[0] <= 7:
            break
    else:
        return None

    def get(name: str) -> Any:
        place, kind = FIELDS[name]
        return struct.unpack_from(f"{order}{COUNTS.get(name, 1)}{kind}", data, place)

    dim, [datatype], [bitpix], [offset] = get("dim"), get("datatype"), get("bitpix"), get("vox_offset")
    shape = dim[1 : dim[0] + 1]
    shape = shape[:3] if shape[3:] == (1,) else shape
    if datatype not in TYPES or len(shape) not in (3, 4) or min(shape) < 1 or not 352 <= offset < 2**31:
        return None
    kind, count = np.dtype(TYPES[datatype]).newbyteorder(order), math.prod(shape)
    if len(data) < int(offset) + count * kind.itemsize:
        return None
    if bitpix != 8 * kind.itemsize and len(data) > int(offset) + count * kind.itemsize:
        return None  # it contradicts itself, and there are more bytes than the type of number takes
    voxels = np.frombuffer(data, kind, count, int(offset)).reshape(shape, order="F")
    [slope], [inter] = get("scl_slope"), get("scl_inter")
    if math.isfinite(slope) and slope != 0:
        if not math.isfinite(inter):
            return None
        voxels = voxels.astype(np.float64) * slope + inter
    pixdim, affine = np.array(get("pixdim"), float), np.eye(4)
    if get("sform_code")[0] > 0:
        affine[:3] = np.array(get("srow"), float).reshape(3, 4)
    elif get("qform_code")[0] > 0:
        b, c, d = get("quatern")
        a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d)) if math.isfinite(b * b + c * c + d * d) else math.nan
        turn = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
            ]
        )
        affine[:3, :3] = turn * [pixdim[1], pixdim[2], pixdim[3] * (-1 if pixdim[0] < 0 else 1)]
        affine[:3, 3] = get("qoffset")
    else:
        return Volume(voxels, None, pixdim[1:4])
    with np.errstate(all="ignore"):
        return Volume(voxels, affine, np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))


def geometry_faults(affine: np.ndarray, shape: Sequence[int]) -> list[str]:
    """Return what can't be in the grid of an accepted volume."""
    if not np.isfinite(affine).all():
        return ["its affine isn't finite"]
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    faults = []
    if min(sizes) < PLAUSIBLE_MM[0] * 0.999 or max(sizes) > PLAUSIBLE_MM[1] * 1.001:
        faults.append(f"voxels of {sizes} mm")
    corners = np.array([[x, y, z, 1] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1) for z in (0, shape[2] - 1)])
    if np.abs(corners @ affine[:3].T).max() > 2 * FARTHEST_MM:
        faults.append(f"it lies {np.abs(corners @ affine[:3].T).max():.3g} mm from the origin")
    if min(sizes) > 0 and abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-4:
        faults.append("its axes don't span space")
    return faults


def same_volume(voxels: np.ndarray, affine: np.ndarray, truth: Volume | None) -> str:
    """Return how a volume differs from another, empty if it doesn't."""
    if truth is None:
        return "no independent reader reads it"
    if voxels.shape != truth.voxels.shape:
        return f"shape {voxels.shape}, expected {truth.voxels.shape}"
    expected = truth.voxels.astype(np.float64)
    if not np.allclose(voxels, expected, rtol=2e-6, atol=1e-6 * max(1e-30, float(np.abs(expected).max()))):
        return "other voxels"
    if truth.affine is None:
        sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        return "" if np.allclose(sizes, truth.sizes_mm, rtol=1e-5) else f"{sizes} mm, expected {truth.sizes_mm}"
    scale = np.abs(truth.affine).max()
    return "" if np.allclose(affine, truth.affine, rtol=1e-4, atol=2e-4 * scale) else "another affine"


def ct_voxels(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Return something like a CT, int16."""
    generator = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return np.round(300 * np.cos(2 * x) * np.cos(y + z) - 200 + generator.normal(0, 20, shape)).astype(np.int16)


def ct_labels(shape: Sequence[int]) -> np.ndarray:
    """Return a label map with four labels, uint8."""
    labels = np.zeros(shape, np.uint8)
    for label in LABELS:
        labels[2 + 2 * label : 4 + 2 * label, 3:9, 1:5] = label
    return labels


class Nifti:
    """Images and label maps: read, checked, prepared and loaded as for inference."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.copy = folder / "copy"
        self.copy.mkdir(parents=True)
        self.files: list[tuple[str, bytes, bool]] = []  # suffix, uncompressed bytes, whether it is a label map
        ct, labels = ct_voxels(SHAPE), ct_labels(SHAPE)
        for voxels, scale in ((ct, None), (ct.astype(np.float32), None), (ct, (2.0, -1024.0)), (labels, None)):
            image = nib.Nifti1Image(voxels, AFFINE)
            image.header.set_xyzt_units("mm")
            image.set_sform(AFFINE, 1)
            image.set_qform(AFFINE, 1)
            data = bytearray(image.to_bytes())
            if scale:
                struct.pack_into("<2f", data, 112, *scale)
            elif voxels is ct:
                struct.pack_into("<h", data, 254, 0)  # a qform alone
            for suffix in (".nii", ".nii.gz"):
                self.files.append((suffix, bytes(data), voxels is labels))
        self.image, self.label = folder / "image.nii.gz", folder / "label.nii.gz"
        self.image.write_bytes(gzip.compress(self.files[3][1], mtime=0))
        self.label.write_bytes(gzip.compress(self.files[-1][1], mtime=0))
        settings = {"spacing_mm": [1.0, 1.0], "orientation": "RAS", "normalise": [StandardiseImage()]}
        self.preparation = Preparation(**settings, resampling=ResampleThenNormalise(), labels=LABELS)  # type: ignore[arg-type]
        self.load = LoadVolumed(keys="image", image_only=True)

    def try_one(self, dice: Dice) -> tuple[str, Callable[[], list[str]]]:
        """Damage one copy, and return what was done and what reads it."""
        suffix, data, is_label = dice.choice(self.files)
        truth = nifti_volume(data)
        stored, damage = self.damaged(data, dice, compressed=suffix == ".nii.gz")
        path = self.copy / f"{'label' if is_label else 'image'}{suffix}"
        path.write_bytes(stored)
        name = f"{'label map' if is_label else 'image'}{suffix}, {damage}"
        return name, lambda: self.read(path, stored, truth, is_label=is_label)

    def damaged(self, data: bytes, dice: Dice, *, compressed: bool) -> tuple[bytes, str]:
        """Return a damaged file."""
        kind = dice.choice(("field", "field", "field", "header", "header", "data", "file"))
        if kind == "file":
            return damaged_bytes(gzip.compress(data, mtime=0) if compressed else data, dice)
        if kind == "data":
            whole = gzip.compress(data, mtime=0) if compressed else data
            return damaged_bytes(whole, dice, first=10 if compressed else 352)
        if kind == "header":
            changed, damage = damaged_bytes(data, dice, last=348)
        else:
            name = dice.choice([*FIELDS])
            changed, damages = bytearray(data), []
            for _ in range(dice.choice((1, 1, 2, 3))):
                place, kind = FIELDS[name]
                at = dice.randrange(COUNTS.get(name, 1))
                value = dice.choice(EXTREMES[kind])
                struct.pack_into(f"<{kind}", changed, place + at * struct.calcsize(kind), value)
                damages.append(f"{name}[{at}] = {value}")
            changed, damage = bytes(changed), ", ".join(damages)
        return gzip.compress(changed, mtime=0) if compressed else changed, f"header: {damage}"

    def read(self, path: Path, stored: bytes, truth: Volume | None, *, is_label: bool) -> list[str]:
        """Read a copy in all ways and return what is wrong with what was read."""
        if is_label:
            volume = open_volume(path)
            require_same_grid(open_volume(self.image), volume)
            voxels = as_label_ids(read_voxels(volume), LABELS, path)
            affine: np.ndarray = volume.affine
        else:
            channels, volume = read_image(path)
            voxels, affine = (channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1)), volume.affine
        faults = geometry_faults(affine, voxels.shape)
        if not np.isfinite(voxels).all():
            faults.append("NaN or infinite voxels")
        try:
            raw = gzip.decompress(stored) if path.suffix == ".gz" else stored
            independent = nifti_volume(raw)
        except (OSError, EOFError, ValueError, struct.error) as error:
            return [*faults, f"the standard library refuses it: {error}"]
        except Exception as error:  # zlib.error
            return [*faults, f"the standard library refuses it: {error}"]
        differs = same_volume(voxels, affine, independent)
        if differs and same_volume(voxels, affine, truth):
            faults.append(differs)
        header_remarks(volume)
        case = Case("a", (self.image,), path) if is_label else Case("a", (path,), self.label)
        checked = check_case(case, labels=LABELS)
        if any(not problem.usable for problem in checked.problems) and (is_label or voxels.ndim == 4):
            faults.append(f"check says: {checked.problems[0]}")
        if not is_label and voxels.ndim == 3:
            loaded = self.load({"image": str(path)})["image"]
            if not np.array_equal(np.asarray(loaded), voxels):
                faults.append("inference loads other voxels")
            if voxels.shape == SHAPE and not any(not problem.usable for problem in checked.problems):
                image, _, _ = prepare_case({"image": str(path), "label": str(self.label)}, self.preparation)
                if not bool(torch.isfinite(image).all()):
                    faults.append("prepared it holds NaN or infinite voxels")
        return faults


# ---- DICOM

TAGS: dict[str, tuple[Any, ...]] = {
    "Rows": (0, 1, 7, 15, 28, 65535),
    "Columns": (0, 1, 8, 17, 32, 65535),
    "BitsAllocated": (0, 1, 8, 12, 32, 64),
    "BitsStored": (0, 1, 8, 12, 32),
    "HighBit": (0, 7, 31),
    "PixelRepresentation": (0, 1, 2),
    "PixelSpacing": ([0, 0], [-1, 1], [1e-9, 1e-9], [1e9, 1e9], [1], [1, 1, 1], ["nan", 1], None, ["", ""], [50, 50]),
    "ImageOrientationPatient": (
        *([1, 0, 0, 1, 0, 0], [0] * 6, [1, 0, 0], ["nan", 0, 0, 0, 1, 0], [1e30, 0, 0, 0, 1e30, 0], None),
        *([1, 0, 0, 0, 0, 1], [-1, 0, 0, 0, 1, 0], [0.7, 0.7, 0, -0.7, 0.7, 0]),
    ),
    "ImagePositionPatient": ([0, 0, 1e30], ["nan", 0, 0], [0, 0], None, [1e9, 1e9, 7], [0, 0, 1000], ["inf", 0, 0]),
    "TransferSyntaxUID": (
        *("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"),
        *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 57, 70, 80, 90, 100, 201)),
        *("1.2.3", "", "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.7.1"),
    ),
    "RescaleSlope": (0, -1, "1e30", "nan", "inf", None, [1, 2], 100000, 0.5, "1e-30", "1e18"),
    "RescaleIntercept": ("1e30", "-1e30", "nan", None, [1, 2], 2**31, "1e18", 0.5),
    "SamplesPerPixel": (0, 2, 3, 65535),
    "PhotometricInterpretation": ("RGB", "PALETTE COLOR", "MONOCHROME1", "YBR_FULL", "nonsense", ""),
    "NumberOfFrames": (0, 1, 2, 1000000),
    "SOPClassUID": ("1.2.3", "", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4"),
    "SOPInstanceUID": ("1.2.3", ""),
    "SeriesInstanceUID": ("1.2.3", "", "../../x", "1.2.3\\1.2.4"),
    "StudyInstanceUID": ("1.2.3", ""),
    "FrameOfReferenceUID": ("1.2.3", ""),
    "SpecificCharacterSet": ("nonsense", "ISO_IR 192", ["", "x"]),
    "ImageType": ("LOCALIZER", ["ORIGINAL"], ""),
    "Modality": ("", "RTSTRUCT"),
}
PLANES = {"ImagePositionPatient"}


@dataclass
class Slices:
    """A series, as an independent reader has it: voxels, and the affine to LPS mm."""

    voxels: np.ndarray
    affine: np.ndarray


def dicom_slices(files: Sequence[Path]) -> Slices | None:
    """Return what pydicom says of files that make a series, None if it can't be; pixels by numpy, where it can."""
    try:
        slices = [pydicom.dcmread(file) for file in files]
        row, column = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(row, column)
        slices.sort(key=lambda one: float(np.array(one.ImagePositionPatient, float) @ normal))
        planes = []
        for one in slices:
            if one.file_meta.TransferSyntaxUID.is_compressed:
                stored = one.pixel_array
            else:
                if one.BitsAllocated not in (8, 16, 32):
                    return None
                order = ">" if not one.original_encoding[1] else "<"
                kind = np.dtype(f"{order}{'i' if one.PixelRepresentation else 'u'}{one.BitsAllocated // 8}")
                expected = one.Rows * one.Columns * kind.itemsize
                line = one.Columns * kind.itemsize
                if not expected <= len(one.PixelData) < expected + max(2, line):  # padding is less than a row
                    return None
                stored = np.frombuffer(one.PixelData, kind, one.Rows * one.Columns).reshape(one.Rows, one.Columns)
            slope, intercept = float(one.get("RescaleSlope", 1)), float(one.get("RescaleIntercept", 0))
            if slope == 0:
                return None
            planes.append(stored.astype(np.float64).T * slope + intercept)
        first, last = (np.array(one.ImagePositionPatient, float) for one in (slices[0], slices[-1]))
        spacing = np.array(slices[0].PixelSpacing, float)
        affine = np.eye(4)
        affine[:3] = np.stack(
            [row * spacing[1], column * spacing[0], (last - first) / max(1, len(slices) - 1), first], axis=1
        )
        return Slices(np.stack(planes, axis=2), affine)
    except Exception:  # it isn't readable
        return None


class Dicom:
    """Series of slices, found and written to NIfTI as by `predict`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.series = [folder / "plain", folder / "rle", folder / "scaled"]
        write_series(self.series[0])
        write_series(self.series[1], compress=True)
        write_series(self.series[2], slope=2)
        self.copy, self.out = folder / "copy", folder / "out"

    def try_one(self, dice: Dice) -> tuple[str, Callable[[], list[str]]]:
        """Damage one copy, and return what was done and what reads it."""
        source = dice.choice(self.series)
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(source, self.copy)
        files = sorted(self.copy.iterdir())
        file = dice.choice(files)
        kind = dice.choice(("bytes", "bytes", "header", "tag", "tag", "tag", "tags", "tags", "missing", "element"))
        if kind in ("bytes", "header"):
            data = file.read_bytes()
            stored, damage = damaged_bytes(data, dice, last=900 if kind == "header" else None)
            file.write_bytes(stored)
        elif kind == "missing":
            file.unlink()
            damage = "taken out"
        elif kind == "element":
            slice_ = pydicom.dcmread(file)
            keyword = dice.choice([one.keyword for one in slice_ if one.keyword])
            delattr(slice_, keyword)
            slice_.save_as(file)
            damage = f"without {keyword}"
        else:
            keyword = dice.choice([*TAGS])
            value = dice.choice(TAGS[keyword])
            damage = f"{keyword} = {value}"
            for one in [file] if kind == "tag" else files:
                set_tag(one, keyword, value)
            file = self.copy if kind == "tags" else file
        truth = dicom_slices(sorted(source.iterdir()))
        return f"{source.name}/{file.name}, {damage}", lambda: self.read(truth)

    def read(self, truth: Slices | None) -> list[str]:
        """Find the series, write it, and return what is wrong with it."""
        with contextlib.redirect_stdout(io.StringIO()) as said:
            volumes, refused = find_volumes(self.copy, out=self.out, channels=1)
        if any("\n" in one for one in refused):
            raise RuntimeError(f"a refusal of several lines: {refused}")
        faults: list[str] = []
        for volume in volumes:
            series = volume.series
            if series is None:
                return ["it is taken for NIfTI"]
            notes_on_series([series], {}, {})
            self.out.mkdir(exist_ok=True)
            written: Any = nib.load(series.write_nifti(self.out / "series.nii"))
            voxels, affine = np.asanyarray(written.dataobj), np.diag([-1.0, -1.0, 1.0, 1.0]) @ written.affine
            faults += geometry_faults(affine, voxels.shape)
            if not np.isfinite(voxels.astype(np.float32)).all():
                faults.append("NaN or infinite voxels")
            expected = [dicom_slices(series.files), truth]
            if not any(self.same(voxels, affine, one) for one in expected):
                faults.append("it isn't what pydicom reads")
            left_out = len(list(self.copy.iterdir())) - len(series.files)
            if left_out and not (refused or said.getvalue() or series.notes):
                faults.append(f"{left_out} files are left out and nothing is said")
        if not volumes:
            if not refused and not said.getvalue():
                return ["nothing is found and nothing is said"]
            raise Refused("; ".join(refused or [said.getvalue().strip()]))
        return faults

    def same(self, voxels: np.ndarray, affine: np.ndarray, other: Slices | None) -> bool:
        """Return whether a written series is what was expected."""
        return (
            other is not None
            and voxels.shape == other.voxels.shape
            and np.allclose(voxels, other.voxels, rtol=1e-5, atol=1e-3)
            and np.allclose(affine, other.affine, rtol=1e-3, atol=2e-3)
        )


class Refused(Exception):
    """Said in the way of a command that goes on with the rest."""


def write_series(folder: Path, *, compress: bool = False, slope: float = 1) -> None:
    """Write a CT series of small slices."""
    voxels = ct_voxels(SHAPE)
    folder.mkdir()
    for k in range(SHAPE[2]):
        one = pydicom.Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, f"1.2.826.0.1.3680043.8.498.1.{k + 1}"
        one.StudyInstanceUID, one.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.2", "1.2.826.0.1.3680043.8.498.4"
        one.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.3"
        one.SpecificCharacterSet, one.ImageType = "ISO_IR 100", ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.PatientID = one.PatientName = "phantom"
        one.StudyDate, one.Modality, one.InstanceNumber = "20200101", "CT", k + 1
        one.ImagePositionPatient = [-10, -20, 30 + k * 2.5]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness = [0.9, 0.8], 2.5
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.Columns, one.Rows = SHAPE[:2]
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, 1
        one.RescaleIntercept, one.RescaleSlope = 0, slope
        one.PixelData = voxels[:, :, k].T.astype("<i2").tobytes()
        one["PixelData"].VR = "OW"
        if compress:
            one.compress(RLELossless, generate_instance_uid=False)
        one.save_as(folder / f"slice_{k:04d}.dcm", enforce_file_format=True)


def set_tag(file: Path, keyword: str, value: Any) -> None:
    """Change a tag of a file, also to what the standard forbids."""
    slice_ = pydicom.dcmread(file)
    if keyword == "TransferSyntaxUID":  # of the same length, so that the rest stays as it is
        data = file.read_bytes()
        place = data.index(b"\x02\x00\x10\x00UI")
        size = int.from_bytes(data[place + 6 : place + 8], "little")
        text = value.encode().ljust(size + size % 2, b"\0")[: max(size, len(value) + len(value) % 2)]
        text += b"\0" * (len(text) % 2)
        group = data.index(b"\x02\x00\x00\x00UL") + 8
        length = int.from_bytes(data[group : group + 4], "little") + len(text) - size
        changed = data[: place + 6] + len(text).to_bytes(2, "little") + text + data[place + 8 + size :]
        file.write_bytes(changed[:group] + length.to_bytes(4, "little") + changed[group + 4 :])
        return
    element = pydicom.DataElement(Tag(keyword), pydicom.datadict.dictionary_VR(keyword), None)
    if element.VR in ("DS", "IS", "UI", "CS") and value is not None:
        values = value if isinstance(value, list) else [value]
        raw = "\\".join(f"{one}" for one in values).encode()
        raw += (b"\0" if element.VR == "UI" else b" ") * (len(raw) % 2)
        slice_[keyword] = pydicom.dataelem.RawDataElement(Tag(keyword), element.VR, len(raw), raw, 0, False, True, True)
    else:
        setattr(slice_, keyword, value)
    slice_.save_as(file)


# ---- JSON

OTHERS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.5, 1e308, 10**30, "", "x", [], {}, [[]], {"0": None}, [1, 2], {"a": {"b": 1}}),
    *(math.nan, math.inf, "\ud800", "a\0b", "a\nb: $1", "$__import__('os').getpid()", "../../x", ".", "/", "1" * 5000),
)


def places_in(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the places of all values in nested lists and dicts, the outermost first."""
    yield place
    if isinstance(content, (dict, list)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places_in(value, (*place, key))


def replaced(content: Any, place: Sequence[Any], change: Callable[[Any], Any]) -> Any:
    """Return content with the value at a place changed."""
    if not place:
        return change(content)
    copied = dict(content) if isinstance(content, dict) else list(content)
    copied[place[0]] = replaced(content[place[0]], place[1:], change)  # type: ignore[index]
    return copied


def dropped(content: Any, place: Sequence[Any]) -> Any:
    """Return content without the value at a place."""
    if len(place) > 1:
        return replaced(content, place[:-1], lambda held: dropped(held, place[-1:]))
    if isinstance(content, dict):
        return {key: value for key, value in content.items() if key != place[0]}
    return [value for number, value in enumerate(content) if number != place[0]]


def damaged_json(text: str, dice: Dice) -> tuple[bytes, str]:
    """Return damaged JSON."""
    content = json.loads(text)
    kind = dice.choice(
        ("bytes", "bytes", "other", "other", "other", "drop", "twice", "deep", "huge", "swap", "encoding")
    )
    if kind == "bytes":
        return damaged_bytes(text.encode(), dice)
    place = dice.choice([*places_in(content)])
    if kind == "other":
        value = dice.choice(OTHERS)
        return json.dumps(replaced(content, place, lambda _: value)).encode(), f"{place} is {str(value)[:40]!r}"
    if kind == "drop" and place:
        return json.dumps(dropped(content, place)).encode(), f"{place} is dropped"
    if kind == "twice":
        objects = [one for one in places_in(content) if one and isinstance(one[-1], str)]
        if objects:
            place = dice.choice(objects)
            again = json.dumps(dice.choice(OTHERS))
            mark = "MARK-OF-THE-PLACE"
            marked = json.dumps(replaced(content, place, lambda held: {mark: held}))
            start = marked.index(f'{{"{mark}": ')
            _, end = json.JSONDecoder().raw_decode(marked, start)
            held = marked[start + len(mark) + 5 : end - 1]
            out = f"{marked[:start]}{held}, {json.dumps(place[-1])}: {again}{marked[end:]}"
            return out.encode(), f"{place} is there twice"
    if kind == "huge":
        number = dice.choice(("1" * 5000, "1e999", "-1e999", "1" * 400, "0." + "1" * 5000, "NaN", "-Infinity"))
        marked = json.dumps(replaced(content, place, lambda _: "MARK-OF-THE-PLACE"))
        return marked.replace('"MARK-OF-THE-PLACE"', number).encode(), f"{place} is {number[:10]}"
    if kind == "swap":
        kinds = (lambda v: [v], lambda v: {"0": v}, str, lambda v: list(v) if isinstance(v, dict) else v)
        change = dice.choice(kinds)
        return json.dumps(replaced(content, place, change)).encode(), f"{place} has another type"
    if kind == "encoding":
        code = dice.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1"))
        return f"{text[:-1]} ".encode(code) if code != "latin-1" else text.replace("l", "é").encode(code), code
    depth = dice.choice((100, 900, 5000, 100_000))
    opening, closing = dice.choice((("[", "]"), ('{"a":', "}")))
    deep = opening * depth + ("1" + closing * depth if dice.random() < 0.7 else "")
    marked = json.dumps(replaced(content, place, lambda _: "MARK-OF-THE-PLACE"))
    return marked.replace('"MARK-OF-THE-PLACE"', deep).encode(), f"{place} is {depth} deep"


def strict_json(data: bytes) -> tuple[Any, bool]:
    """Return JSON's content, and whether it is sound: read without error, with no key twice.

    NaN and infinity count as sound, as Python writes them; the rules for each file say where they may stand.
    """
    twice = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) < len(items):
            twice.append(items)
        return dict(items)

    try:
        content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return None, False
    return content, not twice


def same_content(a: Any, b: Any) -> bool:
    """Return whether two contents are the same, with True no 1, and NaN itself."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_content(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_content, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def name_faults(name: Any) -> list[str]:
    """Return why an accepted name can't be passed on, to other files or a configuration."""
    if not isinstance(name, str):
        return [f"{name!r} is no name"]
    try:
        name.encode()
    except UnicodeEncodeError:
        return [f"{name!r} can't be written"]
    if any(ord(letter) < 32 for letter in name) or name.lstrip().startswith(("$", "@", "%")):
        return [f"the name {name!r} may run as code"]
    return []


class Json:
    """The JSON files that are read: data sets, histories, settings, scores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, tuple[Path, str, Callable[[Path], Any], Callable[[Any], list[str]]]] = {}
        numbers = range(6)
        pairs = [{"image": f"imagesTr/c{n}_0000.nii.gz", "label": f"labelsTr/c{n}.nii.gz"} for n in numbers]
        decathlon = [{"image": f"imagesTr/c{n}.nii.gz", "label": f"labelsTr/c{n}.nii.gz"} for n in numbers]
        labels = {"0": "background", **{str(key): name for key, name in LABELS.items()}}
        named = {f"c{n}": {"images": [pair["image"]], "label": pair["label"]} for n, pair in enumerate(pairs)}
        swapped = {name: int(key) for key, name in labels.items()}
        contents = {
            "nnunet1": {"name": "a", "modality": {"0": "CT"}, "labels": labels, "training": decathlon, "test": []},
            "nnunet2": {"channel_names": {"0": "CT"}, "labels": swapped, "numTraining": 6, "file_ending": ".nii.gz"},
            "named": {"channel_names": {"0": "CT"}, "labels": swapped, "file_ending": ".nii.gz", "dataset": named},
            "decathlon": {"modality": {"0": "MRI"}, "labels": labels, "training": decathlon, "test": ["a.nii.gz"]},
            "datalist": {"labels": labels, "training": [{**one, "fold": n % 3} for n, one in enumerate(pairs)]},
        }
        for name, content in contents.items():
            place = folder / name
            for below in ("imagesTr", "labelsTr"):
                (place / below).mkdir(parents=True)
            for n in numbers:
                (place / f"labelsTr/c{n}.nii.gz").touch()
                (place / f"imagesTr/c{n}{'' if name == 'decathlon' else '_0000'}.nii.gz").touch()
            file = place / ("datalist.json" if name == "datalist" else "dataset.json")
            self.add(name, file, content, self.read_data, self.data_faults)
        history = [{"epoch": epoch, "loss": 0.5 / epoch, "validation/mean_dsc": None} for epoch in (1, 2, 3)]
        self.add("history", folder / "history.json", history, read_history, self.history_faults)
        run = folder / "run"
        settings = {"dataset_dir": str(folder / "nnunet2"), "layout": "auto", "data_root": None}
        rest = {"values": {"max_epochs": 3}, "folds": [0], "overlays": ["max_epochs: 3\n"]}
        self.add("settings", run / "cross_validation.json", {**settings, **rest}, self.read_run, self.run_faults)
        (run / "fold_0").mkdir()
        rows = [{"case": "c0", "label": 1, "organ": "liver", "dsc": 0.9, "nsd": 0.8}]
        write_csv(rows, run / "fold_0" / "scores.csv")  # type: ignore[arg-type]
        self.add("run's history", run / "fold_0" / "history.json", history, self.read_run, self.run_faults)
        metadata = json.loads(Path(bundle_root(), "configs", "metadata.json").read_text())
        self.add("metadata", folder / "metadata.json", metadata, self.read_metadata, self.object_faults)
        scores = {f"image{n}": {"disagreement": n / 7, "weights": "123-456"} for n in range(4)}
        self.add("scores", folder / "scores.json", scores, lambda path: Scores(path).read(), self.score_faults)
        case = {"name": "c0", "spacing_mm": [1.0, 1.0, 2.5], "size": [3, 4, 5], "label_voxels": {"1": 4}}
        text = with_checksum(case)
        self.add("fingerprint", folder / "c0.json", json.loads(text), read_with_checksum, self.checksum_faults, text)
        self.expected = {name: read(path) for name, (path, _, read, _) in self.files.items()}
        self.healing = ("scores", "fingerprint")  # what is damaged is made anew

    def add(
        self,
        name: str,
        path: Path,
        content: Any,
        read: Callable[[Path], Any],
        faults: Callable[[Any], list[str]],
        text: str | None = None,
    ) -> None:
        """Write a file, and remember how it is read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1) if text is None else text
        path.write_text(text)
        self.files[name] = path, text, read, faults

    def try_one(self, dice: Dice) -> tuple[str, Callable[[], list[str]]]:
        """Damage one file, and return what was done and what reads it."""
        name = dice.choice([*self.files])
        path, text, _, _ = self.files[name]
        data, damage = damaged_json(text, dice)
        return f"{name}, {damage}", lambda: self.read(name, path, data, text)

    def read(self, name: str, path: Path, data: bytes, text: str) -> list[str]:
        """Read a damaged file and return what is wrong with what was read."""
        _, _, read, faults_of = self.files[name]
        try:
            path.write_bytes(data)
            got = read(path)
        finally:
            path.write_text(text)
        content, sound = strict_json(data)
        if got in (None, {}) and name in self.healing:
            return []
        if not sound:
            return ["it is no JSON, or has a key twice, and is accepted"]
        if same_content(content, json.loads(text)):
            return [] if repr(got) == repr(self.expected[name]) else ["another result of the same content"]
        return faults_of(got)

    def read_data(self, path: Path) -> Any:
        """Read a data set in all ways."""
        source = path if path.name == "datalist.json" else path.parent
        data_set = read_data_set(source)
        if data_set.labels:
            label_ids(data_set.labels)
        split = split_cases(str(source), fold=1)
        images = find_images(str(path)) if path.name == "datalist.json" else ()
        for problem in data_set.problems:
            if "\n" in str(problem):
                raise RuntimeError(f"a problem of several lines: {problem}")
        return data_set, split, images

    def data_faults(self, got: Any) -> list[str]:
        """Return what can't be of a data set."""
        data_set, _, _ = got
        faults = [fault for name in (*data_set.labels.values(), *data_set.channel_names) for fault in name_faults(name)]
        for case in data_set.cases:
            faults += name_faults(case.name)
            if not case.image or not all(file.is_file() for file in (*case.image, case.label)):
                faults.append(f"{case.name} has no files")
            if case.fold is not None and type(case.fold) is not int:
                faults.append(f"{case.name} has the fold {case.fold}")
        faults += [f"the label {key}" for key in data_set.labels if type(key) is not int or not 1 <= key <= 255]
        return faults

    def history_faults(self, got: Any) -> list[str]:
        """Return what can't be of a history."""
        values = [(key, value) for row in got for key, value in row.items()]
        faults = [f"{key} is {str(value)[:30]}" for key, value in values if type(value) not in (int, float)]
        epochs = [row["epoch"] for row in got]
        if any(a >= b for a, b in itertools.pairwise(epochs)):
            faults.append(f"epochs {epochs}")
        return faults

    def read_run(self, path: Path) -> Any:
        """Read the cross-validation that a file is of."""
        [run] = read_runs([self.folder / "run"])
        return run, run.overlays, run.rows

    def run_faults(self, got: Any) -> list[str]:
        """Return what can't be of a cross-validation."""
        run = got[0]
        faults = [fault for history in run.histories.values() for fault in self.history_faults(history)]
        if not isinstance(run.settings.get("values"), dict) or not isinstance(run.settings.get("overlays"), list):
            faults.append("settings of other types")
        return faults

    def read_metadata(self, path: Path) -> Any:
        """Read a bundle's metadata as `predict` does."""
        metadata = read_metadata(path)
        return metadata, list(notes_on_series([], {}, metadata))

    def object_faults(self, got: Any) -> list[str]:
        """Return what can't be of a bundle's metadata."""
        return [fault for key in ("name", "version") for fault in name_faults(got[0][key])]

    def score_faults(self, got: Any) -> list[str]:
        """Return what can't be of scores."""
        faults = []
        for name, score in got.items():
            value = score.get("disagreement") if isinstance(score, dict) else "none"
            if not (value is None or (type(value) in (int, float) and 0 <= value <= 1)):
                faults.append(f"{name} is {str(score)[:40]}")
            elif not isinstance(score.get("weights"), str):
                faults.append(f"{name} has no weights")
        return faults

    def checksum_faults(self, got: Any) -> list[str]:
        """Return that it was accepted, though its checksum is of something else."""
        return ["another content than the checksum's is accepted"]


# ---- Weights


class Weights:
    """A network's weights, and a training's checkpoint."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.copy = folder / "copy.pt"
        torch.manual_seed(3)
        self.network = Committee([UNet2d(in_channels=1, out_channels=3, features=[2, 4]) for _ in range(2)])
        self.network.iterations_trained += 1
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        checkpoint = {
            **{"network": self.network.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": {"epoch": 1}},
            **{"trainer": {"max_epochs": 3, "epoch": 1}, "config": json.dumps({"max_epochs": 3})},
        }
        self.files = {"model.pt": self.network.state_dict(), "checkpoint.pt": checkpoint}
        self.data = {}
        for name, content in self.files.items():
            torch.save(content, folder / name)
            self.data[name] = (folder / name).read_bytes()

    def try_one(self, dice: Dice) -> tuple[str, Callable[[], list[str]]]:
        """Damage one copy, and return what was done and what reads it."""
        name = dice.choice([*self.files])
        data = self.data[name]
        where = dice.choice(("anywhere", "anywhere", "directory", "start"))
        bounds = {"anywhere": (0, len(data)), "directory": (len(data) - 2500, len(data)), "start": (0, 600)}[where]
        stored, damage = damaged_bytes(data, dice, first=bounds[0], last=bounds[1])
        self.copy.write_bytes(stored)
        return f"{name}, {damage}", lambda: self.read(name)

    def read(self, name: str) -> list[str]:
        """Load a copy as `LoadWeights` does."""
        loaded = load_file(self.copy, map_location="cpu")
        load_parts({"network": self.network}, {"network": loaded.get("network", loaded)}, self.copy)
        return [] if same_tensors(loaded, self.files[name]) else ["other weights are accepted"]


def same_tensors(a: Any, b: Any) -> bool:
    """Return whether two nested contents are the same."""
    if isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(b, Mapping):
        return isinstance(a, Mapping) and a.keys() == b.keys() and all(same_tensors(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_tensors, a, b))
    return type(a) is type(b) and bool(a == b)


# ---- A store of prepared cases


class Store:
    """A prepared case, which must be prepared anew to the same bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder / "store", Nifti(folder / "source")
        self.case = {"image": str(self.source.image), "label": str(self.source.label), "name": "label"}
        self.place = self.store()
        self.whole = {path.name: path.read_bytes() for path in self.place.iterdir()}

    def store(self) -> Path:
        """Return the case's folder, prepared if need be."""
        return store_case(self.case, folder=self.folder, preparation=self.source.preparation).folder

    def try_one(self, dice: Dice) -> tuple[str, Callable[[], list[str]]]:
        """Damage one file, and return what was done and what reads it."""
        name = dice.choice(sorted(self.whole))
        path, data = self.place / name, self.whole[name]
        kind = dice.choice(("bytes", "bytes", "bytes", "delete", "folder", "content"))
        damage = f"{kind} instead"
        if kind == "folder":
            path.unlink()
            path.mkdir()
        elif kind == "delete":
            path.unlink()
        elif kind == "content" and name == "case.json":
            about = json.loads(data)
            del about["checksum"]
            key = dice.choice([*about])
            damage = f"without {key}, as of another version, with its checksum"
            path.write_text(with_checksum(dropped(about, (key,))))
        elif name == "case.json" and dice.random() < 0.6:
            stored, damage = damaged_json(data.decode(), dice)
            path.write_bytes(stored)
        else:
            stored, damage = damaged_bytes(data, dice)
            path.write_bytes(stored)
        return f"{name}, {damage}", self.read

    def read(self) -> list[str]:
        """Have the case prepared and compare its bytes."""
        try:
            self.store()
            now = {path.name: path.read_bytes() for path in self.place.iterdir()}
            about = now.get("case.json", b"").strip()  # the end of its line is no part of what it says
            now["case.json"] = self.whole["case.json"] if about == self.whole["case.json"].strip() else about
            wrong = sorted(name for name in {*now, *self.whole} if now.get(name) != self.whole.get(name))
            left = [path.name for path in self.folder.iterdir() if path != self.place]
        finally:
            shutil.rmtree(self.folder)
            self.place.mkdir(parents=True)
            for name, data in self.whole.items():
                (self.place / name).write_bytes(data)
        return [f"{', '.join(wrong)} is another"] * bool(wrong) + [f"{left} is left over"] * bool(left)


# ---- Losses


class Selected:
    """What a trainer leaves of an iteration."""

    def __init__(self, generator: torch.Generator, number: int) -> None:
        self.samples = [(f"c{number}", k) for k in range(4)]
        self.losses = torch.rand((3, 4), generator=generator)
        self.kept = self.losses < 0.7


class Arrow:
    """The record of losses, four epochs of it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.copy = folder / "losses.arrow"
        generator = torch.Generator().manual_seed(4)
        about = {"cases": {f"c{n}": {"image": "a", "label": "b"} for n in range(5)}, "labels": {"1": "liver"}}
        self.ends = []
        for epoch in (1, 2, 3, 4):
            rows = [(n, Selected(generator, n), torch.randint(0, 99, (4, 3, 3), generator=generator)) for n in range(5)]
            append(as_batch(rows, epoch=epoch), self.copy, about={**about, "orientation": "RAS"})
            self.ends.append(self.copy.stat().st_size)
        self.data = self.copy.read_bytes()
        table, self.about = read_losses(self.copy)
        self.rows = table.to_pylist()
        self.stored = self.data

    def try_one(self, dice: Dice) -> tuple[str, Callable[[], list[str]]]:
        """Damage one copy, and return what was done and what reads it."""
        begin = dice.choice((0, 0, *self.ends[:-1]))
        near = dice.random() < 0.5  # the parts' own headers
        stored, damage = damaged_bytes(self.data, dice, first=begin, last=begin + 700 if near else None)
        self.copy.write_bytes(stored)
        return damage, lambda: self.read(stored)

    def read(self, stored: bytes) -> list[str]:
        """Read a copy."""
        table, about = read_losses(self.copy)
        rows = table.to_pylist()
        if about != self.about:
            return ["another description"]
        if rows == self.rows:
            return []
        whole = 0 if not rows else rows[-1]["epoch"]
        if rows != [row for row in self.rows if row["epoch"] <= whole]:
            return ["other losses are accepted"]
        cut_off = self.data.startswith(stored)
        pairs = zip(stored, self.data, strict=False)
        same_until = next((place for place, (a, b) in enumerate(pairs) if a != b), len(stored))
        if cut_off or same_until >= self.ends[-2]:  # the last epoch may be one that was never written to its end
            return []
        return [f"only {whole} of 4 epochs are read, though the file isn't cut off"]


# ---- Plans

CODES = (
    "$__import__('pathlib').Path({!r}).touch()",
    " $__import__('pathlib').Path({!r}).touch()",
    "%/etc/hostname::x",
    "$import pathlib; pathlib.Path({!r}).touch()",
)
TARGETS = (
    "os.system",
    "pathlib.Path.touch",
    "scripts.transforms.normalisation.torch.os.system",
    "scripts.transforms.normalisation.torch.load",
    "scripts.runtime.atomic_files.write_whole",
    "builtins.exec",
)


class PlanFile:
    """plan.yaml, as `predict`, `train` and others take it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.path, self.canary = folder, folder / "plan.yaml", folder / "evaluated"
        values = ForegroundIntensities(-16.0, 100.0, 270.0, 116.6, 47.9, -100.0, 300.0)
        plan = Plan(
            **{"cases": 5, "orientation": "RAS", "spacing_mm": (6.0, 6.0), "slice_spacing_mm": 2.5},  # type: ignore[arg-type]
            **{"spacing_range_mm": ((6.0, 6.0), (6.0, 6.0)), "median_size": (48, 48), "patch_size": (48, 48)},  # type: ignore[arg-type]
            **{"crop_size": (56, 56), "features": (4, 8), "strides": ((2, 2),), "batch_size": 4},  # type: ignore[arg-type]
            **{"planned_batch_size": 4, "rotation_degrees": 180, "channel_names": ("CT",), "masked": False},  # type: ignore[arg-type]
            intensities=(values,),
        )
        self.text = plan_text(plan, labels=LABELS, places={"dataset_dir": str(folder)})
        torch.manual_seed(3)
        network = Committee([UNet2d(in_channels=1, out_channels=5, features=[4, 8]) for _ in range(3)])
        network.iterations_trained += 1
        self.weights = folder / "model.pt"
        torch.save(network.state_dict(), self.weights)

    def try_one(self, dice: Dice) -> tuple[str, Callable[[], list[str]]]:
        """Damage one copy, and return what was done and what reads it."""
        content = yaml.safe_load(self.text)
        kind = dice.choice(("bytes", "bytes", "types", "types", "code", "code", "code", "target", "yaml"))
        place = dice.choice([*places_in(content)][1:])
        if kind == "bytes":
            stored, damage = damaged_bytes(self.text.encode(), dice)
        elif kind == "types":
            value = dice.choice(OTHERS[:-1])
            changed = replaced(content, place, lambda _: value)
            damage = f"{place} is {str(value)[:40]!r}"
            stored = yaml.safe_dump(changed).encode(errors="surrogatepass")
        elif kind == "code":
            code = dice.choice(CODES).format(str(self.canary))
            how = dice.choice(("value", "list", "dict", "key", "requires", "deep"))
            put = {
                "value": lambda _: code,
                "list": lambda held: [held, code],
                "dict": lambda held: {"x": held, "y": code},
                "key": lambda held: {code: held},
                "requires": lambda held: {"_target_": "builtins.dict", "_requires_": code, "x": held},
                "deep": lambda held: [[[{"x": [code]}]]],
            }[how]
            changed = replaced(content, place, put)
            damage, stored = f"{place} with {code[:12]} as {how}", yaml.safe_dump(changed).encode()
        elif kind == "target":
            target = dice.choice(TARGETS)
            arguments = {"command": f"touch {self.canary}"}
            how = dice.choice(("value", "hash", "plus", "component"))
            if how == "value":
                changed = replaced(content, place, lambda _: {"_target_": target, **arguments})
            elif how == "component":
                changed = replaced(content, ("normalise", 0), lambda held: {**held, "_target_": target})
            else:
                key = dice.choice(("normalise#0", "member", "resampling", "x"))
                changed = {**content, f"{'+' if how == 'plus' else ''}{key}#_target_": target, f"{key}#command": "true"}
            damage, stored = f"{target} as {how} at {place}", yaml.safe_dump(changed, sort_keys=False).encode()
        else:
            stored, damage = self.odd_yaml(dice)
        self.path.write_bytes(stored)
        return damage, lambda: self.read(stored)

    def odd_yaml(self, dice: Dice) -> tuple[bytes, str]:
        """Return the plan with something in it that YAML allows."""
        odd = {
            "laughs": "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(40)),
            "circle": "patch_size: &a [*a]\n",
            "deep": f"patch_size: {'[' * 3000}1{']' * 3000}\n",
            "date": "patch_size: 2020-99-99\n",
            "python": "patch_size: !!python/object/apply:os.getpid []\n",
            "int": 'patch_size: !!int ""\n',
            "long": f"patch_size: {'1' * 5000}\n",
            "bool": "patch_size: !!bool x\n",
            "float": "patch_size: !!float x\n",
            "key": "? [1, 2]\n: 3\n",
            "number": "3: 4\n",
            "none": "~: 4\n",
            "twice": "patch_size: [48, 48]\npatch_size: [64, 64]\n",
            "two": "---\npatch_size: [48, 48]\n",
            "merge": "<<: {patch_size: 3}\n",
            "set": "patch_size: !!set {a, b}\n",
            "binary": "orientation: !!binary aGFsbG8=\n",
            "octal": "batch_size: 0o9\n",
            "sexagesimal": "batch_size: 190:20:30\n",
            "omap": "patch_size: !!omap [a: '$1']\n",
        }
        name = dice.choice([*odd])
        return (self.text + odd[name]).encode(), f"YAML: {name}"

    def read(self, stored: bytes) -> list[str]:
        """Read a copy as `predict` does, to the loaded network."""
        self.canary.unlink(missing_ok=True)
        try:
            require_plan(self.path)
            values = {"ckpt_path": str(self.weights), "device": "cpu", "precision": "float32"}
            parser = open_config("inference.yaml", [str(self.path)], values=values)
            content = yaml.safe_load(stored)
            code = [one for one in code_in(content) if not one.startswith("scripts.transforms.normalisation.")]
            code += [one for one in code_in(content) if one.count(".") > 3]
            predictor = Predictor.from_parser(parser)
            open_config("train.yaml", [str(self.path)])
            faults = [f"it holds {one[:60]}" for one in code]
            size = [*predictor.inferer.tile_size]
            if len(size) != 2 or not all(type(n) is int and 1 <= n <= 4096 for n in size):
                faults.append(f"the patch size {size}")
            faults += [fault for name in parser.get_parsed_content("labels").values() for fault in name_faults(name)]
        finally:
            evaluated = self.canary.exists()
            self.canary.unlink(missing_ok=True)
            if evaluated:
                print("EVALUATED", file=sys.stderr)
        return [*faults, "its code was run"] if evaluated else faults


def code_in(content: Any, key: str = "", depth: int = 0) -> Iterator[str]:
    """Yield what would be run of a configuration: by its strings' beginnings, and by what stands under _target_."""
    if depth > 50:
        return
    if isinstance(content, dict):
        for name, value in content.items():
            yield from code_in(value, str(name), depth + 1)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from code_in(value, "", depth + 1)
    elif key.split("#")[-1] == "_target_" or (isinstance(content, str) and content.strip()[:1] in ("$", "%")):
        yield str(content)


# ---- The benchmark

KINDS: dict[str, tuple[Any, int]] = {
    "nifti": (Nifti, 3000),
    "dicom": (Dicom, 1100),
    "json": (Json, 1500),
    "weights": (Weights, 300),
    "store": (Store, 250),
    "arrow": (Arrow, 200),
    "plan": (PlanFile, 300),
}


def make(kind: str, folder: Path) -> Any:
    """Return a kind with its good files written into a folder."""
    quiet()
    return KINDS[kind][0](folder)


def quiet() -> None:
    """Keep nibabel, pydicom and our own logs silent: each damaged file gives a warning."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def outcome(made: Any, kind: str, number: int, *, seed: int = 0) -> Outcome:
    """Make one damaged copy, read it, and return what became of it."""
    damage, read = made.try_one(random.Random(f"{seed} {kind} {number}"))
    damage = " ".join(damage.split())
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result, message = judged(read)
        took_s, after = time.monotonic() - began_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if took_s > LIMIT_S:
        result, message = "time", f"{took_s:.0f} s"
    if (after - before) * 1024 > LIMIT_BYTES:
        result, message = "memory", f"{(after - before) / 2**20:.1f} GB"
    return Outcome(kind, number, damage, result, message)


def judged(read: Callable[[], list[str]]) -> tuple[str, str]:
    """Return what comes of reading a file, and the message."""
    try:
        wrong = read()
    except Refused as error:
        return "refused", str(error)
    except Exception as error:
        causes = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
            causes.append(cause)  # type: ignore[arg-type]
        bad_input = find_bad_input(error)
        if any(isinstance(one, MemoryError) for one in causes) and str(bad_input or "memory:").startswith("memory:"):
            return "memory", f"{type(error).__name__}: {error}"[:300]
        if bad_input is None or "\n" in str(bad_input):
            last = traceback.extract_tb(error.__traceback__)[-1]
            message = " ".join(str(error).split())[:200]
            return "traceback", f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {message}"
        return "refused", str(bad_input)
    return ("wrong", "; ".join(wrong)) if wrong else ("read", "")


def in_child(kind: str, numbers: Sequence[int], folder: Path, *, seed: int) -> list[Outcome]:
    """Return the outcomes of some copies; a child process reads them, and a new one goes on where one has died."""
    made = make(kind, folder / kind)
    waiting, outcomes = list(numbers), []
    while waiting:
        results = folder / "results.jsonl"
        results.write_text("")
        child = os.fork()
        if child == 0:
            work(made, kind, waiting, results, seed)
        status, last_size, last_s = None, 0, time.monotonic()
        while status is None:
            ended, code = os.waitpid(child, os.WNOHANG)
            size = results.stat().st_size
            if size != last_size:
                last_size, last_s = size, time.monotonic()
            if ended:
                status = "done" if code == 0 else f"crash: {code}"
            elif time.monotonic() - last_s > 1.5 * LIMIT_S:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                status = "time"
            else:
                time.sleep(0.02)
        done = [Outcome(**json.loads(line)) for line in results.read_text().splitlines()]
        outcomes += done
        waiting = waiting[len(done) :]
        if status == "done":
            break
        if waiting:
            outcomes.append(Outcome(kind, waiting.pop(0), "", status.split(":")[0], status))
            shutil.rmtree(folder / kind)
            made = make(kind, folder / kind)
    return outcomes


def work(made: Any, kind: str, numbers: Sequence[int], results: Path, seed: int) -> NoReturn:
    """Read copies and write their outcomes, a line each; then end the process."""
    code = 1
    try:
        torch.set_num_threads(1)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        limit = used + 4 * LIMIT_BYTES  # what is claimed and never filled takes no memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with results.open("a", buffering=1) as file:
            for number in numbers:
                file.write(json.dumps(asdict(outcome(made, kind, number, seed=seed))) + "\n")
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the table by kind."""
    lines = [f"{'kind':10}{'copies':>8}" + "".join(f"{name:>11}" for name in OUTCOMES)]
    for kind in dict.fromkeys(one.kind for one in outcomes):
        count = Counter(one.outcome for one in outcomes if one.kind == kind)
        lines.append(f"{kind:10}{sum(count.values()):>8}" + "".join(f"{count[name]:>11}" for name in OUTCOMES))
    return "\n".join(lines)


def main(
    *,
    kinds: str | Sequence[str] = tuple(KINDS),
    seed: int = 0,
    share: float = 1.0,
    number: int | None = None,
    list_refusals: bool = False,
) -> None:
    names = kinds.split(",") if isinstance(kinds, str) else list(kinds)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        for kind in names:
            numbers = range(math.ceil(share * KINDS[kind][1])) if number is None else [number]
            found = in_child(kind, numbers, Path(name), seed=seed)
            for one in found:
                if one.outcome not in FINE or list_refusals or number is not None:
                    print(one.line(), flush=True)
            outcomes += found
    print(table(outcomes))
    if any(one.outcome not in FINE for one in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    fire.Fire(main)
