"""The command `predict`: NIfTI files and DICOM series in, label maps and DICOM segmentations out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.volumes import first_file
from ..dicom.codes import organ_code
from ..dicom.segmentation import write_segmentation
from ..dicom.series import DicomSeries
from ..handlers.label_map_writer import write_label_file
from ..runtime.atomic_files import temporary_folder
from ..runtime.bundle_paths import bundle_root
from ..runtime.config_files import is_name, read_object
from ..runtime.configuration import open_config
from ..runtime.errors import BadInput, find_bad_input
from .disagreement import FULL_SCALE, MemberProbabilities
from .prediction_inputs import Volume, find_volumes, notes_on_image, require_folder, require_source
from .prediction_outputs import Straightening, write_map
from .predictor import Predictor


def predict_command(
    source: str | Path,
    *,
    out: str | Path,
    bundle: str | Path | None = None,
    overlays: Sequence[str] = (),
    ckpt_path: str | Path | None = None,
    disagreement: bool = False,
    probabilities: bool = False,
    **values: Any,
) -> None:
    """Label NIfTI files and DICOM series, and say of each what happened.

    Outputs lie in `out` as the inputs lie in `source`. NAME is a NIfTI file's name, and for DICOM that of the series'
    folder, or its SeriesInstanceUID where a folder holds several.

    - NAME.nii.gz: the label map, uint8, on the image's grid. A series' grid is its columns, rows, and slices along
      their normal; where the gantry was tilted it is straightened, as for the other NIfTI files.
    - NAME.dcm: for a series, the same as a DICOM segmentation; none if there is no label in it.
    - NAME_disagreement.nii.gz: how much the members disagree, 0 to 1, in 255ths; see `disagreement.disagreement`.
    - NAME_probabilities.nii.gz: float32, the fourth dimension is the background and the labels in rising order.

    All that can be is checked before the first volume is labelled. A volume that can't be read, or labelled, is named,
    and the others are labelled. A file appears whole or not at all; files of the same names are replaced.

    Args:
        source: a NIfTI file, a folder of NIfTI files, a data set, a DICOM series' folder, or a folder of any of these.
        out: a folder.
        bundle: see `Predictor.from_config`, as for all below but the maps.
        overlays: configurations.
        ckpt_path: the weights.
        disagreement: write the disagreement, too.
        probabilities: write the probabilities, too: twice the work.
        values: keys of the configuration.

    Raises:
        BadInput: nothing there to label, no weights, a missing package; at the end, if a volume wasn't labelled, or
            a series has no DICOM segmentation though there is something in its label map.
    """
    source, out = Path(source), Path(out)
    require_source(source)
    require_folder(out, source)
    given = {} if ckpt_path is None else {"ckpt_path": str(ckpt_path)}
    config = open_config("inference.yaml", overlays, bundle=bundle, values={**given, **values})
    predictor = Predictor.from_parser(config)
    if disagreement:
        MemberProbabilities(predictor.network)  # type: ignore[arg-type]  # raises if nobody is there to disagree
    labels = dict(config.get_parsed_content("labels"))
    metadata = read_metadata(Path(bundle or bundle_root(), "configs", "metadata.json"))
    volumes, faults = find_volumes(source, out=out, channels=len(predictor.inferer.normalise))
    for note in notes_on_series([volume.series for volume in volumes if volume.series], labels, metadata):
        print(f"note: {note}")
    for warning in tilt_warnings([volume.series for volume in volumes if volume.series]):
        print(f"warning: {warning}", file=sys.stderr)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    unlabelled, unsegmented, total = len(faults), 0, len(volumes) + len(faults)
    for volume in volumes:
        try:
            maps = {"disagreement": disagreement, "probabilities": probabilities}
            written, fault = label_volume(volume, predictor, labels, metadata, **maps)
        except Exception as error:
            bad_input = find_bad_input(error)
            if bad_input is None:
                raise
            unlabelled += 1
            print(f"error: {bad_input}", file=sys.stderr)
            continue
        print(f"{volume.out.name}: {'; '.join(written)}", flush=True)
        if fault:
            unsegmented += 1
            print(f"error: {fault}", file=sys.stderr)
    if unlabelled or unsegmented:
        counts = {"weren't labelled": unlabelled, "were labelled, but have no DICOM segmentation": unsegmented}
        said = ", ".join(f"{number} of {total} {what}" for what, number in counts.items() if number)
        raise BadInput(f"{source}: {said}, see above. Mend them, or take them out.")


def read_metadata(path: Path) -> dict[str, Any]:
    """Return a bundle's metadata.

    Raises:
        BadInput: see `read_object`; without the name, version or modality, which go into DICOM segmentations.
    """
    metadata = read_object(path)
    try:
        said = {"name": metadata["name"], "version": metadata["version"], "the image's modality": modality_of(metadata)}
    except (LookupError, TypeError) as error:
        raise BadInput(f"{path}: lacks a key of a bundle's metadata ({error}). Take the bundle's own.") from error
    for key, text in said.items():
        if not is_name(text):
            raise BadInput(f"{path}: {key} is {json.dumps(text)[:80]}, and must be a text. Take the bundle's own.")
    return metadata


def modality_of(metadata: Mapping[str, Any]) -> Any:
    """Return the modality that a bundle is for."""
    return metadata["network_data_format"]["inputs"]["image"]["modality"]


def notes_on_series(
    all_series: Sequence[DicomSeries], labels: Mapping[str, str], metadata: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what a user should know of series that are labelled."""
    meant = modality_of(metadata)
    for series in all_series:
        yield from series.notes
        modality = series.headers[0].get("Modality") or meant
        if modality != meant:
            yield f"{series.folder}: is {modality}, but the bundle's metadata say that it is for {meant}."
    private = [name for name in labels.values() if all_series and not organ_code(name).known]
    if private:
        yield f"no SNOMED code is known for {', '.join(private)}: DICOM segmentations have a private code."


