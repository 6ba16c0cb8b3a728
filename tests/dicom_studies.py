"""How do tests get DICOM CT studies?

    paths = write_series(folder, phantom.image_hu, phantom.affine, patient_id="phantom")

Two series of one study: give both the same `study_uid`, `patient_id` and `FrameOfReferenceUID`. Needs pydicom; to
compress, also pyjpegls (JPEG-LS) or pylibjpeg with pylibjpeg-openjpeg (JPEG 2000).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's axes to DICOM's


def write_series(
    folder: Path,
    voxels_hu: np.ndarray,
    affine: np.ndarray,
    *,
    patient_id: str = "phantom",
    study_uid: str | None = None,
    series_uid: str | None = None,
    transfer_syntax: str = ExplicitVRLittleEndian,
    **tags: Any,
) -> list[Path]:
    """Write a CT series, one file a slice along z, and return the files, `slice_0000.dcm` first, for z = 0.

    Args:
        folder: made if it isn't there; what lies there stays.
        voxels_hu: `(x, y, z)`, whole HU from -1024 on (below with `RescaleIntercept=0, PixelRepresentation=1`).
        affine: from voxel indices to RAS mm, as in NIfTI; x and y must be at right angles.
        patient_id: the patient's name, too.
        study_uid: by default a new one.
        series_uid: by default a new one.
        transfer_syntax: of pydicom.uid; other than little endian: the pixels are compressed without loss.
        tags: any others of every slice by keyword, such as `Modality="MR"`; None leaves a tag out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shared = {
        **series_tags(voxels_hu, affine),
        "PatientID": patient_id,
        "PatientName": patient_id,
        "StudyInstanceUID": study_uid or generate_uid(),
        "SeriesInstanceUID": series_uid or generate_uid(),
        **tags,
    }
    stored = (voxels_hu - float(shared["RescaleIntercept"])) / float(shared["RescaleSlope"])
    pixels = np.round(stored).astype(np.int16 if shared["PixelRepresentation"] else np.uint16)
    paths = []
    for k in range(voxels_hu.shape[2]):
        slice_ = make_slice(shared, pixels[:, :, k], position=(RAS_TO_LPS @ affine)[:3] @ [0, 0, k, 1], number=k + 1)
        for keyword, value in tags.items():
            if value is None:
                delattr(slice_, keyword)
            else:
                setattr(slice_, keyword, value)
        slice_.file_meta = FileMetaDataset()
        compressed = UID(transfer_syntax).is_compressed
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if compressed else transfer_syntax
        if compressed:
            slice_.compress(transfer_syntax, generate_instance_uid=False)
        paths.append(folder / f"slice_{k:04d}.dcm")
        slice_.save_as(paths[-1], enforce_file_format=True)
    return paths


def series_tags(voxels_hu: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    """Return the tags that all slices of a series share, but for who and which."""
    axes = (RAS_TO_LPS @ affine)[:3, :3]
    column_mm, row_mm, slice_mm = np.linalg.norm(axes, axis=0)
    return {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "FrameOfReferenceUID": generate_uid(),
        "PositionReferenceIndicator": "",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "PatientPosition": "HFS",
        "StudyID": "1",
        "StudyDate": "20210101",
        "StudyTime": "120000",
        "StudyDescription": "Phantom",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "Manufacturer": "None",
        "SeriesNumber": 1,
        "SeriesDescription": "Abdomen",
        "AcquisitionNumber": 1,
        "KVP": 120,
        "Columns": voxels_hu.shape[0],
        "Rows": voxels_hu.shape[1],
        "PixelSpacing": as_decimals([row_mm, column_mm]),  # between rows first
        "SliceThickness": DSfloat(slice_mm, auto_format=True),
        "ImageOrientationPatient": as_decimals([*axes[:, 0] / column_mm, *axes[:, 1] / row_mm]),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "RescaleType": "HU",
    }


def make_slice(shared: dict[str, Any], pixels: np.ndarray, *, position: np.ndarray, number: int) -> Dataset:
    """Return one slice; pixels `(x, y)` as they are stored, position in LPS mm."""
    slice_ = Dataset()
    for keyword, value in shared.items():
        setattr(slice_, keyword, "" if value is None else value)
    slice_.SOPInstanceUID = generate_uid()
    slice_.InstanceNumber = number
    slice_.ImagePositionPatient = as_decimals(position)
    slice_.PixelData = np.ascontiguousarray(pixels.T).tobytes()
    slice_["PixelData"].VR = "OW"
    return slice_


def alter(path: Path, **tags: Any) -> None:
    """Change tags of a slice in its file; None takes a tag out."""
    slice_ = dcmread(path)
    for keyword, value in tags.items():
        if value is None:
            delattr(slice_, keyword)
        else:
            setattr(slice_, keyword, value)
    slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
    slice_.save_as(path, enforce_file_format=True)


def as_decimals(values: Any) -> list[DSfloat]:
    """Return numbers as DICOM's decimal strings, of 16 characters at most."""
    return [DSfloat(float(value), auto_format=True) for value in values]
