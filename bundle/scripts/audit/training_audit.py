"""The label audit inside a training: cases whose labels the committee distrusts are left out of what remains of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from monai.utils import string_list_all_gather
from tqdm import tqdm

from ..data.exclusion import excluded_names
from ..data.slice_store import case_names
from ..data.volumes import label_ids
from ..runtime.atomic_files import write_whole
from ..runtime.csv_tables import csv_text, read_csv_rows
from ..runtime.errors import BadInput
from .label_audit import dice, rounded
from .usual_values import Numbers, too_many, usual_value

FILE = "left_out.csv"
COLUMNS = ("case", "left_out", "label", "dsc", "usual_dsc", "least_dsc", "epoch")

log = logging.getLogger(__name__)


class LabelAgreement(Metric):
    """Voxels of each label by label map, by the committee and by both, of each case: a metric for an evaluator.

    The value is the mean DSC, for the log. `engine.state.metric_details[<name>]` receives label file -> three lists of
    voxels, a number a label. Of several processes each counts its own cases, and all receive the counts of all.

    Args:
        labels: label id -> name.
    """

    def __init__(self, *, labels: Mapping[Any, str]) -> None:
        self.ids = label_ids(labels)
        super().__init__()

    def reset(self) -> None:
        """Forget all counts."""
        self.counts: dict[str, list[list[int]]] = {}

    def update(self, output: list[dict[str, torch.Tensor]]) -> None:
        """Count the items of a decollated batch: `pred` and `label`, label ids `(1, x, y, z)`, one with its file."""
        for item in output:
            label, pred = item["label"].cpu(), item["pred"].cpu()
            both = torch.where(label == pred, label, 0)
            of_three = [[int((part == one).sum()) for one in self.ids] for part in (label, pred, both)]
            self.counts[str(label.meta["filename_or_obj"])] = of_three  # type: ignore[attr-defined]

    def compute(self) -> float:
        """Return the mean DSC. Raises `NotComputableError` if there is no case."""
        return mean_dsc(self.all_counts())

    def all_counts(self) -> dict[str, list[list[int]]]:
        """Return the counts of all processes."""
        parts = string_list_all_gather([json.dumps(self.counts)])
        return {file: counts for part in parts for file, counts in json.loads(part).items()}

    def completed(self, engine: Engine, name: str) -> None:
        """Put the mean DSC and the counts into the engine's state."""
        counts = self.all_counts()
        engine.state.metrics[name] = mean_dsc(counts)
        engine.state.metric_details[name] = counts  # type: ignore[attr-defined]


def mean_dsc(counts: Mapping[str, list[list[int]]]) -> float:
    """Return the mean DSC over cases and labels of `LabelAgreement`'s counts; see its `compute`."""
    if not counts:
        raise NotComputableError("LabelAgreement must have at least one case before it can be computed.")
    return float(dice(*areas_of(counts.values())).mean())


@dataclass(frozen=True)
class RestartedPolynomial:
    """What the learning rate is multiplied with: nnU-Net's polynomial, begun anew at an epoch, from another height.

    Args:
        max_epochs: of the training.
        restart: the epoch, counted from 0, that begins anew.
        power: of both parts.
        height: of the second part's beginning.
    """

    max_epochs: int
    restart: int
    power: float = 0.9
    height: float = 0.5

    def __call__(self, epoch: int) -> float:
        """Return the factor of an epoch, counted from 0."""
        if epoch < self.restart:
            return float((1 - epoch / self.max_epochs) ** self.power)
        left = 1 - (epoch - self.restart) / max(self.max_epochs - self.restart, 1)
        return float(self.height * max(left, 0) ** self.power)


@dataclass(frozen=True)
class Judged:
    """What a training's audit says of a case."""

    case: str
    left_out: str  # "yes"; "no"; "trusted": it would be, but a person has said that it stays
    label: str  # on which label map and committee differ most, measured by what is usual for it
    dsc: float  # of both, on the whole volume
    usual_dsc: float
    least_dsc: float  # of a case that isn't left out
    epoch: int  # that was the last one with all cases