def tilt_warnings(all_series: Sequence[DicomSeries]) -> Iterator[str]:
    """Yield what a user should know before the label maps of a tilted gantry are opened elsewhere."""
    for series in all_series:
        if series.tilt_degrees:
            yield (
                f"{series.folder}: gantry tilt of {series.tilt_degrees:.1f} degrees. The label map is straightened, to "
                "right angles. The DICOM segmentation lies on the slices as they are: programs of ITK, such as 3D "
                "Slicer and dcmqi, may not open it."
            )


def label_volume(
    volume: Volume,
    predictor: Predictor,
    labels: Mapping[str, str],
    metadata: Mapping[str, Any],
    *,
    disagreement: bool,
    probabilities: bool,
) -> tuple[list[str], str]:
    """Label one volume and write its outputs.

    Returns:
        What there is to say of them, and why there is no DICOM segmentation, if there should be one.

    Raises:
        BadInput: it can't be read or labelled, or another output can't be written.
    """
    fault = ""
    with temporary_folder() as folder:
        series = volume.series
        image = volume.image if series is None else series.write_nifti(Path(folder, "series.nii"))
        source = first_file(image)
        said = predictor.predict_members(image) if disagreement else predictor.on_own_grid(image, predictor.label)
        label_map = said[0].cpu().numpy()
        name = source if series is None else str(series.folder)
        for note in notes_on_image(image, predictor.inferer.normalise):
            print(f"note: {note.replace(source, name)}", flush=True)
        straighten = Straightening(source, series, Path(folder, "straight.nii"))
        written = [write_label_file(straighten(label_map), straighten.source, volume.ending(".nii.gz"))]
        if series is not None:
            about = {"algorithm": metadata["name"], "version": metadata["version"]}
            try:
                segmentation = write_segmentation(label_map, series, labels, volume.ending(".dcm"), **about)
                written += [] if segmentation is None else [segmentation]
            except BadInput as error:  # the label map is of use without it
                fault = f"{error} It is labelled, but has no DICOM segmentation."
        if disagreement:
            apart = straighten(said[-1].cpu().numpy(), order=1)
            path = volume.ending("_disagreement.nii.gz")
            written.append(write_map(apart, straighten.source, path, slope=1 / FULL_SCALE))
        if probabilities:
            shares = torch.as_tensor(predictor.predict_probabilities(image)).cpu().numpy()
            background, *others = shares
            straight = [straighten(background, order=1, outside=1), *(straighten(one, order=1) for one in others)]
            path = volume.ending("_probabilities.nii.gz")
            written.append(write_map(np.stack(straight, axis=-1), straighten.source, path))
    present = [name for label, name in labels.items() if (label_map == int(label)).any()]
    nothing = "nothing found" if series is None else "nothing found, so there is no DICOM segmentation"
    return [", ".join(present) or nothing, ", ".join(map(str, written))], fault
