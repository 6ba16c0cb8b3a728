from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import LABELS

from cyclic_committee.monai_label.rounds import Cases, mean_dsc, replace_file, split_cases
from cyclic_committee.monai_label.scores import SERVED_S, Scores, most_disputed
from cyclic_committee.scripts.commands.label_server import label_server
from cyclic_committee.scripts.runtime.errors import BadInput


def cases(*names: str) -> Cases:
    return [{"image": f"/a/{name}.nii.gz", "label": f"/b/{name}.nii.gz"} for name in names]


def test_a_case_that_validates_never_trained_whatever_is_added() -> None:
    names = [f"case_{number}" for number in range(40)]
    trained: set[str] = set()
    for count in range(2, 41):
        training, validation = split_cases(cases(*names[:count]), share=0.2)
        assert len(training) + len(validation) == count
        assert training
        assert not {case["image"] for case in validation} & trained
        trained |= {case["image"] for case in training if count > 2}
    assert 3 <= len(validation) <= 14


@pytest.mark.parametrize(("names", "share"), [((), 0.2), (("one",), 0.2), (("one", "two"), 0), (("one", "two"), 1)])
def test_too_few_cases_and_senseless_shares_are_refused(names: tuple[str, ...], share: float) -> None:
    with pytest.raises(BadInput):
        split_cases(cases(*names), share=share)


def test_the_mean_dsc_is_that_of_all_organs_of_all_cases(tmp_path: Path) -> None:
    reference = np.zeros((4, 4, 4), np.uint8)
    reference[0], reference[1] = 1, 2
    nib.save(nib.Nifti1Image(reference, np.eye(4)), tmp_path / "label.nii.gz")

    class Half:
        """Finds the liver and half of the kidney."""

        def predict(self, image: str) -> Any:
            found = reference.copy()
            found[1, :2] = 0
            return torch.from_numpy(found)[None]

    case = {"image": "image", "label": str(tmp_path / "label.nii.gz")}
    predictor: Any = Half()
    assert mean_dsc(predictor, [case], LABELS) == pytest.approx((1 + 2 / 3 + 1 + 1) / 4)


def test_a_file_is_replaced_whole_and_its_source_stays(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "new").write_text("new")
    replace_file(tmp_path / "old", tmp_path / "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old": "new", "new": "new"}


def test_scores_are_kept_beside_each_other(tmp_path: Path) -> None:
    scores = Scores(tmp_path / "scores.json")
    assert scores.read() == {}
    scores.put("a", 0.5, "1-1")
    scores.put("b", None, "1-1")
    scores.put("a", 0.25, "2-1")
    assert scores.read() == {
        "a": {"disagreement": 0.25, "weights": "2-1"},
        "b": {"disagreement": None, "weights": "1-1"},
    }


@pytest.mark.parametrize(
    ("scores", "served_s", "wanted"),
    [
        ({"a": 0.1, "b": 0.3, "c": 0.2}, {}, {"b"}),
        ({"a": 0.1, "b": 0.3, "c": 0.2}, {"b": 99990.0}, {"c"}),
        ({"a": 0.1, "b": 0.3, "c": 0.2}, {"a": 99990.0, "b": 99990.0, "c": 99990.0}, {"b"}),
        ({"a": 0.1, "b": 0.3, "c": 0.2}, {"b": 100000.0 - SERVED_S}, {"b"}),
        ({"b": 0.0}, {}, {"b"}),
        ({"a": None, "b": None, "c": 0.0}, {}, {"c"}),
        ({}, {}, {"a", "b", "c"}),
        ({"a": None}, {}, {"a", "b", "c"}),
    ],
)
def test_the_most_disputed_image_is_next(
    scores: dict[str, float | None], served_s: dict[str, float], wanted: set[str]
) -> None:
    found = {most_disputed(["a", "b", "c"], scores, served_s, now_s=100000.0) for _ in range(100)}
    assert found == wanted


def test_nothing_is_next_when_all_is_labelled() -> None:
    assert most_disputed([], {"a": 0.5}, {}, now_s=0.0) is None


@pytest.mark.skipif(importlib.util.find_spec("monailabel") is not None, reason="MONAI Label is installed here")
def test_without_monai_label_one_line_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"monailabel isn't installed.*pip install 'cyclic-committee\[label\]'"):
        label_server(str(tmp_path))


def test_accounts_that_would_not_be_asked_for_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cyclic_committee.scripts.commands.label_server.NEEDED", ())
    monkeypatch.setenv("MONAI_LABEL_AUTH_ENABLE", "true")
    with pytest.raises(BadInput, match="MONAI_LABEL_AUTH_ENABLE: this application knows no accounts"):
        label_server(str(tmp_path))


@pytest.mark.parametrize("studies", ["nowhere", "ftp://example.org"])
def test_studies_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch, studies: str) -> None:
    monkeypatch.setattr("cyclic_committee.scripts.commands.label_server.NEEDED", ())
    with pytest.raises(BadInput, match=f"{studies}: no such folder. Give a folder of NIfTI files, or a DICOMweb url"):
        label_server(studies)
