"""Data check: every problem of a data set, in one go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..data.case_files import Case, Problem
from ..data.headers import in_mm
from ..data.layouts import FLARE21_LABELS, read_data_set
from ..data.volumes import label_ids
from ..runtime.errors import BadInput
from ..runtime.parallel import for_each
from .case_check import CaseFacts, as_problem, check_case

SPACING_MM = (0.05, 20.0)  # of images of patients
OFF_MEDIAN = (5.0, 5.0, 10.0)  # the voxel's sides from small to large: slices of 0.7 and of 5 mm do go together
LOST_SHARE = 0.1  # of the cases, up to which 1 x 1 x 1 mm is no habit of the data set
SHARE_OF_HU = 0.1  # of the cases, below which a data set that doesn't say so isn't CT
Checked = Sequence[tuple[Case, CaseFacts]]
Problems = list[tuple[int, Problem]]  # with the case's number


@dataclass(frozen=True)
class LabelCount:
    """A label, and how many cases show it; without a name where the data set gives it none."""

    name: str
    cases: int


@dataclass(frozen=True)
class Report:
    """All that is wrong with a data set, and what was found in it."""

    folder: str  # that the files lie in
    layout: str
    cases: int  # that have an image and a label map
    usable_cases: int
    incomplete: int  # problems that keep files from being a case
    problems: tuple[Problem, ...]  # first those that leave a case out; sorted by file, the data set's own first
    channel_names: tuple[str, ...] = ()
    labels: Mapping[int, LabelCount] | None = None
    spacing_mm: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # smallest and largest along each axis
    size: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # likewise
    folds: Mapping[int, int] | None = None  # the data list's own: fold -> cases; none where they are made of the names

    @property
    def all_usable(self) -> bool:
        """Whether training takes every case."""
        return all(problem.usable for problem in self.problems)


def check_data_set(
    path: str | Path,
    *,
    layout: str = "auto",
    data_root: str | Path | None = None,
    labels: Mapping[int, str] | None = None,
    channel_names: Sequence[str] | None = None,
    processes: int | None = None,
) -> Report:
    """Read every case of a data set and return all of its problems.

    Those that aren't `usable` are what `slice_store.store_case` refuses, so that preparing or training would stop.

    Args:
        path: see `layouts.read_data_set`.
        layout: see there.
        data_root: see there.
        labels: label id -> name; by default the data set's own, or FLARE21's in its layout. Where nobody says them,
            any id from 1 to 255 is right.
        channel_names: by default the data set's own. Intensities are checked for those named CT, and where nobody
            names them.
        processes: by default as many as there are cores.

    Raises:
        BadInput: no data set can be found; labels with ids outside of 1 to 255.
    """
    data_set = read_data_set(path, layout=layout, data_root=data_root)
    labels = dict(labels or data_set.labels or (FLARE21_LABELS if data_set.layout == "flare21" else {}))
    if labels:
        label_ids(labels)
    channel_names = tuple(channel_names or data_set.channel_names)
    check = partial(check_case, labels=labels)
    facts = list(for_each(check, data_set.cases, description="checking cases", processes=processes))
    checked = list(zip(data_set.cases, facts, strict=True))
    of_cases: Problems = [(number, problem) for number, fact in enumerate(facts) for problem in fact.problems]
    of_cases += wrong_channels(checked, channel_names) + suspicious_spacings(checked) + same_images(checked)
    of_cases += wrong_intensities(checked, channel_names)
    of_all = [
        Problem(str(path), *fault, usable=True) for fault in (*absent(labels, facts), *not_ct(checked, channel_names))
    ]
    problems = {*data_set.problems, *of_all, *(problem for _, problem in of_cases)}
    spacings, sizes = [f.spacing_mm for f in facts if f.spacing_mm], [f.size for f in facts if f.size]
    return Report(
        folder=folder_of(path, data_root),
        layout=data_set.layout,
        cases=len(facts),
        usable_cases=len(facts) - len({number for number, problem in of_cases if not problem.usable}),
        incomplete=sum(not problem.usable for problem in data_set.problems),
        problems=tuple(sorted(problems, key=lambda p: (p.usable, p.file != str(path), p.file, p.what))),
        channel_names=channel_names,
        labels=count_labels(labels, facts),
        spacing_mm=_range(spacings),
        size=_range(sizes),
        folds=dict(sorted(Counter(case.fold for case in data_set.cases if case.fold is not None).items())) or None,
    )


def nothing_to_check(path: str | Path, error: BadInput) -> Report:
    """Return the report on a data set that can't be read at all."""
    named = str(error).partition(": ")[0]
    problem = as_problem(error, named if Path(named).exists() else path)
    return Report(str(path), layout="", cases=0, usable_cases=0, incomplete=0, problems=(problem,))


