"""Prepared cases on disk, laid out so that training reads one slice without its volume."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from isal.isal_zlib import crc32
from torch import Tensor

from ..runtime.atomic_files import (
    put_in_place,
    read_with_checksum,
    remove_folder,
    remove_unfinished,
    unfinished_path,
    with_checksum,
)
from ..runtime.errors import BadInput
from ..runtime.parallel import for_each
from ..transforms.normalisation import Normalisation, fit_channels, nonzero_box
from ..transforms.resampling import Resampling, resample_labels, resampled_size
from .volumes import (
    as_label_ids,
    case_name,
    first_file,
    label_ids,
    open_image,
    open_volume,
    read_voxels,
    require_same_grid,
)

FORMAT = 2  # part of a case's key: stores of another format are made anew
HEADER_BYTES = 352  # of an uncompressed NIfTI file without extensions
STEPS = 32767  # of int16, on either side of 0
TENSOR_TYPES = ("uint8", "int8", "int16", "int32", "int64", "float32", "float64")  # others become float32
MOST_PLACES = 1000  # of a class in a slice that the index holds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """How cases are prepared: all that their stored voxels depend on besides their files.

    Args:
        spacing_mm: in-plane, along the first two axes of `orientation`.
        orientation: axis codes, such as RAS; the slices lie along the last one.
        normalise: of each channel.
        resampling: before or after the normalisation.
        labels: label id -> name; stored are the classes 1, 2, 3 and so on, the ids in rising order.
    """

    spacing_mm: Sequence[float]
    orientation: str
    normalise: Sequence[Normalisation]
    resampling: Resampling
    labels: Mapping[Any, str]

    def __post_init__(self) -> None:
        try:
            nib.orientations.axcodes2ornt(self.orientation)
        except (ValueError, KeyError) as error:
            raise BadInput(f"orientation must be three axis codes such as RAS, got {self.orientation}.") from error

    def key(self, case: Mapping[str, Any]) -> str:
        """Return what tells this case, prepared like this, from all others: it changes with the files, too.

        Raises:
            BadInput: a file is missing or no volume.
        """
        open_image(case["image"])  # these name the file if there is none
        open_volume(case["label"])
        image = [case["image"]] if isinstance(case["image"], (str, Path)) else case["image"]
        stats = [(Path(path).resolve(), os.stat(path)) for path in (*image, case["label"])]
        files = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        settings = [list(self.spacing_mm), self.orientation, repr([*self.normalise, self.resampling])]
        return hashlib.sha256(json.dumps([FORMAT, *settings, label_ids(self.labels), files]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StoredCase:
    """A case on disk, prepared; reading a slice reads nothing else of it.

    `image_0000.nii`, `image_0001.nii` and so on are the normalised channels, int16 times their scale; `label.nii` are
    the classes, uint8: uncompressed NIfTI, which other programs open, with slices that lie in one piece.
    `places.npy` are up to 1000 pixels of each class in each slice, and `place_counts.npy`, `(classes, slices)`, how
    many: what a draw of forced foreground needs.
    """

    name: str
    folder: Path
    shape: tuple[int, int, int]  # x, y, slices
    scales: tuple[float, ...]  # of each channel

    def read(
        self, index: int, *, starts: Sequence[int] = (0, 0), size: Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a slice's image `(channels, x, y)` float32 and label `(x, y)` uint8, or a part of it.

        Args:
            index: of the slice.
            starts: where the part begins along x and y, maybe beyond the border, where all is 0.
            size: of the part, x and y; by default the slice's.
        """
        size = self.shape[:2] if size is None else size
        source, target = overlap(starts, size, self.shape[:2])
        image, label = np.zeros((len(self.scales), *size), np.float32), np.zeros(size, np.uint8)
        for channel, scale in enumerate(self.scales):
            stored = read_slice(self.folder / f"image_{channel:04d}.nii", np.int16, self.shape, index)
            np.multiply(stored[source], np.float32(scale), out=image[channel][target])
        label[target] = read_slice(self.folder / "label.nii", np.uint8, self.shape, index)[source]
        return image, label

    @property
    def shows_foreground(self) -> bool:
        """Whether any class is shown."""
        return bool(np.load(self.folder / "place_counts.npy").any())

    def draw_foreground(self, rng: np.random.Generator) -> tuple[int, tuple[int, int]] | None:
        """Draw a class that the case shows, a slice that shows it, and one of its pixels there, each uniformly.

        Returns:
            the slice and the pixel `(x, y)`; None if the case shows no class.
        """
        counts = np.load(self.folder / "place_counts.npy")  # (classes, slices)
        shown = counts.any(axis=1).nonzero()[0]
        if len(shown) == 0:
            return None
        row = rng.choice(shown)
        index = int(rng.choice(counts[row].nonzero()[0]))
        before = int(counts[:row].sum() + counts[row, :index].sum())
        path = self.folder / "places.npy"
        place = before + int(rng.integers(counts[row, index])) - int(counts.sum())  # counted from the end, below 0
        offset = path.stat().st_size + place * np.dtype(np.int32).itemsize
        x, y = divmod(int(np.fromfile(path, "<i4", 1, offset=offset)[0]), self.shape[1])
        return index, (x, y)


