"""The cases of a data set, and its folds for cross-validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sklearn.model_selection import KFold
from tqdm import tqdm

from ..runtime.config_files import read_object
from ..runtime.errors import BadInput
from .case_files import Case, as_files, channel_faults, image_keys, list_volumes
from .data_lists import list_entries
from .exclusion import excluded_names, without_excluded
from .layouts import FOLDERS, DataSet, find_data_lists, read_data_set, require_known
from .volumes import as_label_ids, case_name, open_image, open_volume, read_image, read_voxels, require_same_grid

FOLD_SEED = 12345  # nnU-Net's


class CaseList(list[dict[str, Any]]):
    """Cases as `{"image": path, "label": path}`, the image of several files a list of paths, channel by channel.

    A configuration builds its data sets before anybody says `run`; so finding nothing is no error until
    `require_cases` is called: `problem` says why there is nothing. `labels` (id -> name, without background) and
    `channel_names` are what the data set says of itself.
    """

    def __init__(self, cases: Iterable[dict[str, Any]] = (), *, data_set: DataSet | None = None) -> None:
        super().__init__(cases)
        self.problem = ""
        self.labels: dict[int, str] = {} if data_set is None else data_set.labels
        self.channel_names: tuple[str, ...] = () if data_set is None else data_set.channel_names


class Split(NamedTuple):
    """The cases to train on, and those to validate on."""

    training: CaseList
    validation: CaseList


def split_cases(
    folder: str,
    *,
    folds: int = 5,
    fold: int | str = 0,
    layout: str = "auto",
    data_root: str | None = None,
    exclude: str | Sequence[Any] | None = None,
) -> Split:
    """Return the training and the validation cases of a data set, which is read once for both.

    Folds are the data list's own, if it has any; else nnU-Net's: `KFold(5, shuffle=True, random_state=12345)` over the
    sorted names.

    Args:
        folder: of the data set, or the JSON file of a data list.
        folds: number of folds, unless the data list has its own.
        fold: the fold that validates, from 0; "all": all cases train and all validate, "none": all train.
        layout: see `layouts.read_data_set`.
        data_root: see `layouts.read_data_set`.
        exclude: cases that aren't trained on, their names or a file of names; see `excluded_names`. Validation keeps
            them, so that runs with and without them can be compared.
    """
    try:
        data_set = read_data_set(folder, layout=layout, data_root=data_root)
        require_usable(data_set)
        validation = validation_cases(data_set.cases, folder, folds=folds, fold=fold)
    except BadInput as error:
        return Split(without_cases(str(error)), without_cases(str(error)))
    names = {case.name for case in validation}
    training = [case for case in data_set.cases if fold in ("all", "none") or case.name not in names]
    validating = CaseList((case.item for case in validation), data_set=data_set)
    try:
        training = without_excluded(training, excluded_names(exclude), known=data_set.cases)
    except BadInput as error:
        return Split(without_cases(str(error)), validating)
    return Split(CaseList((case.item for case in training), data_set=data_set), validating)


def find_cases(folder: str, *, part: str, **options: Any) -> CaseList:
    """Return one part of `split_cases`, "training" or "validation"."""
    cases: CaseList = getattr(split_cases(folder, **options), part)
    return cases


def validation_cases(cases: Sequence[Case], folder: str, *, folds: int, fold: int | str) -> list[Case]:
    """Return the cases that validate; see `find_cases`.

    Raises:
        BadInput: no such fold, or one that leaves no case to train on.
    """
    if fold in ("all", "none"):
        return list(cases) if fold == "all" else []
    own = sorted({case.fold for case in cases if case.fold is not None})
    known = f"{', '.join(map(str, own))} (the data list's)" if own else f"0 to {folds - 1}"
    if not isinstance(fold, int) or fold not in (own or range(folds)):
        raise BadInput(f"fold must be {known}, all or none, got {fold}.")
    if own:
        if len(own) == 1:
            raise BadInput(f"{folder}: all cases are of fold {fold}, none is left to train on. Set --fold all.")
        return [case for case in cases if case.fold == fold]
    if len(cases) < folds:
        raise BadInput(f"{folder}: {len(cases)} cases are too few for {folds} folds. Set --fold all.")
    splits = list(KFold(folds, shuffle=True, random_state=FOLD_SEED).split(cases))
    return [cases[i] for i in splits[fold][1]]


def find_images(
    path: str,
    *,
    with_labels: bool = False,
    layout: str = "auto",
    data_root: str | None = None,
    channels: int | None = None,
) -> CaseList:
    """Return the images of a folder, or the one image that a file is; with their labels if there must be any.

    Args:
        path: a NIfTI file, a folder of NIfTI files, a data set, or the JSON file of a data list: what it lists under
            testing or test, or else under training. With labels: a data set or a data list as in `find_cases`.
        with_labels: whether each case must have a label, for evaluation.
        layout: see `layouts.read_data_set`.
        data_root: see `layouts.read_data_set`.
        channels: of each image. Given 1, a_0000.nii.gz and a_0001.nii.gz are two images; else they are one of two
            channels, if all images of the folder are numbered like that.
    """
    try:
        if with_labels:
            data_set = read_data_set(path, layout=layout, data_root=data_root)
            require_usable(data_set)
            return CaseList((case.item for case in data_set.cases), data_set=data_set)
        require_known(layout)
        if layout == "datalist" or (Path(path).is_file() and Path(path).suffix == ".json"):
            images = images_of_list(Path(path), data_root)
        elif Path(path).is_file():
            images = [[Path(path)]]
        else:
            images = images_of_folder(Path(path), layout=layout, channels=channels)
        return CaseList({"image": as_files(files)} for files in images)
    except BadInput as error:
        return without_cases(str(error))


def images_of_list(path: Path, data_root: str | None) -> list[Sequence[Path]]:
    """Return the files of each image of a data list: what it lists for tests, or else for training.

    Args:
        path: of the JSON file, or of a folder with one data list.
        data_root: where relative paths begin; None: beside the JSON file.

    Raises:
        BadInput: no data list, or one without images.
    """
    if path.is_dir():
        lists = find_data_lists(path)
        if len(lists) != 1:
            raise BadInput(f"{path}: holds {len(lists)} data lists, expected one. Give the JSON file itself.")
        path = lists[0]
    described = read_object(path)
    root = path.parent if data_root is None else Path(data_root)
    for key in ("testing", "test", "training"):
        entries = list_entries(described, key, path=path, root=root)
        for entry in entries:
            if not entry.image:
                raise BadInput(f"{path}: {entry.place} {entry.fault or 'names no image'}. Correct the entry.")
        if entries:
            return [entry.image for entry in entries]
    raise BadInput(f"{path}: lists no images. Name them under testing or training.")


def images_of_folder(path: Path, *, layout: str, channels: int | None) -> list[Sequence[Path]]:
    """Return the files of each image of a folder of NIfTI files or of a data set; see `find_images`.

    Raises:
        BadInput: no such folder, no NIfTI file in it, a channel is missing.
    """
    known = [FOLDERS[layout]] if layout in FOLDERS else [pair for pair in FOLDERS.values() if (path / pair[0]).is_dir()]
    images, labels = known[0] if known else ("", "")
    files = list_volumes(path / images)
    names = {case_name(file) for file in (path / labels).glob("*")} if labels else set()
    files_of: dict[str, dict[int, Path]] = {}
    for (name, channel), file in image_keys(files, names=names):
        files_of.setdefault(name, {})[channel] = file
    most = max(map(len, files_of.values()))
    # cases may be numbered, too; they are channels only if they begin at 0 for each name
    if channels == 1 or most == 1 or not all(0 in of_name for of_name in files_of.values()):
        return [[file] for file in files]
    for of_name in files_of.values():
        for fault in channel_faults(of_name, channels=channels or most, numbered=True):
            raise BadInput(str(fault))
    return [[of_name[channel] for channel in sorted(of_name)] for of_name in files_of.values()]


def require_usable(data_set: DataSet) -> None:
    """Raise `BadInput` with the first problem that makes a case useless, and say how many more there are."""
    problems = [problem for problem in data_set.problems if not problem.usable]
    if len(problems) > 1:
        raise BadInput(f"{problems[0]} And {len(problems) - 1} more: `cyclic-committee check DATASET` lists them.")
    if problems:
        raise BadInput(str(problems[0]))


def without_cases(problem: str) -> CaseList:
    """Return an empty list that says why it is empty."""
    cases = CaseList()
    cases.problem = problem
    return cases


def require_cases(
    data: Sequence[dict[str, Any]], *, may_be_empty: bool = False, labels: Mapping[Any, str] | None = None
) -> None:
    """Check before the work starts that there are cases, and that each one's files can be read and agree.

    Args:
        data: `{"image": path or paths}`, with `"label": path` if there must be one.
        may_be_empty: whether no cases at all are right, as for validation.
        labels: label id -> name; given, the voxels are read and checked, too, not only the headers.

    Raises:
        BadInput: nothing to work on; a file that is missing, unreadable or not 3D; channels, or image and label, that
            don't match; with `labels`: NaN, a damaged file, unknown label ids.
    """
    problem = getattr(data, "problem", "")
    if problem or (len(data) == 0 and not may_be_empty):
        raise BadInput(problem or "dataset#data is empty: give at least one case.")
    for case in data:
        image = open_image(case["image"])[0]
        if "label" in case:
            require_same_grid(image, open_volume(case["label"]))
    if labels is not None:
        for case in tqdm(data, desc="checking cases", unit="case", leave=False, disable=None):
            read_image(case["image"])
            as_label_ids(read_voxels(open_volume(case["label"])), labels, case["label"])
