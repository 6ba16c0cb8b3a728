"""Which images and labels does a data set hold?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sklearn.model_selection import KFold
from tqdm import tqdm

from .errors import BadInput
from .volumes import SUFFIXES, as_label_ids, case_name, open_volume, read_voxels, require_same_grid

FOLDERS = (("TrainingImg", "TrainingMask"), ("images", "labels"))  # FLARE21's layout, then plain folders
CHANNEL_SUFFIX = "_0000"  # FLARE21 and nnU-Net: train_000_0000.nii.gz is the image of train_000.nii.gz
FOLD_SEED = 12345  # nnU-Net's


class CaseList(list[dict[str, str]]):
    """Cases as `{"image": path, "label": path}`; where none could be found, `problem` says why.

    A configuration builds its data sets before anybody says `run`; so finding nothing is no error until
    `require_cases` is called.
    """

    problem: str = ""


def find_cases(folder: str, *, part: str, folds: int = 5, fold: int | str = 0) -> CaseList:
    """Return the training or the validation cases of a data set.

    Folds are nnU-Net's: `KFold(5, shuffle=True, random_state=12345)` over the sorted names.

    Args:
        folder: with TrainingImg and TrainingMask (FLARE21) or images and labels in it.
        part: "training" or "validation".
        folds: number of folds.
        fold: the fold that validates, from 0; "all": all cases train and all validate, "none": all train.
    """
    try:
        cases = pair_images_with_labels(Path(folder))
        if fold == "all":
            return CaseList(cases)
        if fold == "none":
            return CaseList(cases if part == "training" else [])
        if not isinstance(fold, int) or not 0 <= fold < folds:
            raise BadInput(f"fold must be 0 to {folds - 1}, all or none, got {fold}.")
        if len(cases) < folds:
            raise BadInput(f"{folder}: {len(cases)} cases are too few for {folds} folds. Set --fold all.")
        splits = list(KFold(folds, shuffle=True, random_state=FOLD_SEED).split(cases))
        return CaseList(cases[i] for i in splits[fold][0 if part == "training" else 1])
    except BadInput as error:
        return without_cases(str(error))


def find_images(path: str, *, with_labels: bool = False) -> CaseList:
    """Return the images of a folder, or the one image that a file is; with their labels if there must be any.

    Args:
        path: a NIfTI file, a folder of NIfTI files, or with labels a data set as in `find_cases`.
        with_labels: whether each case must have a label, for evaluation.
    """
    try:
        if with_labels:
            return CaseList(pair_images_with_labels(Path(path)))
        if Path(path).is_file():
            return CaseList([{"image": path}])
        known = [images for images, _ in FOLDERS if (Path(path) / images).is_dir()]
        return CaseList({"image": str(file)} for file in list_volumes(Path(path, *known[:1])))
    except BadInput as error:
        return without_cases(str(error))


def without_cases(problem: str) -> CaseList:
    """Return an empty list that says why it is empty."""
    cases = CaseList()
    cases.problem = problem
    return cases


def pair_images_with_labels(folder: Path) -> list[dict[str, str]]:
    """Return every image of a data set with its label, sorted by name.

    Raises:
        BadInput: no such folder or layout, an image without label, a label without image.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder. Give the data set's folder with --dataset_dir.")
    found = [(folder / images, folder / labels) for images, labels in FOLDERS if (folder / images).is_dir()]
    if not found:
        known = " or ".join(f"{images}/ and {labels}/" for images, labels in FOLDERS)
        raise BadInput(f"{folder}: holds no data set. Expected the folders {known} in it.")
    images, labels = found[0]
    if not labels.is_dir():
        raise BadInput(f"{labels}: no such folder. The label maps of {images} belong there.")
    label_of = {case_name(file): file for file in list_volumes(labels)}
    cases = []
    for image in list_volumes(images):
        name = case_name(image)
        label = label_of.pop(name, None) or label_of.pop(name.removesuffix(CHANNEL_SUFFIX), None)
        if label is None:
            raise BadInput(f"{image}: has no label map in {labels}. Add it, or take the image out.")
        cases.append({"image": str(image), "label": str(label)})
    if label_of:
        raise BadInput(f"{next(iter(label_of.values()))}: has no image in {images}. Add it, or take the label out.")
    return cases


def list_volumes(folder: Path) -> list[Path]:
    """Return the NIfTI files of a folder, sorted by name; hidden files are left out.

    Raises:
        BadInput: no such folder, or no NIfTI file in it.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such file or folder. Check the path.")
    files = [f for f in folder.iterdir() if f.name.endswith(SUFFIXES) and not f.name.startswith(".")]
    if not files:
        raise BadInput(f"{folder}: holds no .nii or .nii.gz files. Check the path.")
    return sorted(files, key=lambda file: case_name(file))


def require_cases(
    data: Sequence[dict[str, Any]], *, may_be_empty: bool = False, labels: Mapping[Any, str] | None = None
) -> None:
    """Check before the work starts that there are cases, and that each one's files can be read and agree.

    Args:
        data: `{"image": path}`, with `"label": path` if there must be one.
        may_be_empty: whether no cases at all are right, as for validation.
        labels: label id -> name; given, the voxels are read and checked, too, not only the headers.

    Raises:
        BadInput: nothing to work on; a file that is missing, unreadable or not 3D; image and label that don't match;
            with `labels`: NaN, a damaged file, unknown label ids.
    """
    problem = getattr(data, "problem", "")
    if problem or (len(data) == 0 and not may_be_empty):
        raise BadInput(problem or "dataset#data is empty: give at least one case.")
    for case in data:
        image = open_volume(case["image"])
        if "label" in case:
            require_same_grid(image, open_volume(case["label"]))
    if labels is not None:
        for case in tqdm(data, desc="checking cases", unit="case", leave=False, disable=None):
            read_voxels(open_volume(case["image"]))
            as_label_ids(read_voxels(open_volume(case["label"])), labels, case["label"])
