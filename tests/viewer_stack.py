"""What must run before a reader can open the viewer: a trained bundle, an archive, MONAI Label's server."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml
from conftest import BUNDLE, CT_EXAMPLE, SCHEDULE, TINY
from dicom_studies import write_series
from orthanc import Archive, child, free_port, missing_parts, orthanc, wait_until_ready

from cyclic_committee.scripts.bundle_run import run_bundle
from cyclic_committee.scripts.fold_bundle import copy_template, write_fold
from cyclic_committee.scripts.phantom import make_phantom
from cyclic_committee.scripts.phantom_data_set import write_phantoms

MODEL = "cyclic_committee"
STARTER = Path(__file__).with_name("start_label_server.py")


@dataclass(frozen=True)
class Stack:
    """What runs, and what lies in it."""

    archive: Archive
    server: str  # MONAI Label's url
    bundle: Path
    images: dict[str, Path]  # patient -> the NIfTI file of the same voxels
    series: dict[str, list[Path]]  # patient -> the DICOM files


def label_python() -> str | None:
    """Return the Python that has MONAI Label, if one has."""
    return os.environ.get("LABEL_PYTHON") or (sys.executable if find_spec("monailabel") else None)


def why_not() -> str | None:
    """Return why nothing of this can run here, if it can't."""
    if label_python() is None:
        return "MONAI Label isn't installed: pip install '.[label]', or LABEL_PYTHON=the Python that has it"
    return missing_parts()


def train_bundle(folder: Path) -> Path:
    """Train a small copy of the bundle on phantoms, for seconds."""
    phantoms, bundle = folder / "phantoms", folder / "app" / "model" / MODEL
    write_phantoms(phantoms, cases=5, seed=7)
    copy_template(BUNDLE, bundle)
    values = {**TINY, **SCHEDULE, "max_epochs": 4, "iterations": 60, "learning_rate": 0.005, "track": False}
    del values["momentum"], values["device"]
    adam = {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": "@learning_rate"}
    write_fold(bundle, yaml.safe_dump({**values, "optimizer": adam}))
    run_bundle(bundle, "training", ["train.yaml"], dataset_dir=phantoms, output_dir=folder / "output")
    return bundle


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
def label_server(studies: str, bundle: Path, folder: Path) -> Iterator[str]:
    """Run MONAI Label's server on an archive, with the app that a bundle's copy lies in."""
    python, port, log = label_python(), free_port(), folder / "label_server.log"
    assert python is not None
    app = bundle.parents[1]
    stock = Path(python).parents[1] / "monailabel" / "sample-apps" / "monaibundle"
    shutil.copy(stock / "main.py", app)
    (app / "bin").mkdir(exist_ok=True)
    (app / "bin" / "itkimage2segimage").touch(mode=0o755)  # else MONAI Label downloads it
    command = [python, str(STARTER), "start_server", "--app", str(app), "--studies", studies]
    command += ["--host", "127.0.0.1", "--port", str(port), "--uvicorn_app", "start_label_server:app"]
    for key, value in {"models": MODEL, "zoo_source": "none", "sam2": "false"}.items():
        command += ["--conf", key, value]
    settings = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(STARTER.parent),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
    }
    with child(command, log, cwd=folder, env={**os.environ, **settings}) as process:
        wait_until_ready(f"http://127.0.0.1:{port}/info/", process, log)
        yield f"http://127.0.0.1:{port}"


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
            yield Stack(archive, server, bundle, images, series)


def on_grid_of(labels: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], grid: np.ndarray) -> np.ndarray:
    """Return a label map on another grid with the same voxels in another order; `affine`, `grid` from voxels to mm."""
    there = np.linalg.inv(affine) @ grid
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    places = voxels @ there[:3, :3].T + there[:3, 3]
    nearest = np.rint(places).astype(int)
    assert np.abs(places - nearest).max() < 0.01
    return labels[tuple(np.moveaxis(nearest, -1, 0))]