class LeaveOutSuspects:
    """Audit the labels once in a training, and train what remains of it without the cases that are distrusted.

    At the end of `epoch` the committee labels every training case, whole and without augmentation. A case is left out
    if the DSC of its label and the committee's is far below the usual one, for any label: by more than `least_loss`,
    and by more than `deviations` typical deviations, see `usual_value`. The sampler draws from the other cases from
    then on: mini-batches stay full. The set stays as it is, also if the training is stopped and resumed. If nothing is
    distrusted, the training goes on as it would have; if more than 60 % of the cases are, none is left out, with a
    warning.

    `left_out.csv` in `output_dir` tells for every case why. What `exclude` names isn't trained on from the start.

    Args:
        evaluator: labels the training cases, with `LabelAgreement` as the metric `agreement`.
        sampler: of the training.
        data: the training cases, `{"image": ..., "label": ...}`.
        labels: label id -> name.
        epoch: after which it is done, counted from 1.
        output_dir: where the table goes.
        trusted: names of cases that are never left out, or a file of names; see `excluded_names`.
        least_loss: of a DSC, below the usual one: less is never a reason to leave a case out.
        deviations: typical ones below the usual DSC.

    Raises:
        BadInput: `epoch` below 1; a trusted name of no training case.
    """

    order = 0.5  # the epoch's lines are written before it, and the checkpoint after it

    def __init__(
        self,
        *,
        evaluator: Engine,
        sampler: Any,
        data: Sequence[Mapping[str, Any]],
        labels: Mapping[Any, str],
        epoch: int,
        output_dir: str,
        trusted: str | Sequence[str] | None = None,
        least_loss: float = 0.08,
        deviations: float = 4.0,
    ) -> None:
        if epoch < 1:
            raise BadInput(f"audit_epoch: must be 1 or more, got {epoch}.")
        self.evaluator = evaluator
        self.sampler = sampler
        self.names = case_names(data)
        self.files = [str(case["label"]) for case in data]
        self.labels = [name for _, name in sorted((int(label), name) for label, name in labels.items())]
        self.epoch = epoch
        self.path = Path(output_dir) / FILE
        self.least_loss, self.deviations = least_loss, deviations
        self.trusted = set(excluded_names(trusted))
        unknown = sorted(self.trusted - set(self.names))
        if unknown:
            raise BadInput(f"trusted: {unknown[0]} is no training case. Correct the name or take it out.")

    def attach(self, engine: Any) -> None:
        """Audit at an epoch's end, and keep the result in the checkpoint."""
        engine.state_dict_user_keys.append("left_out")
        engine.state.left_out = None  # no audit yet
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.audit_once)
        engine.add_event_handler(Events.COMPLETED, self.tell)

    def begin(self, engine: Any) -> None:
        """Follow a checkpoint's audit; without one, an earlier training's table says nothing of this one."""
        if engine.state.left_out is None and idist.get_rank() == 0:
            self.path.unlink(missing_ok=True)
        self.follow(engine)

    def follow(self, engine: Any) -> None:
        """Have the sampler leave out what the state says; a training that goes on knows it from its checkpoint."""
        self.sampler.left_out = tuple(engine.state.left_out or ())

    def audit_once(self, engine: Any) -> None:
        """Audit, unless it has been done or there is no epoch left."""
        state = engine.state
        if state.left_out is not None or not self.epoch <= state.epoch < state.max_epochs:
            return
        self.evaluator.run()
        counts = self.evaluator.state.metric_details["agreement"]  # type: ignore[attr-defined]
        judged = self.judge([counts[file] for file in self.files], epoch=state.epoch)
        distrusted = [number for number, one in enumerate(judged) if one.left_out == "yes"]
        if too_many(sum(one.left_out != "no" for one in judged), len(judged)):
            log.warning(
                f"{len(distrusted)} of {len(judged)} training cases have labels that are unlike the committee's: too "
                "many to tell which are wrong. None is left out."
            )
            judged = [replace(one, left_out="no") for one in judged]
            distrusted = []
        state.left_out = distrusted
        self.follow(engine)
        if idist.get_rank() == 0:
            rows = [[rounded(getattr(one, name)) for name in COLUMNS] for one in judged]
            write_whole(self.path, csv_text(COLUMNS, rows))
            tqdm.write(told(judged))

    def judge(self, counts: Sequence[Sequence[Sequence[int]]], *, epoch: int) -> list[Judged]:
        """Return what there is to say of each case, by the counts of `LabelAgreement`."""
        areas = areas_of(counts)
        dsc = dice(*areas)
        usual, deviation = usual_dsc(dsc, shown=areas[0] > 0)
        least = usual - np.maximum(self.least_loss, self.deviations * deviation)
        worst = ((usual - dsc) / (usual - least)).argmax(axis=1)
        return [
            Judged(
                case=name,
                left_out="no" if dsc[row, k] >= least[k] else "trusted" if name in self.trusted else "yes",
                label=self.labels[k],
                dsc=float(dsc[row, k]),
                usual_dsc=float(usual[k]),
                least_dsc=float(least[k]),
                epoch=epoch,
            )
            for row, (name, k) in enumerate(zip(self.names, worst.tolist(), strict=True))
        ]

    def tell(self, engine: Any) -> None:
        """Say at the end what was left out."""
        if idist.get_rank() == 0 and self.path.is_file() and engine.state.left_out is not None:
            print(told(read_judged(self.path)))


