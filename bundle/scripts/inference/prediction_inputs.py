"""The inputs of `predict`, and the names of its outputs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nibabel.affines import voxel_sizes

from ..data.cases import find_images
from ..data.folders import files_below, other_format
from ..data.headers import header_remarks, require_plausible_sizes
from ..data.hounsfield import why_not_hu
from ..data.layouts import FOLDERS
from ..data.volumes import SUFFIXES, Files, case_name, first_file, load_voxels, open_image
from ..dicom.files import is_dicom
from ..dicom.series import DicomSeries, group_series
from ..runtime.errors import BadInput
from ..transforms.normalisation import Normalisation

DICOM_PACKAGES = ("pydicom", "highdicom")


@dataclass(frozen=True)
class Volume:
    """One thing to label.

    Attributes:
        out: its outputs without their endings, such as OUT/NAME.
        image: NIfTI files; none for a series.
        series: of DICOM files.
    """

    out: Path
    image: Files = ()
    series: DicomSeries | None = None

    def ending(self, ending: str) -> Path:
        """Return one of its outputs."""
        return self.out.with_name(self.out.name + ending)


def find_volumes(source: Path, *, out: Path, channels: int) -> tuple[list[Volume], list[str]]:
    """Return what there is to label, and what is there but can't be, in a line each.

    Raises:
        BadInput: nothing at all; two would be labelled into one file.
    """
    volumes: list[Volume] = []
    faults: list[str] = []
    below = files_below(source)
    faults += below.faults
    for place, image in nifti_images(source, below.files, out=out, channels=channels, faults=faults):
        volume = Volume(out / place / case_name(first_file(image)), image=image)
        try:
            open_image(image)
            volumes.append(volume)
        except BadInput as error:
            faults.append(str(error))
    others = [] if source.is_file() or is_data_set(source) else [*filter(None, map(other_format, below.files))]
    dicom = group_series(source, [file for file in below.files if not other_format(file)])
    faults += others
    faults += dicom.faults
    for skipped in below.notes + dicom.skipped:
        print(f"note: {skipped}")
    for series in dicom.series:
        try:
            require_plausible_sizes(voxel_sizes(series.affine), series.folder)
        except BadInput as error:
            faults.append(str(error))
            continue
        if channels > 1:
            faults.append(f"{series.folder}: a DICOM series is one channel, of {channels}. Convert it to NIfTI.")
            continue
        several = sum(other.folder == series.folder for other in dicom.series) > 1
        name = series.uid if several else Path(os.path.abspath(series.folder)).name  # a link's own name
        inside = series.folder.relative_to(source)
        parent = out / (inside if several else inside.parent)
        taken = any(volume.out == parent / name for volume in volumes)
        volumes.append(Volume(parent / (series.uid if taken else name), series=series))
    if not volumes and not faults:
        raise BadInput(f"{source}: holds neither NIfTI files nor a CT or MR series. Check the path.")
    require_different_outputs(volumes)
    return volumes, faults


def notes_on_image(files: Files, normalise: Sequence[Normalisation]) -> Iterator[str]:
    """Yield what `check` would remark on in an image: a header that contradicts itself, a CT that isn't in HU.

    Args:
        files: of the image.
        normalise: of each channel; one that clips is a CT's.
    """
    opened = open_image(files)
    for volume in opened:
        yield from (f"{volume.get_filename()}: {what}. {remedy}" for what, remedy in header_remarks(volume))
    for channel, kind in enumerate(normalise):
        if hasattr(kind, "clip"):
            volume = opened[channel if len(opened) > 1 else 0]
            voxels = load_voxels(volume)
            reason = why_not_hu(voxels[..., channel] if voxels.ndim == 4 else voxels)
            if reason:
                yield f"{volume.get_filename()}: can't be HU: {reason}. Undo the offset or scaling."


def require_source(source: Path) -> None:
    """Raise `BadInput` unless there is something, and the packages to read it."""
    if not source.exists():
        raise BadInput(f"{source}: no such file or folder. Check the path.")
    if source.is_file() and is_dicom(source):
        raise BadInput(f"{source}: is one DICOM file. Give the folder of its series.")
    missing = [name for name in DICOM_PACKAGES if importlib.util.find_spec(name) is None]
    if missing and any(map(is_dicom, files_below(source).files)):
        raise BadInput(
            f"{source}: holds DICOM files, which need {', '.join(missing)}. "
            f"Install with: pip install {' '.join(DICOM_PACKAGES)}"
        )


def require_folder(out: Path, source: Path) -> None:
    """Make the folder of the outputs, or raise `BadInput`, also if it is the images' own."""
    if out.resolve() in (source.resolve(), source.resolve().parent if source.is_file() else None):
        raise BadInput(f"{out}: holds what is to be labelled. Choose another folder with --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out}: no such folder can be made ({error.strerror}). Choose another --out.") from error


def is_data_set(source: Path) -> bool:
    """Return whether a folder has a folder of images within it, as data sets have."""
    return any((source / images).is_dir() for images, _ in FOLDERS.values())


def nifti_images(
    source: Path, files: Sequence[Path], *, out: Path, channels: int, faults: list[str]
) -> Iterator[tuple[Path, Files]]:
    """Yield the NIfTI images of a file, of a data set or of folders in folders, each with its folder in `source`.

    Args:
        source: the file or folder.
        files: that lie in the folder and the folders in it.
        out: the folder of the outputs.
        channels: of each image.
        faults: what is wrong is added here.
    """
    if source.is_file() or is_data_set(source):
        folders = [source]
    else:  # what was labelled before, and lies in it, isn't labelled again
        before = None if out.resolve() in source.resolve().parents else out.resolve()
        holding = {file.parent for file in files if is_nifti(file.name)}
        folders = sorted(folder for folder in holding if before not in (folder.resolve(), *folder.resolve().parents))
    for folder in folders:
        images = find_images(str(folder), channels=channels)
        if images.problem:
            faults.append(images.problem)
        for image in images:
            yield Path() if source.is_file() else folder.relative_to(source), image["image"]


def is_nifti(name: str) -> bool:
    """Return whether a file's name is that of a NIfTI file that isn't hidden."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


def require_different_outputs(volumes: Sequence[Volume]) -> None:
    """Raise `BadInput` if two volumes would be labelled into one file."""
    seen: set[Path] = set()
    for volume in volumes:
        if volume.out in seen:
            raise BadInput(f"{volume.out}: two inputs would be labelled into this one file. Rename one of them.")
        seen.add(volume.out)
