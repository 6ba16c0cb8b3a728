"""What does the label server keep, and where?

WORK/model/cyclic_committee is a whole bundle of its own, with the configurations and weights that the server was first
started with; trainings change its weights. WORK/released/model.pt are the first weights, which nothing changes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..inference.predictor import Predictor
from ..runtime.atomic_files import put_in_place, unfinished_path, write_whole
from ..runtime.bundle_paths import bundle_root
from ..runtime.config_files import find_config, merged_overlays, read_object
from ..runtime.errors import BadInput
from .fold_bundle import OVERLAY, copy_template, write_fold

MODEL = "cyclic_committee"
MAIN = "# MONAI Label looks here for its application.\nfrom cyclic_committee.monai_label.app import CommitteeApp\n"


def served_bundle(work: Path) -> Path:
    """Return where the bundle lies that a work folder serves."""
    return work / "model" / MODEL


def make_work_folder(
    work: Path, *, bundle: str | Path | None = None, overlays: Sequence[str] = (), ckpt_path: str | Path | None = None
) -> None:
    """Make a work folder of a bundle, or check that it was made of this one.

    Args:
        work: the folder; one of an earlier start goes on with the weights that were trained since.
        bundle: the folder of a bundle; by default the installed one.
        overlays: configurations that go over it, those that the networks were trained with.
        ckpt_path: the weights; by default models/model.pt of the bundle.

    Raises:
        BadInput: it was made of another bundle, or with other configurations; no weights, or others than the
            configuration's; a key that nothing uses.
    """
    root = Path(bundle or bundle_root()).resolve()
    weights = Path(ckpt_path or root / "models" / "model.pt").resolve()
    files = [str(find_config(name, bundle=root).resolve()) for name in overlays]
    source = {"bundle": str(root), "overlays": files, "weights": str(weights)}
    record = work / "source.json"
    if record.is_file():
        before = read_object(record)
        for key, value in source.items():
            if before.get(key) != value:
                raise BadInput(
                    f"{work}: was made with the {key} {before.get(key)}, not {value}. Choose another --work."
                )
        return
    if not (root / "configs" / "inference.yaml").is_file():
        raise BadInput(f"{root}: holds no configs/inference.yaml. Give a bundle's folder with --bundle.")
    if not weights.is_file():
        raise BadInput(f"{weights}: no such weights. Train first, or give others with --bundle or --ckpt_path.")
    fill(work, root, files, weights)
    write_whole(record, json.dumps(source, indent=1))


def fill(work: Path, root: Path, overlays: Sequence[str], weights: Path) -> None:
    """Write all that a work folder begins with; the bundle's copy appears when it is whole and its weights fit."""
    model = served_bundle(work)
    for folder in (model.parent, work / "released"):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(model, ignore_errors=True)
    unfinished = unfinished_path(model)
    copy_template(root, unfinished)
    if overlays:
        write_fold(unfinished, yaml.safe_dump(merged_overlays([root / "configs" / OVERLAY, *map(Path, overlays)])))
    (unfinished / "models").mkdir(exist_ok=True)
    for copy in (unfinished / "models" / "model.pt", work / "released" / "model.pt"):
        shutil.copyfile(weights, copy)
    Predictor.from_config(bundle=unfinished, device="cpu")
    put_in_place(unfinished, model)
    write_whole(work / "main.py", MAIN)