def usual_dsc(dsc: Numbers, *, shown: np.ndarray) -> tuple[Numbers, Numbers]:
    """Return the usual DSC of each label, and the typical deviation from it, `(labels,)` each.

    Args:
        dsc: of label and committee, `(cases, labels)`.
        shown: whether the case's label map shows the label: what is usual is taken from these.
    """
    lost = [
        usual_value(1 - (of_label[is_shown] if is_shown.any() else of_label))
        for of_label, is_shown in zip(dsc.T, shown.T, strict=True)
    ]
    return 1 - np.array([one.value for one in lost]), np.array([one.deviation for one in lost])


def areas_of(counts: Iterable[Sequence[Sequence[int]]]) -> tuple[Numbers, Numbers, Numbers]:
    """Return voxels labelled, expected and agreed, `(cases, labels)` each, from one case after another."""
    labelled, expected, agreed = np.array(list(counts), float).transpose(1, 0, 2)
    return labelled, expected, agreed


def read_judged(path: Path) -> list[Judged]:
    """Return what `LeaveOutSuspects` wrote.

    Raises:
        BadInput: a file of something else.
    """
    try:
        rows = read_csv_rows(path)
        return [
            Judged(
                case=row["case"],
                left_out=row["left_out"],
                label=row["label"],
                dsc=float(row["dsc"]),
                usual_dsc=float(row["usual_dsc"]),
                least_dsc=float(row["least_dsc"]),
                epoch=int(row["epoch"]),
            )
            for row in rows
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise BadInput(f"{path}: is no table of left-out cases ({error!r}). Move it away.") from error


def told(judged: Sequence[Judged]) -> str:
    """Return in one line which cases were left out, and why."""
    out = sorted((one for one in judged if one.left_out == "yes"), key=lambda one: one.dsc - one.least_dsc)
    since = f"from epoch {judged[0].epoch + 1} on"
    if not out:
        return f"label audit: no case is left out {since}, of {len(judged)}"
    shown = ", ".join(f"{one.case} ({one.label}: DSC {one.dsc:.2f}, usual {one.usual_dsc:.2f})" for one in out[:5])
    others = f" and {len(out) - 5} others" if len(out) > 5 else ""
    return f"label audit: {len(out)} of {len(judged)} cases are left out {since}: {shown}{others}; see {FILE}"


def told_of(run: Path) -> str:
    """Return what a training's own audit left out, in one line; nothing where there was none.

    Raises:
        BadInput: see `read_judged`.
    """
    return told(read_judged(run / FILE)) if (run / FILE).is_file() else ""