def folder_of(path: str | Path, data_root: str | Path | None) -> str:
    """Return the folder that a data set's files lie in."""
    if data_root is not None:
        return str(Path(data_root))
    return str(Path(path) if Path(path).is_dir() else Path(path).parent)


def wrong_channels(checked: Checked, channel_names: Sequence[str]) -> Problems:
    """Return the images with another number of channels than the data set has: as it says, or most of them have.

    A fourth dimension is channels only if somebody names them: it may as well be time.
    """
    expected = count_channels(checked, channel_names)
    problems: Problems = []
    for number, (case, fact) in enumerate(checked):
        is_series = fact.is_4d and fact.channels != 1 and not channel_names
        if fact.channels is None or (fact.channels == expected and not is_series):
            continue
        what = f"{'is 4D and ' if fact.is_4d else ''}has {_channels(fact.channels)} where the data set has {expected}"
        remedy = "Give it as many, or name the data set's channels rightly."
        if is_series:
            what = f"is 4D, with {fact.channels} volumes, and the data set names no channels"
            remedy = "Write one volume a file, or name the channels."
        problems.append((number, Problem(str(case.image[0]), what, remedy)))
    return problems


def count_channels(checked: Checked, channel_names: Sequence[str]) -> int:
    """Return how many channels the data set has: as its names say, or as most images have that aren't 4D."""
    counts = Counter(fact.channels for _, fact in checked if fact.channels and not (fact.is_4d and fact.channels > 1))
    most = sorted(counts, key=lambda channels: (-counts[channels], channels))
    return len(channel_names) or (most[0] if most else 1)


def suspicious_spacings(checked: Checked) -> Problems:
    """Return the images whose voxels have an unlikely size.

    Below 0.05 or above 20 mm; 1 x 1 x 1 mm where the others have other sizes, as a lost header says it: in at most a
    tenth of the cases, or in half of them if they lie at the origin, too; or far off the median: in the smaller two of
    the voxel's sides by more than a factor of 5, in the largest by more than 10.
    """
    sides = np.array([sorted(fact.spacing_mm) for _, fact in checked if fact.spacing_mm])
    enough = len(sides) >= 3
    median = np.median(sides, axis=0) if enough else np.zeros(3)
    ones = int((np.abs(sides - 1) < 1e-6).all(axis=1).sum()) if enough else 0
    problems: Problems = []
    for number, (case, fact) in enumerate(checked):
        if fact.spacing_mm is None:
            continue
        spacing_mm, what = np.sort(fact.spacing_mm), ""
        often = max(1, (0.5 if fact.at_origin else LOST_SHARE) * len(sides))
        if spacing_mm[0] < SPACING_MM[0] or spacing_mm[-1] > SPACING_MM[1]:
            what = f"has unlikely voxels of {in_mm(fact.spacing_mm)}"
        elif enough and ones <= often and (np.abs(spacing_mm - 1) < 1e-6).all():
            what = f"has voxels of 1 x 1 x 1 mm, unlike {len(sides) - ones} other cases, as if its header was lost"
        elif enough and (np.maximum(spacing_mm / median, median / spacing_mm) > OFF_MEDIAN).any():
            what = f"has voxels of {in_mm(fact.spacing_mm)}; the median, sides sorted, is {in_mm(median)}"
        if what:
            remedy = "Compare with the original; correct the header of image and label map."
            problems.append((number, Problem(str(case.image[0]), what, remedy, usable=True)))
    return problems


