"""Cross-validations for tests of the report: written by what writes real ones, but nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from conftest import LABELS, SCHEDULE, TINY

from cyclic_committee.scripts.data.cases import find_cases
from cyclic_committee.scripts.data.slice_store import case_names
from cyclic_committee.scripts.data.volumes import case_name, open_volume, read_voxels
from cyclic_committee.scripts.experiments.cross_validation import begin
from cyclic_committee.scripts.handlers.history import write_history
from cyclic_committee.scripts.handlers.label_map_writer import write_label_map
from cyclic_committee.scripts.handlers.loss_record import append, as_batch
from cyclic_committee.scripts.metrics.dsc_nsd import ScoreRow
from cyclic_committee.scripts.metrics.score_table import write_csv

FOLDS = 5
USUAL = {"liver": (0.97, 0.9), "kidney": (0.95, 0.91), "spleen": (0.96, 0.93), "pancreas": (0.8, 0.6)}


def data_set(folder: Path, phantoms: Path, *, cases: int) -> Path:
    """Make a data set of as many cases as wanted out of the phantoms."""
    images = sorted((phantoms / "TrainingImg").iterdir())
    for kind, source in (("images", "TrainingImg"), ("labels", "TrainingMask")):
        (folder / kind).mkdir(parents=True)
        for number in range(cases):
            name = images[number % len(images)].name.replace("_0000", "_0000" if kind == "images" else "")
            (folder / kind / f"case_{number:02d}.nii.gz").symlink_to(phantoms / source / name)
    return folder


def cross_validation(
    folder: Path,
    data: Path,
    *,
    model: Path | None = None,
    done: Sequence[int] = range(FOLDS),
    better: float = 0.0,
    wrong: str = "case_01",
    epochs: int = 4,
) -> Path:
    """Write a cross-validation's folder.

    Args:
        folder: to make.
        data: a data set in the layout "folders".
        model: weights of all folds; without any, nobody can say where members disagree.
        done: folds.
        better: is added to each DSC of the liver.
        wrong: the case whose labels are distrusted.
        epochs: of the history.
    """
    tiny = folder.parent / "tiny.yaml"
    tiny.write_text(yaml.safe_dump({**{key: value for key, value in TINY.items() if key != "device"}, **SCHEDULE}))
    values = {"device": TINY["device"]}
    begin(folder, [str(tiny)], {"dataset_dir": str(data), "layout": "folders", "values": values})
    for fold in done:
        place = folder / f"fold_{fold}"
        random = np.random.default_rng(fold)
        rows: list[ScoreRow] = []
        for item in find_cases(str(data), part="validation", fold=fold, layout="folders"):
            for label, organ in LABELS.items():
                dsc, nsd = np.clip(np.array(USUAL[organ]) - np.abs(random.normal(0, (0.03, 0.06))), 0, 1)
                dsc = min(1.0, float(dsc) + (better if organ == "liver" else 0))
                name = case_name(item["label"])
                rows.append({"case": name, "label": int(label), "organ": organ, "dsc": dsc, "nsd": float(nsd)})
            moved = np.roll(read_voxels(open_volume(item["label"])), 2, axis=0)
            write_label_map(moved.astype(np.uint8), item["image"], place / "labels")
        write_csv(rows, place / "scores.csv")
        write_history(history(epochs, random), place / "history.json")
        write_losses(data, fold, place, wrong=wrong)
        if model is not None:
            (place / "model.pt").symlink_to(model)
    return folder


def history(epochs: int, random: np.random.Generator) -> list[dict[str, float]]:
    """Return what a training of three members would leave."""
    rows = []
    for epoch in range(1, epochs + 1):
        row: dict[str, float] = {"epoch": epoch}
        for k in range(3):
            row |= {f"loss/member_{k}": 1 / epoch + random.uniform(0, 0.1), f"kept/member_{k}": 0.75}
        row |= {f"agreement/members_{pair}": random.uniform(0.5, 0.8) for pair in ("0_1", "0_2", "1_2")}
        if epoch % 2 == 0:
            row |= {f"validation/dsc_{organ}": usual[0] - 1 / (2 + epoch) for organ, usual in USUAL.items()}
            row["validation/dsc_mean"] = 0.9 - 1 / (2 + epoch)
        rows.append(row)
    return rows


def write_losses(data: Path, fold: int, place: Path, *, wrong: str) -> None:
    """Write a record of the samples in which one case's kidney is labelled where the committee sees none."""
    cases = find_cases(str(data), part="training", fold=fold, layout="folders")
    names = case_names(cases)
    about = {"cases": dict(zip(names, cases, strict=True)), "labels": LABELS, "orientation": "RAS"}
    torch.manual_seed(fold)
    for epoch in (1, 2):
        rows = []
        for name in names:
            for index in (8, 12, 20):
                areas = torch.tensor([[4000, 300, 80, 90, 40]] * 2 + [[3950, 270, 70, 85, 30]])
                areas = areas + torch.randint(0, 9, (3, 5))
                areas[1:, 2] *= int(name != wrong)
                losses, kept = torch.full((3, 1), 0.1), torch.tensor([[1], [0], [1]]) > 0
                rows.append((epoch, SimpleNamespace(losses=losses, kept=kept, samples=[(name, index)]), areas[None]))
        append(as_batch(rows, epoch=epoch), place / "losses.arrow", about=about)
