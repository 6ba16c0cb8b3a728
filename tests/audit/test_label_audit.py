from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from cyclic_committee.scripts.audit.label_audit import (
    audit,
    case_distrust,
    deviations,
    dice,
    format_suspects,
    rank,
    slice_distrust,
)
from cyclic_committee.scripts.data.exclusion import excluded_names
from cyclic_committee.scripts.handlers.loss_record import append, as_batch, read_losses
from cyclic_committee.scripts.runtime.errors import BadInput
from cyclic_committee.scripts.visualize.suspects import pick_apart

LABELS = {"1": "liver", "2": "kidney"}
USUAL = np.array([[95.0, 40], [100, 38], [104, 43], [98, 40], [101, 41]])  # pixels agreed, (cases, organs)
LABELLED = np.array([[110.0, 50], [112, 50], [113, 51], [110, 50], [111, 49]])


def record(folder: Path, *, about: dict[str, Any], names: str = "abcde", wrong: str = "c", slices: int = 8) -> Path:
    """Write a record of four epochs; in the last two, a case's kidney is labelled where the committee sees none."""
    for epoch in range(1, 5):
        rows = []
        for number, name in enumerate(names):
            for index in range(slices):
                torch.manual_seed(1000 * epoch + 10 * number + index)
                areas = torch.tensor([[4000, 300, 80], [4000, 300, 80], [3950, 270, 70]]) + torch.randint(0, 9, (3, 3))
                if name == wrong and epoch > 2 and index > 3:
                    areas[1:, 2] = 0
                elif epoch <= 2:  # what an untrained committee thinks doesn't count
                    areas[2] = torch.randint(0, 60, (3,))
                losses = torch.full((3, 1), 0.1 * (number + 1))
                selection = SimpleNamespace(
                    losses=losses, kept=torch.tensor([[1], [0], [1]]) > 0, samples=[(name, index)]
                )
                rows.append((epoch, selection, areas[None]))
        append(as_batch(rows, epoch=epoch), folder / "losses.arrow", about=about)
    return folder


def record_of(phantoms: Path, folder: Path) -> Path:
    files = [phantoms / "TrainingImg" / f"train_00{k}_0000.nii.gz" for k in range(5)]
    cases = {
        name: {"image": str(file), "label": str(phantoms / "TrainingMask" / file.name.replace("_0000", ""))}
        for name, file in zip("abcde", files, strict=True)
    }
    return record(folder, about={"cases": cases, "labels": LABELS, "orientation": "RAS"})


@pytest.mark.parametrize(
    ("case", "organ", "labelled", "expected", "agreed"),
    [
        (0, 1, 0, 50, 0),  # the organ is missing in the label
        (2, 1, 50, 0, 0),  # and where there is none
        (4, 0, 111, 112, 60),  # the outline lies elsewhere
        (1, 0, 190, 112, 104),  # too generous
    ],
)
def test_a_label_that_is_unlike_the_others_is_distrusted_most(
    case: int, organ: int, labelled: float, expected: float, agreed: float
) -> None:
    areas = [LABELLED.copy(), LABELLED.copy(), USUAL.copy()]
    for of_all, one in zip(areas, (labelled, expected, agreed), strict=True):
        of_all[case, organ] = one
    distrust, worst = case_distrust(*areas)
    assert (distrust.argmax(), worst[case]) == (case, organ)
    assert distrust[case] > 3
    assert np.delete(distrust, case).max() < 3


def test_a_missing_organ_is_not_lost_among_many() -> None:
    areas = [np.tile(areas, (1, 6)) for areas in (LABELLED, LABELLED, USUAL)]
    areas[0][3, 7] = areas[2][3, 7] = 0
    distrust, worst = case_distrust(*areas)
    assert (distrust.argmax(), worst[3]) == (3, 7)
    assert distrust[3] > 3


def test_a_better_case_than_usual_is_not_distrusted() -> None:
    agreed = USUAL.copy()
    agreed[2] = LABELLED[2]
    assert case_distrust(LABELLED, LABELLED, agreed)[0][2] == 0


def test_some_pixels_of_an_organ_that_is_not_there_are_no_missing_label() -> None:
    labelled, expected, agreed = LABELLED.copy(), LABELLED.copy(), USUAL.copy()
    labelled[0, 1], expected[0, 1], agreed[0, 1] = 0, 1, 0
    assert case_distrust(labelled, expected, agreed)[0][0] < 3
    expected[0, 1] = 30
    assert case_distrust(labelled, expected, agreed)[0][0] > 3


def test_a_class_that_nobody_shows_gives_no_distrust() -> None:
    nothing = np.zeros((4, 1))
    assert dice(nothing, nothing, nothing).tolist() == [[1.0]] * 4
    assert case_distrust(nothing, nothing, nothing)[0].tolist() == [0.0] * 4
    assert slice_distrust(nothing, nothing, nothing)[0].tolist() == [0.0] * 4


def test_the_same_rim_is_as_suspicious_on_a_small_organ_as_on_a_large_one() -> None:
    area = np.array([[100.0], [400], [100], [400], [100], [400], [900]])
    rim = 0.5 * np.sqrt(area)
    rim[[0, 1]] *= 4  # a small and a large organ, with rims four times as wide
    distrust, _ = slice_distrust(area, area, area - rim)
    assert set(np.argsort(distrust)[-2:].tolist()) == {0, 1}
    assert distrust[0] == pytest.approx(distrust[1], rel=0.15)