def same_images(checked: Checked) -> Problems:
    """Return the images whose voxels are those of another case."""
    first: dict[str, Case] = {}
    problems: Problems = []
    for number, (case, fact) in enumerate(checked):
        if fact.voxels_digest is None:
            continue
        other = first.setdefault(fact.voxels_digest, case)
        if other is not case:
            what = f"is the same image as {other.image[0]}"
            remedy = "Take one out: in two folds, it would be trained on and tested on."
            problems.append((number, Problem(str(case.image[0]), what, remedy, usable=True)))
    return problems


def wrong_intensities(checked: Checked, channel_names: Sequence[str]) -> Problems:
    """Return the images of CT whose values can't be HU; see `hounsfield.why_not_hu`."""
    problems: Problems = []
    for channel in ct_channels(checked, channel_names):
        for number, (case, fact) in enumerate(checked):
            reason = fact.not_hu[channel] if channel < len(fact.not_hu) else None
            if reason:
                several = len(fact.not_hu) > len(case.image)
                what = f"{f'channel {channel} ' if several else ''}can't be HU: {reason}"
                remedy = "Undo the offset or scaling, or name the modality if it isn't CT."
                file = case.image[0 if several else channel]
                problems.append((number, Problem(str(file), what, remedy, usable=True)))
    return problems


def not_ct(checked: Checked, channel_names: Sequence[str]) -> list[tuple[str, str]]:
    """Return which channels of a data set that doesn't name them aren't CT, and what to do: said once for all cases."""
    if channel_names:
        return []
    taken = ct_channels(checked, channel_names)
    others = [
        channel
        for channel in range(count_channels(checked, channel_names))
        if channel not in taken and _judged(checked, channel)
    ]
    remedy = "Say what it is, with --channels or in dataset.json, such as MR: it would be taken for CT."
    return [(f"channel {channel} names no modality, and its values can't be HU", remedy) for channel in others]


def ct_channels(checked: Checked, channel_names: Sequence[str]) -> list[int]:
    """Return the channels that are CT: by their names, or where there are none, by a tenth of their images at least."""
    if channel_names:
        return [channel for channel, name in enumerate(channel_names) if name.strip().casefold() == "ct"]
    judged = [_judged(checked, channel) for channel in range(count_channels(checked, channel_names))]
    return [c for c, reasons in enumerate(judged) if reasons and reasons.count("") >= SHARE_OF_HU * len(reasons)]


def absent(labels: Mapping[int, str], facts: Sequence[CaseFacts]) -> list[tuple[str, str]]:
    """Return which labels no case shows, and what to do."""
    if all(fact.label_voxels is None for fact in facts):
        return []
    counted = count_labels(labels, facts)
    remedy = "Take it out of the labels, or look for its cases: it can't be learned."
    return [
        (f"the label {i} ({name}) is in no label map", remedy) for i, name in labels.items() if not counted[i].cases
    ]


def count_labels(labels: Mapping[int, str], facts: Sequence[CaseFacts]) -> dict[int, LabelCount]:
    """Return each label, known or found, with the number of cases that show it."""
    counts = Counter(label for fact in facts for label in fact.label_voxels or ())
    return {label: LabelCount(labels.get(label, ""), counts[label]) for label in sorted({*labels, *counts})}


def _judged(checked: Checked, channel: int) -> list[str]:
    """Return why each image that was read can't be HU in a channel; empty ones may be."""
    reasons = [fact.not_hu[channel] for _, fact in checked if channel < len(fact.not_hu)]
    return [reason for reason in reasons if reason is not None]


def _channels(number: int) -> str:
    return f"{number} channel{'s' if number != 1 else ''}"


def _range(values: list) -> tuple | None:
    return (tuple(np.min(values, axis=0).tolist()), tuple(np.max(values, axis=0).tolist())) if values else None
