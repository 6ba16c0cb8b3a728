"""How do a DICOM archive's series become images, and its segmentations labels?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from dicomweb_client.session_utils import create_session_from_user_pass
from fastapi import HTTPException
from filelock import FileLock
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces.datastore import DefaultLabelTag

from ...scripts.data.volumes import as_label_ids, open_volume, read_voxels
from ...scripts.dicom.segmentation import on_grid_of, write_segmentation
from ...scripts.dicom.segmentation_labels import read_segmentation
from ...scripts.dicom.series import DicomSeries, find_series
from ...scripts.handlers.label_map_writer import write_label_file
from ...scripts.runtime.atomic_files import put_in_place, remove_folder, temporary_folder, unfinished_path
from ...scripts.runtime.errors import BadInput
from ..guard.names import require_ending, require_uid
from ..guard.uploads import errors_without
from .folder_store import plain_tag
from .shared_store import SharedStore

logger = logging.getLogger(__name__)
FINAL = DefaultLabelTag.FINAL


def archive_client(url: str) -> Any:
    """Return a client for an archive, with the password of MONAI Label's settings if there is one."""
    name, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    session = create_session_from_user_pass(name, password) if name and password else None
    prefixes = {
        "qido_url_prefix": settings.MONAI_LABEL_QIDO_PREFIX,
        "wado_url_prefix": settings.MONAI_LABEL_WADO_PREFIX,
        "stow_url_prefix": settings.MONAI_LABEL_STOW_PREFIX,
    }
    return DICOMwebClientX(url=url, session=session, **prefixes)