def test_deviations_are_typical_ones_above_the_median() -> None:
    values = np.array([[1.0], [2], [3], [4], [100]])
    expected = [0, 0, 0, 1 / 1.4826, 97 / 1.4826]
    assert deviations(values, shown=values > 0)[:, 0] == pytest.approx(expected)
    assert deviations(values, shown=values < 0)[:, 0] == pytest.approx(expected)  # shown nowhere: all count
    assert deviations(np.array([[0.5], [0.5], [0.52]]), shown=values[:3] > 0)[:, 0] == pytest.approx([0, 0, 2])


def test_cases_and_slices_are_ranked_by_the_second_half_of_the_training(tmp_path: Path) -> None:
    table, about = read_losses(record(tmp_path, about={"labels": LABELS}) / "losses.arrow")
    cases = rank(table, labels=about["labels"], by_slice=False)
    assert [row.rank for row in cases] == [1, 2, 3, 4, 5]
    first = cases[0]
    assert (first.case, first.label, first.slice, first.seen) == ("c", "kidney", None, 16)
    assert first.distrust > 3 > cases[1].distrust
    assert (first.loss, first.dropped) == (pytest.approx(0.3), pytest.approx(1 / 3))
    slices = rank(table, labels=about["labels"])
    assert {(row.case, row.slice) for row in slices[:4]} == {("c", index) for index in (4, 5, 6, 7)}
    assert len(slices) == 40
    assert {row.seen for row in slices} == {2}


def test_tables_names_and_pictures_are_written(phantoms: Path, tmp_path: Path) -> None:
    run = record_of(phantoms, tmp_path)
    for _ in range(2):  # what an earlier audit has written is replaced
        rows = audit(run, top=2)
    assert sorted(str(path.relative_to(run / "audit")) for path in (run / "audit").rglob("*.*")) == [
        "cases.csv",
        "pictures/001_c.png",
        f"pictures/002_{rows[1].case}.png",
        "slices.csv",
        "suspects.txt",
    ]
    picture = imread(run / "audit" / "pictures" / "001_c.png")
    assert picture.shape[1] == 1400
    assert (np.ptp(picture[..., :3], axis=2) > 0.3).any()  # outlines have colours, CTs don't
    with (run / "audit" / "cases.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["case"] for row in table] == [row.case for row in rows]
    assert list(table[0]) == ["case", "rank", "distrust", "label", "dsc", "loss", "dropped", "seen"]
    with (run / "audit" / "slices.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["slice"] in "4567"
    assert excluded_names(str(run / "audit" / "suspects.txt")) == ["c"]
    assert sorted(excluded_names(str(run / "audit" / "cases.csv"))) == list("abcde")


def test_no_pictures_are_drawn_on_request(tmp_path: Path) -> None:
    record(tmp_path / "run", about={"cases": {}, "labels": LABELS, "orientation": "RAS"})
    audit(tmp_path / "run", out=tmp_path / "there", top=0)
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["cases.csv", "slices.csv", "suspects.txt"]


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "ASR"])
def test_slices_are_drawn_as_they_were_trained_on(phantoms: Path, tmp_path: Path, orientation: str) -> None:
    run = record_of(phantoms, tmp_path)
    table, about = read_losses(run / "losses.arrow")
    (run / "losses.arrow").unlink()
    append(table.combine_chunks().to_batches()[0], run / "losses.arrow", about={**about, "orientation": orientation})
    audit(run, top=1)
    assert (run / "audit" / "pictures" / "001_c.png").is_file()


@pytest.mark.parametrize(
    ("cases", "top", "message"),
    [
        ({}, 1, r"c: the record of the training doesn't name its files\. Draw nothing, --top 0\."),
        ({"c": {"image": "/gone/c.nii.gz", "label": "/gone/c.nii.gz"}}, 1, r"/gone/c\.nii\.gz can't be drawn"),
        ({}, -1, r"top: must be 0 or a whole number above it, got -1\."),
    ],
)
def test_what_can_not_be_drawn_is_named(tmp_path: Path, cases: dict[str, Any], top: int, message: str) -> None:
    record(tmp_path, about={"cases": cases, "labels": LABELS, "orientation": "RAS"})
    with pytest.raises(BadInput, match=message):
        audit(tmp_path, top=top)


def test_a_run_without_a_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"losses\.arrow: can't be read .* Give the output folder of a training\."):
        audit(tmp_path)


def test_pictures_show_slices_that_lie_apart() -> None:
    distrust = {10: 9.0, 11: 8.0, 12: 7.0, 20: 1.0, 30: 2.0, 31: 3.0}
    assert pick_apart(distrust, count=3, depth=40) == [10, 20, 31]
    assert pick_apart({5: 1.0}, count=3, depth=40) == [5]


def test_a_person_can_read_the_table(tmp_path: Path) -> None:
    table, about = read_losses(record(tmp_path, about={"labels": LABELS}) / "losses.arrow")
    lines = format_suspects(rank(table, labels=about["labels"], by_slice=False), top=2).splitlines()
    assert lines[0].split() == ["case", "distrust", "DSC", "loss", "dropped", "seen", "most", "of", "all"]
    assert lines[1].split()[:2] == ["1", "c"]
    assert lines[1].endswith("33%     16  kidney")
    assert lines[-1] == "* 1 of 5 cases have a distrust of 3 or more."
    assert len(lines) == 4
