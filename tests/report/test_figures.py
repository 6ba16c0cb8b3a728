from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_scores import run

from cyclic_committee.scripts.report.figures import WIDTH_IN, curves, line_of, mean_line, shortened, violins
from cyclic_committee.scripts.report.runs import Run


def test_each_case_is_a_point_with_its_name_organ_and_score() -> None:
    drawing = violins([run("A", {0: {"a": 0.91234, "b": 0.5}, 1: {"c": 0.7}})], "nsd")
    assert drawing.titles == {
        "points-0-0": ["a: 45.6 % NSD of liver", "b: 25.0 % NSD of liver", "c: 35.0 % NSD of liver"]
    }
    axes = drawing.figure.axes[0]
    [line] = [line for line in axes.get_lines() if line.get_gid() == "points-0-0"]
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([45.617, 25.0, 35.0])
    assert [text.get_text() for text in axes.texts] == ["b"]  # the lowest one


def test_several_runs_stand_side_by_side_and_are_told_apart() -> None:
    drawing = violins([run("A", {0: {"a": 0.9, "b": 0.5}}), run("B", {0: {"a": 0.8}})], "dsc")
    assert drawing.titles["points-1-0"] == ["a: 80.0 % DSC of liver, B"]
    places = {line.get_gid(): np.mean(line.get_xdata()) for line in drawing.figure.axes[0].get_lines()}
    assert places["points-0-0"] < 0 < places["points-1-0"]
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == ["A", "B"]


def test_many_organs_make_a_wide_figure() -> None:
    many = run("A", {0: {"a": 0.9}})
    rows = [{**many.rows[0], "organ": f"organ {k}"} for k in range(20)]
    drawing = violins([Run("A", "a", Path("a"), {}, {0: rows}, {})], "dsc")  # type: ignore[dict-item,list-item]
    assert drawing.figure.get_figwidth() > 2 * WIDTH_IN
    assert list(drawing.figure.axes[0].texts) == []


HISTORY = [
    {"epoch": 1, "loss/member_0": 0.9, "kept/member_0": 0.75, "agreement/members_0_1": 0.6},
    {"epoch": 2, "loss/member_0": 0.5, "validation/dsc_liver": 0.9, "validation/dsc_mean": float("nan")},
]


def test_curves_have_a_line_a_fold_and_their_mean() -> None:
    made = Run("A", "a", Path("a"), {}, {}, {0: HISTORY, 2: [{"epoch": 1, "loss/member_0": 0.7}]})
    drawings = curves(made)
    assert [drawing.name for drawing in drawings] == [
        f"training_a_{topic}" for topic in ("loss", "validation", "kept", "agreement")
    ]
    assert drawings[0].titles == {"line-0-0": ["member 0, fold 0"], "line-0-2": ["member 0, fold 2"]}
    lines = {line.get_gid(): line for line in drawings[0].figure.axes[0].get_lines()}
    assert np.asarray(lines["line-0-0"].get_xydata()).tolist() == [[1, 0.9], [2, 0.5]]
    assert np.asarray(lines[None].get_xydata()).tolist() == [[1, pytest.approx(0.8)]]  # where both have an epoch
    assert [text.get_text() for text in drawings[3].figure.legends[0].get_texts()] == ["0 and 1"]
    assert curves(Run("A", "a", Path("a"), {}, {}, {})) == []


def test_long_curves_are_averaged() -> None:
    history = [{"epoch": float(epoch), "x": epoch / 1000} for epoch in range(1, 1001)]
    epochs, values = line_of(history, "x", 100)
    assert len(epochs) == 200
    assert (epochs[0], values[0]) == (3, pytest.approx(0.3))
    assert line_of(history[:200], "x", 1)[0] == [float(epoch) for epoch in range(1, 201)]


def test_the_mean_line_is_over_curves_that_have_the_epoch() -> None:
    assert mean_line([([1, 2], [1.0, 2.0]), ([2, 3], [4.0, 5.0])]) == ([2], [3.0])


def test_long_names_leave_room_for_others() -> None:
    assert (shortened("train_001"), shortened("a" * 20)) == ("train_001", "a" * 15 + "…")
