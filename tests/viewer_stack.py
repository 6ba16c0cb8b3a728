"""What must run before a reader can open the viewer: a trained bundle, an archive, MONAI Label's server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from conftest import CT_EXAMPLE
from dicom_studies import write_series
from label_servers import label_server, train_bundle, why_no_server
from orthanc import Archive, missing_parts, orthanc

from cyclic_committee.scripts.phantoms.phantom import make_phantom


@dataclass(frozen=True)
class Stack:
    """What runs, and what lies in it."""

    archive: Archive
    server: str  # MONAI Label's url
    work: Path  # its folder
    bundle: Path
    images: dict[str, Path]  # patient -> the NIfTI file of the same voxels
    series: dict[str, list[Path]]  # patient -> the DICOM files


def why_not() -> str | None:
    """Return why nothing of this can run here, if it can't."""
    return why_no_server() or missing_parts()


def turned(image: nib.Nifti1Image, axes: str, *, degrees: float = 0) -> nib.Nifti1Image:
    """Return an image with its voxels in another order, and the patient turned about the x axis."""
    start, end = nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axes))
    again = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]])
    return nib.Nifti1Image(np.asanyarray(again.dataobj), turn @ again.affine)


def images_of_patients(folder: Path) -> dict[str, Path]:
    """Write a phantom as scanners may turn it, the slices numbered upwards, downwards, and obliquely; and a real CT."""
    phantom = make_phantom(5)
    image = nib.Nifti1Image(phantom.image_hu, phantom.affine)
    views = {"upwards": turned(image, "LPS"), "downwards": turned(image, "LPI")}
    views["oblique"] = turned(image, "RPI", degrees=15)
    if CT_EXAMPLE.is_dir():
        image = nib.load(CT_EXAMPLE / "image.nii.gz")
        views["real_ct"] = nib.Nifti1Image(np.asanyarray(image.dataobj).astype(np.int16), image.affine)
    for name, view in views.items():
        nib.save(view, folder / f"{name}.nii.gz")
    return {name: folder / f"{name}.nii.gz" for name in views}


@contextmanager
def viewer_stack(folder: Path) -> Iterator[Stack]:
    """Run all of it, with the same phantom as several patients."""
    bundle, images = train_bundle(folder), images_of_patients(folder)
    with orthanc(folder / "orthanc") as archive:
        series = {}
        for patient, path in images.items():
            image = nib.load(path)
            voxels = np.asanyarray(image.dataobj)
            signed = {"RescaleIntercept": 0, "PixelRepresentation": 1}  # as a real CT may have values below -1024
            series[patient] = write_series(folder / patient, voxels, image.affine, patient_id=patient, **signed)
            archive.store(series[patient])
        with label_server(archive.url, bundle, folder) as server:
            yield Stack(archive, server.url, server.work, bundle, images, series)


def on_grid_of(labels: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], grid: np.ndarray) -> np.ndarray:
    """Return a label map on another grid with the same voxels in another order; `affine`, `grid` from voxels to mm."""
    there = np.linalg.inv(affine) @ grid
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    places = voxels @ there[:3, :3].T + there[:3, 3]
    nearest = np.rint(places).astype(int)
    assert np.abs(places - nearest).max() < 0.01
    return labels[tuple(np.moveaxis(nearest, -1, 0))]


def in_order(files: list[Path], affine: np.ndarray) -> list[Any]:
    """Return a series' slices as they lie along the third axis of a grid, whose affine leads to RAS mm."""
    normal = affine[:3, 2] * [-1, -1, 1]
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    return sorted(slices, key=lambda one: float(np.dot(normal, np.asarray(one.ImagePositionPatient, float))))
