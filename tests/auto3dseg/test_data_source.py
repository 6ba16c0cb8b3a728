from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from auto3dseg_runs import input_files, mr_list, phantom_list

from cyclic_committee.scripts.auto3dseg.data_source import measured_source, read_analysis, read_source
from cyclic_committee.scripts.runtime.errors import BadInput

LABELS = {1: "liver", 2: "kidney", 3: "spleen", 4: "pancreas"}


@pytest.fixture(scope="module")
def data_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom_list(tmp_path_factory.mktemp("data") / "phantoms", cases=4)


def measured(folder: Path, data_list: Path, **given: Any) -> tuple[dict[int, str], list[str]]:
    source, stats = input_files(folder, data_list, **{"cases": 3, "labels": range(5), **given})
    _, labels, channels = measured_source(read_source(source), read_analysis(stats), folder / "data")
    return labels, channels


@pytest.mark.parametrize(
    ("class_names", "labels"),
    [
        (None, {n: f"label_{n}" for n in LABELS}),
        (["liver", "kidney", "spleen", "pancreas"], LABELS),
        (["background", "liver", "kidney", "spleen", "pancreas"], LABELS),
        ([{"name": name, "index": [n]} for n, name in LABELS.items()], LABELS),
        ([{"name": name, "index": n} for n, name in {0: "air", **LABELS}.items()], LABELS),
        (["liver", "kidney", "spleen", "pancreas", "colon"], {**LABELS, 5: "colon"}),
    ],
)
def test_labels_are_named_as_given(tmp_path: Path, data_list: Path, class_names: Any, labels: dict[int, str]) -> None:
    assert measured(tmp_path, data_list, class_names=class_names)[0] == labels


def test_else_labels_have_the_data_lists_names(tmp_path: Path, data_list: Path) -> None:
    named = data_list.with_name("named.json")
    described = json.loads(data_list.read_text())
    named.write_text(json.dumps({**described, "labels": {"0": "background", **{str(n): v for n, v in LABELS.items()}}}))
    assert measured(tmp_path, named)[0] == LABELS


@pytest.mark.parametrize(
    ("modality", "names"),
    [("ct", ["CT"]), ("CT", ["CT"]), ("mri", ["MRI"]), ("MR", ["MR"]), (["T1"], ["T1"]), ({"0": "FLAIR"}, ["FLAIR"])],
)
def test_channels_are_named_by_the_modality(tmp_path: Path, data_list: Path, modality: Any, names: list[str]) -> None:
    assert measured(tmp_path, data_list, modality=modality)[1] == names


@pytest.mark.parametrize(("modality", "names"), [("mri", ["MRI", "MRI"]), ({"1": "T2", "0": "T1"}, ["T1", "T2"])])
def test_every_channel_has_a_name_and_labels_may_have_gaps(tmp_path: Path, modality: Any, names: list[str]) -> None:
    given = {"cases": 4, "channels": 2, "labels": [0, 1, 2, 5], "class_names": ["a", "b", "c"], "modality": modality}
    assert measured(tmp_path, mr_list(tmp_path / "mr"), **given) == ({1: "a", 2: "b", 5: "c"}, names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cases": 4}, r"datastats\.yaml: is of another data set: its cases are 4, those of task list\.json 3"),
        ({"channels": 2}, "has 1 channels, expected 2"),
        (
            {"labels": [0, 1, 2, 3, 4, 5]},
            r"its labels are \[0, 1, 2, 3, 4, 5\], those of task list\.json \[0, 1, 2, 3, 4\]",
        ),
        ({"labels": [0, 1]}, "holds the label ids 2, 3, 4"),
        ({"class_names": ["liver"]}, "class_names: the label 2 has no name"),
        ({"modality": ["T1", "T2"]}, "modality: names 2 channels, images have 1"),
        ({"sigmoid": True}, "sigmoid: overlapping classes"),
        ({"datalist": "none.json"}, r"none\.json: no such"),
    ],
)
def test_what_doesnt_fit_is_told_in_one_line(
    tmp_path: Path, data_list: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        measured(tmp_path, data_list, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("modality: CT", "lacks datalist"), ("- 1", "holds no keys"), ("{", "can't be read")],
)
def test_an_input_that_is_none_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "input.yaml").write_text(text)
    with pytest.raises(BadInput, match=rf"input\.yaml: {message}"):
        read_source(tmp_path / "input.yaml")
    with pytest.raises(BadInput, match=r"input\.yaml: (is no data analysis|holds no keys|can't be read)"):
        read_analysis(tmp_path / "input.yaml")


def test_relative_places_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input.yaml").write_text("{modality: CT, datalist: a/b.json, dataroot: ./data}")
    source = read_source("input.yaml")
    assert (source.data_list, source.data_root) == (tmp_path / "a" / "b.json", str(tmp_path / "data"))
