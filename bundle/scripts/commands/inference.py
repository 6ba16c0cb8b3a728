"""The commands that label, evaluate and export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.config_files import require_config
from ..runtime.errors import BadInput
from .arguments import channel_list, label_names, require_there, show_help_if_asked


def predict(
    source: str,
    out: str,
    bundle: str | None = None,
    config: str | Sequence[str] | None = None,
    ckpt_path: str | None = None,
    disagreement: bool = False,
    probabilities: bool = False,
    **values: Any,
) -> None:
    """Label NIfTI files and DICOM series: label maps, and for a series a DICOM segmentation of its organs.

    Args:
        source: a NIfTI file, the folder of a DICOM series, or a folder of any of these.
        out: the folder for NAME.nii.gz and, for a series, NAME.dcm; in folders as the inputs are.
        bundle: the folder of a bundle; by default the installed one.
        config: overlays that the networks were trained with, commas between them, such as PREPARED/plan.yaml.
        ckpt_path: the weights; by default models/model.pt of the bundle.
        disagreement: also write NAME_disagreement.nii.gz, from 0 to 1: where the members disagree.
        probabilities: also write NAME_probabilities.nii.gz, of the background and each label: twice the work.
        values: keys of inference.yaml with other values, such as --mirror true.
    """
    show_help_if_asked(predict, values, name="predict")
    require_there(source, bundle, ckpt_path)
    require_config("inference.yaml", channel_list(config), bundle=bundle, values=values)
    from ..inference.prediction import predict_command

    predict_command(
        str(source),
        out=str(out),
        bundle=bundle,
        overlays=channel_list(config),
        ckpt_path=ckpt_path,
        disagreement=disagreement,
        probabilities=probabilities,
        **values,
    )


def evaluate(
    predictions: str,
    references: str,
    out: str,
    labels: dict[int, str] | None = None,
    tolerance_mm: float = 1.0,
    processes: int | None = None,
) -> None:
    """Compare a folder of label maps with a folder of references: DSC and NSD, as FLARE21 has them.

    Args:
        predictions: folder of label maps.
        references: folder of label maps of the same names.
        out: CSV file with the columns case, label, organ, dsc, nsd; beside it a JSON file with the summary.
        labels: label id -> organ, such as "{1: liver, 2: kidney}"; by default FLARE21's four.
        tolerance_mm: of the NSD, 1 in FLARE21.
        processes: how many; by default one a core, 8 at most.
    """
    names = label_names(labels)
    require_there(predictions, references)
    if Path(out).is_dir() or Path(out).suffix.lower() != ".csv":
        raise BadInput(f"out: {out} must be a file that ends in .csv; the summary goes beside it, as .json.")
    from ..data.layouts import FLARE21_LABELS
    from ..metrics.score_table import evaluate_folders, format_table, summarise, write_csv, write_json

    rows = evaluate_folders(
        str(predictions),
        str(references),
        labels=names or FLARE21_LABELS,
        tolerance_mm=tolerance_mm,
        processes=processes,
    )
    summary = summarise(rows)
    write_csv(rows, Path(out))
    write_json(summary, Path(out).with_suffix(".json"))
    print(format_table(summary))


def export(
    out: str,
    format: str,
    bundle: str | None = None,
    config: str | Sequence[str] | None = None,
    ckpt_path: str | None = None,
    member: int | None = None,
    image: str | Sequence[str] | None = None,
) -> None:
    """Write the trained committee, or one member, for programs without this package; checked before it appears.

    Args:
        out: the file; one that is there is replaced.
        format: torchscript, pt2 or onnx.
        bundle: the folder of a bundle; by default the installed one.
        config: overlays that the networks were trained with, commas between them, such as variants/small.yaml.
        ckpt_path: the weights; by default models/model.pt of the bundle.
        member: the one to write, from 0; by default the mean of all that are in the ensemble.
        image: a volume's file, NIfTI, to compare the file with the original on; or a file a channel, with commas.
    """
    require_there(bundle, ckpt_path, *channel_list(image))
    require_config("inference.yaml", channel_list(config), bundle=bundle)
    from ..inference.export import export as export_committee
    from ..inference.export_check import format_agreements

    agreements = export_committee(
        str(out),
        format=str(format),
        bundle=bundle,
        overlays=channel_list(config),
        ckpt_path=ckpt_path,
        member=member,
        image=channel_list(image) or None,
    )
    print(format_agreements(str(out), agreements))
