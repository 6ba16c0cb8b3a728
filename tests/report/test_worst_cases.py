from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import BUNDLE
from cross_validations import cross_validation, data_set
from test_scores import run as scored

from cyclic_committee.scripts.report import worst_cases as report_challenges
from cyclic_committee.scripts.report.runs import Run, read_runs
from cyclic_committee.scripts.report.worst_cases import challenge_table, challenges_of, draw_challenges


@pytest.fixture
def run(process_state: None, phantoms: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.syspath_prepend(str(BUNDLE))
    data = data_set(tmp_path / "data", phantoms, cases=5)
    return read_runs([cross_validation(tmp_path / "cv", data, model=model, done=[0, 1])])[0]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray | None]:
    """The disagreements that are drawn."""
    found: list[np.ndarray | None] = []

    def draw(image: np.ndarray, maps: object, apart: np.ndarray | None, *, path: Path, **others: object) -> None:
        found.append(apart)
        path.parent.mkdir(exist_ok=True)
        path.touch()

    monkeypatch.setattr(report_challenges, "draw_challenge", draw)
    return found


def test_the_lowest_case_of_each_organ_is_a_challenge() -> None:
    made = scored("A", {0: {"a": 0.9, "b": 0.5}, 1: {"c": 0.7}})
    assert [(one.row["case"], one.fold) for one in challenges_of(made, count=2)] == [("b", 0), ("c", 1)]
    assert challenges_of(made, count=0) == []
    many = scored("A", {0: {f"{k:02d}": k / 100 for k in range(40)}})
    assert [one.row["case"] for one in challenges_of(many, count=30)] == [f"{k:02d}" for k in range(12)]


def test_cases_are_drawn_where_their_members_disagree(run: Run, seen: list[np.ndarray], tmp_path: Path) -> None:
    ones, problems = draw_challenges(run, count=1, folder=tmp_path / "figures")
    assert problems == []
    assert [one.row["organ"] for one in ones] == ["liver", "kidney", "spleen", "pancreas"]
    assert sorted(one.file for one in ones) == sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert all(0 < one.slice <= one.slices for one in ones)
    assert all(0 < apart.max() <= 1 for apart in seen)
    table = challenge_table(run, ones)
    assert table.shown[0][:3] == ["liver", ones[0].row["case"], str(ones[0].fold)]
    assert table.shown[0][5] == str(ones[0].slice)


def test_without_weights_all_else_is_drawn(run: Run, seen: list[np.ndarray | None], tmp_path: Path) -> None:
    for fold in (0, 1):
        (run.folder / f"fold_{fold}" / "model.pt").unlink()
    ones, problems = draw_challenges(run, count=1, folder=tmp_path / "figures")
    assert seen == [None] * 4
    assert all(one.file for one in ones)
    assert all(problem.startswith("Where the members of fold ") for problem in problems)


def test_what_can_not_be_drawn_is_said(run: Run, seen: list[np.ndarray | None], tmp_path: Path) -> None:
    for fold in (0, 1):
        shutil.rmtree(run.folder / f"fold_{fold}" / "labels")
    ones, problems = draw_challenges(run, count=1, folder=tmp_path / "figures")
    assert [one.file for one in ones] == [""] * 4
    assert challenge_table(run, ones).shown[0][5:] == ["–", "–"]
    assert all("isn't drawn: " in problem and "labels/" in problem for problem in problems)
    gone = Run(run.name, run.key, run.folder, run.settings, run.scores, {}, problem="/gone: no such folder.")
    ones, problems = draw_challenges(gone, count=1, folder=tmp_path / "figures")
    assert (len(ones), problems) == (4, ["No cases are drawn: /gone: no such folder."])
    assert seen == []