def read_slice(path: Path, dtype: Any, shape: tuple[int, int, int], index: int) -> np.ndarray:
    """Return a slice `(x, y)` of an uncompressed NIfTI volume `(x, y, slices)`, and read nothing else of it."""
    pixels = shape[0] * shape[1]
    offset = HEADER_BYTES + index * pixels * np.dtype(dtype).itemsize
    return np.fromfile(path, np.dtype(dtype).newbyteorder("<"), pixels, offset=offset).reshape(shape[:2], order="F")


def overlap(
    starts: Sequence[int], size: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return what a part of this size that begins at `starts` has of a slice, counted in the slice and in the part."""
    source, target = [], []
    for start, wanted, n in zip(starts, size, shape, strict=True):
        source.append(slice(max(start, 0), max(min(start + wanted, n), 0)))
        first = max(-start, 0)
        target.append(slice(first, first + source[-1].stop - source[-1].start))
    return tuple(source), tuple(target)


def store_cases(
    data: Sequence[Mapping[str, Any]], *, folder: Path, preparation: Preparation, processes: int | None = None
) -> list[StoredCase]:
    """Prepare, in parallel, what isn't stored yet, and return all cases.

    A case is stored under a key of its files' paths, sizes and times and of the settings, in one rename: a store can
    be shared by runs, and an interrupted one goes on where it was.

    Raises:
        BadInput: see `store_case`; what was finished until then stays.
    """
    remove_unfinished(folder)
    store = partial(store_case, folder=folder, preparation=preparation)
    named = [{**case, "name": name} for case, name in zip(data, case_names(data), strict=True)]
    try:
        return list(for_each(store, named, description="preparing cases", processes=processes))
    finally:
        remove_unfinished(folder)


def store_case(case: Mapping[str, Any], *, folder: Path, preparation: Preparation) -> StoredCase:
    """Return a case, with its `name`, from the store; prepare it first if it isn't there.

    Raises:
        BadInput: a file that can't be read; NaN; image and label that don't match; unknown label ids; no room.
    """
    place = place_of(case, folder=folder, preparation=preparation)
    about = what_is_stored(place)
    if about is None:
        if place.is_dir():
            log.warning(f"{place}: is damaged, or of an older version. It is prepared anew.")
        image, label, affine = prepare_case(case, preparation)
        unfinished = unfinished_path(place)
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            about = write_case(unfinished, image=image, label=label, affine=affine, classes=len(preparation.labels))
            if what_is_stored(place) is None:
                remove_folder(place)
            put_in_place(unfinished, place)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            about = what_is_stored(place)
            if about is None:  # or else another run was quicker
                raise BadInput(f"{place}: can't be written ({error}). Make room, or choose another folder.") from error
    return StoredCase(name=case["name"], folder=place, shape=tuple(about["shape"]), scales=tuple(about["scales"]))


def what_is_stored(place: Path) -> dict[str, Any] | None:
    """Return the description of a stored case whose files are as they were written, by size and checksum; else None."""
    about = read_with_checksum(place / "case.json")
    if about is None or not {"shape", "scales", "files"} <= about.keys():
        return None
    try:
        for name, (size, checksum) in about["files"].items():
            if (place / name).stat().st_size != size or checksum_of(place / name) != checksum:
                return None
        return about
    except OSError:
        return None


def checksum_of(path: Path) -> int:
    """Return the CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while part := file.read(2**24):
            crc = crc32(part, crc)
    return crc


def place_of(case: Mapping[str, Any], *, folder: Path, preparation: Preparation) -> Path:
    """Return the folder of a case, whether or not it is there yet."""
    return folder / f"{case_name(case['label'])}-{preparation.key(case)}"


def prepare_case(case: Mapping[str, Any], preparation: Preparation) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return image `(channels, slices, x, y)` normalised, classes `(slices, x, y)` uint8, and the affine of (x, y, z).

    As nnU-Net v1 does: crop to what isn't 0, resample in-plane, normalise.

    Raises:
        BadInput: see `store_case`.
    """
    opened = open_image(case["image"])
    voxels, grid = [read_voxels(volume).T for volume in opened], opened[0]  # (z, y, x), as voxels lie in the file
    channels = voxels if voxels[0].ndim == 3 else list(voxels[0])
    label_file = open_volume(case["label"])
    require_same_grid(grid, label_file)
    classes = as_classes(as_label_ids(read_voxels(label_file).T, preparation.labels, case["label"]), preparation.labels)
    orientation = nib.orientations.ornt_transform(
        nib.io_orientation(grid.affine), nib.orientations.axcodes2ornt(preparation.orientation)
    )
    affine = grid.affine @ nib.orientations.inv_ornt_aff(orientation, grid.shape[:3])
    image = [oriented(channel, orientation) for channel in channels]
    label = oriented(classes, orientation)
    fitted = fit_channels(image, preparation.normalise, name=first_file(case["image"]))  # type: ignore[arg-type]
    box = shown_box(image)

    spacing_mm = nib.affines.voxel_sizes(affine)
    old_size = [part.stop - part.start for part in box[:2]]
    size = resampled_size(old_size, spacing_mm[:2], preparation.spacing_mm)
    step = np.array([*(n / m for n, m in zip(old_size, size, strict=True)), 1.0])
    first = np.array([part.start for part in box]) + (step - 1) / 2  # the centre of the first pixel, in old voxels
    affine = affine @ nib.affines.from_matvec(np.diag(step), first)
    x, y, slices = box[0], box[1], range(box[2].start, box[2].stop)
    prepared = torch.empty(len(image), len(slices), *size[::-1]).mT  # x lies in one piece, as in the files
    for channel, normalise, out in zip(image, fitted, prepared, strict=True):
        for index, one in zip(slices, out, strict=True):  # a slice at a time stays in the processor's cache
            one.copy_(preparation.resampling(channel[x, y, index].float(), size, normalise))
    return prepared, resample_labels(label[box].permute(2, 0, 1), size), affine


def as_classes(ids: np.ndarray, labels: Mapping[Any, str]) -> np.ndarray:
    """Return label ids (uint8) as classes: the number of each id in the order of `labels`."""
    known = label_ids(labels)
    if known == list(range(1, len(known) + 1)):
        return ids
    table = np.zeros(256, np.uint8)
    table[known] = range(1, len(known) + 1)
    classes: np.ndarray = table[ids]
    return classes


def shown_box(image: Sequence[Tensor]) -> tuple[slice, ...]:
    """Return `nonzero_box` of an image's channels, `(x, y, z)` each; at once where every face shows something."""
    faces = [channel.select(axis, end) for channel in image for axis in range(3) for end in (0, -1)]
    if all(face.any() for face in faces):
        return tuple(slice(0, n) for n in image[0].shape)
    return nonzero_box(torch.stack(list(image)))


def oriented(volume: np.ndarray, orientation: np.ndarray) -> Tensor:
    """Return a volume `(z, y, x)` with its axes turned as a tensor `(x, y, z)` in which x lies in one piece."""
    turned = np.ascontiguousarray(nib.orientations.apply_orientation(volume.T, orientation).T)
    native = turned.astype(turned.dtype.name if turned.dtype.name in TENSOR_TYPES else np.float32, copy=False)
    return torch.from_numpy(native if native.flags.writeable else native.copy()).permute(2, 1, 0)


def write_case(folder: Path, *, image: Tensor, label: Tensor, affine: np.ndarray, classes: int) -> dict[str, Any]:
    """Write a prepared case's files into a folder, see `StoredCase`, and return their description."""
    scales = []
    for channel, slices in enumerate(image.numpy()):
        scales.append(float(max(np.abs(slices).max(), 1e-6)) / STEPS)
        write_volume(
            folder / f"image_{channel:04d}.nii", np.rint(slices / scales[-1]).astype(np.int16), affine, scales[-1]
        )
    write_volume(folder / "label.nii", label.numpy(), affine, 1.0)
    places, counts = index_foreground(label.numpy(), classes=classes)
    np.save(folder / "places.npy", places.astype("<i4"))
    np.save(folder / "place_counts.npy", counts)
    shape = [label.shape[1], label.shape[2], label.shape[0]]
    files = {path.name: (path.stat().st_size, checksum_of(path)) for path in sorted(folder.iterdir())}
    about = {"shape": shape, "scales": scales, "files": files}
    (folder / "case.json").write_text(with_checksum(about))
    return about


def write_volume(path: Path, slices: np.ndarray, affine: np.ndarray, scale: float) -> None:
    """Write slices `(slices, x, y)` as an uncompressed NIfTI volume `(x, y, slices)`."""
    header = nib.Nifti1Header(endianness="<")
    header.set_data_shape((slices.shape[1], slices.shape[2], slices.shape[0]))
    header.set_data_dtype(slices.dtype)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner", strip_shears=True)
    header.set_slope_inter(scale, 0)
    header["vox_offset"] = HEADER_BYTES
    header["magic"] = b"n+1"
    with open(path, "wb") as file:
        header.write_to(file)
        file.write(bytes(HEADER_BYTES - file.tell()))
        for one in slices:
            file.write(one.astype(slices.dtype.newbyteorder("<")).tobytes(order="F"))


def index_foreground(label: np.ndarray, *, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the classes are, for classes `(slices, x, y)`.

    Returns:
        int32: pixels, as x times the number of y plus y, class by class and slice by slice, up to 1000 of each, evenly
        spread over all of them; and int32 `(classes, slices)`: how many of each.
    """
    places, counts = [np.empty(0, np.int32)], np.zeros((classes, len(label)), np.int32)
    for row in range(classes):
        for index in np.flatnonzero((label == row + 1).any(axis=(1, 2))):
            pixels = np.flatnonzero(label[index] == row + 1).astype(np.int32)
            chosen = pixels[np.linspace(0, len(pixels) - 1, min(len(pixels), MOST_PLACES)).round().astype(int)]
            places.append(chosen)
            counts[row, index] = len(chosen)
    return np.concatenate(places), counts


def case_names(data: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the cases' names, those of their label maps; with the folder's name before it if others bear the same."""
    labels = [Path(case["label"]) for case in data]
    names = [case_name(label) for label in labels]
    if len(set(names)) == len(names):
        return names
    return [f"{label.parent.name}_{name}" for label, name in zip(labels, names, strict=True)]
