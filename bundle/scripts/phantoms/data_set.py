"""Data sets of phantoms on disk, in the usual layouts, with corrupted labels if wanted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..metrics.dsc_nsd import dice
from ..runtime.atomic_files import put_in_place, unfinished_path
from ..runtime.csv_tables import csv_text
from ..runtime.errors import BadInput
from .label_noise import CORRUPTIONS, Label, check_corruptions, choose_corruptions, corrupt_somehow, is_share
from .phantom import LABELS, make_phantom

CLEAN_LABELS, CORRUPTION, DESCRIPTION = "clean_labels", "corruption.csv", "dataset.json"
SUFFIX = ".nii.gz"


@dataclass(frozen=True)
class CaseFiles:
    """A case and its files, as paths within the data set."""

    name: str
    image: str
    label: str
    clean_label: str


@dataclass(frozen=True)
class Layout:
    """Where a layout keeps images and labels, and what it says in `dataset.json`, if it has one."""

    images: str
    labels: str
    prefix: str
    channel: str = ""
    describe: Callable[[Sequence[CaseFiles]], dict[str, Any]] | None = None

    def files(self, case: int) -> CaseFiles:
        """Return the files of a case by its number."""
        name = f"{self.prefix}_{case:03d}"
        image, label = f"{name}{self.channel}{SUFFIX}", f"{name}{SUFFIX}"
        return CaseFiles(name, f"{self.images}/{image}", f"{self.labels}/{label}", f"{CLEAN_LABELS}/{label}")


def describe_nnunet(cases: Sequence[CaseFiles]) -> dict[str, Any]:
    """Return `dataset.json` as nnU-Net v2 reads it."""
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: label for label, name in LABELS.items()}},
        "numTraining": len(cases),
        "file_ending": SUFFIX,
    }


def describe_decathlon(cases: Sequence[CaseFiles]) -> dict[str, Any]:
    """Return `dataset.json` as the Medical Segmentation Decathlon has it."""
    return {
        "name": "Phantoms",
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(label): name for label, name in LABELS.items()}},
        "numTraining": len(cases),
        "numTest": 0,
        "training": [{"image": f"./{case.image}", "label": f"./{case.label}"} for case in cases],
        "test": [],
    }


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "flare21": Layout("TrainingImg", "TrainingMask", "train", "_0000"),
        "nnunet": Layout("imagesTr", "labelsTr", "phantom", "_0000", describe_nnunet),
        "decathlon": Layout("imagesTr", "labelsTr", "phantom", "", describe_decathlon),
    }
)


def write_phantoms(
    folder: str | Path,
    *,
    cases: int,
    seed: int = 0,
    layout: str = "flare21",
    corrupt: float = 0.0,
    corruptions: str | Sequence[str] = tuple(CORRUPTIONS),
) -> list[dict[str, str]]:
    """Write phantoms as a data set and return its files, `{"image": path, "label": path}` a case.

    A phantom depends on `seed` and its number only, and so does what a corruption does to its label; which labels are
    corrupted, and by what, depends on the number of cases, too. With `corrupt` above 0, the clean labels of all cases
    go to `clean_labels`, and `corruption.csv` has a line a case: what was done to it (empty for nothing), the
    mean DSC over the organs of the clean label, and the DSC of each. Every file appears whole or not at all;
    `corruption.csv` and `dataset.json` are the last.

    Args:
        folder: may exist; files of the same names are replaced.
        cases: how many.
        seed: of the phantoms, of the choice of those to corrupt and of what is done to them.
        layout: flare21 (TrainingImg, TrainingMask), nnunet or decathlon (imagesTr, labelsTr, dataset.json).
        corrupt: share of the cases whose labels are corrupted, in [0, 1].
        corruptions: those of `label_noise.CORRUPTIONS` to choose from, evenly.

    Raises:
        BadInput: an argument that can't be, or a folder that holds another data set, both before anything is written;
            a file that can't be written.
    """
    corruptions = check_arguments(cases=cases, seed=seed, layout=layout, corrupt=corrupt, corruptions=corruptions)
    root, files = Path(folder), [LAYOUTS[layout].files(case) for case in range(cases)]
    describe = LAYOUTS[layout].describe
    make_room(root, files, summaries=[CORRUPTION] * (corrupt > 0) + [DESCRIPTION] * (describe is not None))
    corruption_of = choose_corruptions([case.name for case in files], share=corrupt, corruptions=corruptions, seed=seed)
    rows = []
    for number, case in enumerate(tqdm(files, "phantoms", unit="case", disable=None, leave=False)):
        phantom = make_phantom(int(np.random.SeedSequence((seed, number)).generate_state(1)[0]))
        label, corruption = phantom.label, ""
        if case.name in corruption_of:
            x, y, z = nib.affines.voxel_sizes(phantom.affine).tolist()
            own_seed = (seed, number, 1)  # other draws than the phantom's
            label, corruption = corrupt_somehow(
                label, first=corruption_of[case.name], corruptions=corruptions, spacing_mm=(x, y, z), seed=own_seed
            )
        write_volume(root / case.image, phantom.image_hu, phantom.affine)
        write_volume(root / case.label, label, phantom.affine)
        if corrupt > 0:
            write_volume(root / case.clean_label, phantom.label, phantom.affine)
            rows.append({"case": case.name, "way": corruption, **corruption_dsc(label, phantom.label)})
    if corrupt > 0:
        write_table(root / CORRUPTION, rows)
    if describe is not None:
        with whole_file(root / DESCRIPTION) as unfinished:
            unfinished.write_text(json.dumps(describe(files), indent=2) + "\n", encoding="utf-8")
    return [{"image": str(root / case.image), "label": str(root / case.label)} for case in files]


def check_arguments(
    *, cases: int, seed: int, layout: str, corrupt: float, corruptions: str | Sequence[str]
) -> tuple[str, ...]:
    """Return the names of the corruptions. Raises `BadInput` for an argument of `write_phantoms` that can't be."""
    for key, value, least in (("cases", cases, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise BadInput(f"{key}: must be a whole number from {least} on, got {value!r}. Give another with --{key}.")
    if layout not in tuple(LAYOUTS):
        known = ", ".join(LAYOUTS)
        raise BadInput(f"layout: must be one of {known}, got {layout!r}. Choose one with --layout.")
    if not is_share(corrupt):
        raise BadInput(
            f"corrupt: must be in [0, 1], got {corrupt!r}. Give the share of labels to corrupt with --corrupt."
        )
    return check_corruptions(corruptions)


def make_room(root: Path, files: Sequence[CaseFiles], *, summaries: Sequence[str]) -> None:
    """Take away summaries of an earlier data set of the same files: while these are replaced, they would be wrong.

    Raises:
        BadInput: the folder holds files of another data set, of whatever layout; nothing is changed then.
    """
    if root.exists() and not root.is_dir():
        raise BadInput(f"{root}: is a file. Choose another folder with --out.")
    ours = {root / path for case in files for path in (case.image, case.label)}
    ours |= {root / summary for summary in summaries}
    if CORRUPTION in summaries:
        ours |= {root / case.clean_label for case in files}
    folders = {CLEAN_LABELS, *(name for layout in LAYOUTS.values() for name in (layout.images, layout.labels))}
    present = {path for folder in folders for path in (root / folder).glob("*")}
    present |= {path for path in (root / CORRUPTION, root / DESCRIPTION) if path.exists()}
    others = sorted(path for path in present - ours if not path.name.startswith("."))
    if others:
        raise BadInput(f"{others[0]}: belongs to another data set. Choose another folder with --out.")
    for summary in summaries:
        with _disk_errors(root / summary):
            (root / summary).unlink(missing_ok=True)


def corruption_dsc(label: Label, clean: Label) -> dict[str, str]:
    """Return the DSC of two label maps (x, y, z) over the organs of the clean one, as columns with 6 decimals.

    "dsc" is the mean, 1 without any organ; "dsc_liver" and so on are empty for an organ that isn't there.
    """
    scores = {name: dice(label == organ, clean == organ) for organ, name in LABELS.items() if (clean == organ).any()}
    columns = {"dsc": f"{fmean(scores.values() or [1.0]):.6f}"}
    return columns | {f"dsc_{name}": f"{scores[name]:.6f}" if name in scores else "" for name in LABELS.values()}


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows of the same columns as CSV, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(csv_text(list(rows[0]), [list(row.values()) for row in rows]), encoding="utf-8")


def write_volume(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write voxels (x, y, z) as NIfTI, whole or not at all."""
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    with whole_file(path) as unfinished:
        nib.save(image, unfinished)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give another name to write under, that becomes the file's if nothing goes wrong.

    Raises:
        BadInput: the disk is full, the folder can't be written to, ...
    """
    unfinished = unfinished_path(path)
    try:
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            put_in_place(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{path}: can't be written ({error}). Make room, or choose another folder with --out."
        ) from error