class ArchiveStore(DICOMWebDatastore, SharedStore):
    """MONAI Label's store of an archive, with series and segmentations read and written by this package.

    MONAI Label's own names segments by their position, takes the first of several segmentations, and its series
    may lack slices. An image's id is its SeriesInstanceUID; what isn't in the archive is answered with 404.
    The process that scores in the background has the same cache: who fetches first, the other waits for.

    Args:
        client: see `archive_client`.
        labels: label id -> name.
        metadata: of the bundle, for what segmentations say of their maker.
        cache: folder of what was fetched.
    """

    def __init__(self, client: Any, *, labels: Mapping[str, str], metadata: Mapping[str, Any], cache: Path) -> None:
        self.labels, self.metadata = labels, metadata
        super().__init__(client, settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER, cache_path=str(cache))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refuse: images come from the archive."""
        raise HTTPException(400, "Send the series to the archive.")

    def remove_image(self, image_id: str) -> None:
        """Refuse: images are the archive's."""
        raise HTTPException(400, "Remove the series from the archive.")

    def get_image_uri(self, image_id: str) -> str:
        """Return the file, NIfTI, of a series, fetched if it wasn't yet."""
        image = Path(self._datastore.image_path(), f"{require_uid(image_id)}.nii.gz")
        with self.lock(image):
            if not image.exists():
                series = self.series(image_id)
                unfinished = unfinished_path(image)
                series.write_nifti(unfinished)
                put_in_place(unfinished, image)
            if image_id not in self._datastore.objects:
                self.refresh()
            if "StudyInstanceUID" not in self.get_image_info(image_id):  # OHIF opens the next study by it
                self.update_image_info(image_id, self._dicom_info(image_id))
        return str(image.resolve())

    def series(self, uid: str) -> DicomSeries:
        """Return a series whose files lie in the cache, fetched if they don't; 404 if the archive hasn't got it.

        Raises:
            BadInput: it makes no volume.
        """
        folder = self.fetched(uid, Path(self._datastore.image_path(), uid))
        found = find_series(folder)
        if len(found.series) != 1:
            remove_folder(folder)  # it may be mended in the archive
            raise BadInput(f"series {uid}: {'; '.join([*found.faults, *found.skipped]) or 'no volume'}")
        return found.series[0]

    def fetched(self, uid: str, folder: Path) -> Path:
        """Return the folder of a series' files, whole."""
        with self.lock(folder):
            if not folder.is_dir():
                if not self._client.search_for_series(search_filters={"SeriesInstanceUID": require_uid(uid)}):
                    raise HTTPException(404, f"There is no series {uid} in the archive.")
                unfinished = unfinished_path(folder)
                dicom_web_download_series(None, uid, str(unfinished), self._client, self._fetch_by_frame)
                put_in_place(unfinished, folder)
        return folder

    def lock(self, path: Path) -> FileLock:
        """Return the lock, for all processes, of a file or folder in the cache while it is looked for and made."""
        locks = Path(self._datastore_path, "locks")
        locks.mkdir(exist_ok=True)
        return FileLock(locks / path.name)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what is known of an image that was fetched."""
        return dict(super().get_image_info(require_uid(image_id)))

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Keep a label; if it is final, store it in the archive as a segmentation, on the grid of its series."""
        require_ending(label_filename)
        tag = plain_tag(label_tag)
        series = self.series(require_uid(image_id))
        self.get_image_uri(image_id)
        self.voxels_of(label_filename, series)
        if tag == FINAL.value:
            label_info = {**label_info, "SeriesInstanceUID": self.store(label_filename, series)}
        return str(SharedStore.save_label(self, image_id, label_filename, tag, label_info))

    def store(self, label_file: str, series: DicomSeries) -> str:
        """Store a label map in the archive; return the new series' UID.

        Raises:
            BadInput: nothing is labelled in it; it isn't on the series' grid; a label that the bundle hasn't.
        """
        segmentation = pydicom.dcmread(BytesIO(self.segmentation(label_file, series)))
        self._client.store_instances([segmentation])
        return str(segmentation.SeriesInstanceUID)

    def segmentation(self, label_file: str | Path, series: DicomSeries) -> bytes:
        """Return a label map as a DICOM segmentation's file, names and codes by the labels' ids.

        Raises:
            BadInput: see `store`.
        """
        label_map = self.voxels_of(label_file, series)
        about = {"algorithm": self.metadata["name"], "version": self.metadata["version"]}
        with temporary_folder() as folder:
            path = write_segmentation(label_map, series, self.labels, Path(folder, "label.dcm"), **about)
            if path is None:
                raise BadInput("Nothing is labelled, and a DICOM segmentation can't be empty. Label an organ.")
            return path.read_bytes()

    def voxels_of(self, label_file: str | Path, series: DicomSeries) -> np.ndarray:
        """Return a label map's ids `(x, y, z)` on the grid of its series, or answer 400.

        Raises:
            BadInput: the series' file is damaged.
        """
        with errors_without(label_file, series.folder):
            volume = open_volume(label_file)
            read_voxels(volume)  # all of it, to its checksum
            return as_label_ids(on_grid_of(series, volume), self.labels, label_file)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Return a label's file, NIfTI."""
        return str(SharedStore.get_label_uri(self, require_uid(image_id or label_id), plain_tag(label_tag)))

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Refuse for final labels, which are the archive's."""
        if plain_tag(label_tag) == FINAL.value:
            raise HTTPException(400, "Remove the segmentation from the archive.")
        super().remove_label(require_uid(label_id), label_tag)

    def _download_labeled_data(self) -> None:
        newest = self.newest_segmentations()
        for image_id in set(SharedStore.get_labeled_images(self)) - newest.keys():  # taken out of the archive
            SharedStore.remove_label(self, image_id, FINAL.value)
        for image_id, uid in newest.items():
            info = self.get_label_info(image_id, FINAL.value)
            if info.get("SeriesInstanceUID") == uid and info.get("read"):
                continue
            try:
                series = self.series(image_id)
                [file] = self.fetched(uid, Path(self._datastore.label_path(FINAL), uid)).iterdir()
                label_map = read_segmentation(file, series, self.labels)
            except (BadInput, ValueError) as error:
                logger.warning(f"segmentation {uid} isn't used: {error}")
                continue
            with temporary_folder() as folder:
                label = write_label_file(label_map, self.get_image_uri(image_id), Path(folder, f"{image_id}.nii.gz"))
                SharedStore.save_label(
                    self, image_id, str(label), FINAL.value, {"SeriesInstanceUID": uid, "read": True}
                )

    def newest_segmentations(self) -> dict[str, str]:
        """Return SeriesInstanceUID of an image -> that of its newest segmentation."""
        found: dict[str, tuple[str, str]] = {}
        for series in self._client.search_for_series(search_filters={"Modality": "SEG"}):
            uids = [str(series[tag]["Value"][0]) for tag in ("0020000D", "0020000E")]
            meta = pydicom.Dataset.from_json(self._client.retrieve_series_metadata(*uids)[0])
            made = "".join(str(meta.get(tag) or "") for tag in ("ContentDate", "ContentTime"))
            for source in meta.get("ReferencedSeriesSequence") or []:
                image_id = str(source.SeriesInstanceUID)
                found[image_id] = max(found.get(image_id, ("", "")), (made, uids[1]))
        images = set(self.list_images())
        return {image_id: uid for image_id, (_, uid) in found.items() if image_id in images}
