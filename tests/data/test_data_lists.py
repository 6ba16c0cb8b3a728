"""Data lists from others: near misses of keys are told, and names lead to no other folder and are never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cyclic_committee.scripts.data.data_lists import channel_names, is_file_name
from cyclic_committee.scripts.data.layouts import read_data_set
from cyclic_committee.scripts.planning.check_report import folds_text
from cyclic_committee.scripts.planning.data_check import check_data_set
from cyclic_committee.scripts.planning.preparation import prepare
from cyclic_committee.scripts.runtime.errors import BadInput


def write(folder: Path, entry: dict[str, Any], **others: Any) -> Path:
    """Write a data list of four cases whose entries are as given, beside image and label."""
    for number in range(4):
        for name in ("image", "label"):
            nib.save(nib.Nifti1Image(np.full((8, 8, 4), number, np.int16), np.eye(4)), folder / f"{name}_{number}.nii")
    training = [{"image": f"image_{n}.nii", "label": f"label_{n}.nii", **entry} for n in range(4)]
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": training, "labels": {"liver": 1}, **others}))
    return path


@pytest.mark.parametrize("key", ["fold:", "folds", "Fold", " fold", "flod", "fold_"])
def test_a_key_that_is_nearly_fold_is_told_and_its_folds_are_not_used_in_silence(tmp_path: Path, key: str) -> None:
    data_set = read_data_set(write(tmp_path, {key: 0}))
    [remark] = data_set.problems
    assert remark.usable
    assert f"has the key {json.dumps(key)} in 4 of 4 entries, which is not read" in remark.what
    assert remark.remedy == 'Write "fold" if that is meant.'


def test_a_mistyped_list_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, {}, valdiation=[{"image": "image_0.nii", "label": "label_0.nii"}])
    [remark] = read_data_set(path).problems
    assert 'has the key "valdiation" in it' in remark.what


def test_keys_of_other_tools_are_no_remark(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"fold": 0, "folder": "x"}, test=[], name="x", numTraining=4, tensorImageSize="3D", licence=""
    )
    assert read_data_set(path).problems == ()


def test_the_folds_in_use_are_told(tmp_path: Path) -> None:
    assert check_data_set(write(tmp_path, {"fold": 3}), processes=0).folds == {3: 4}
    assert folds_text({0: 3, 1: 1}) == "the data list's own: 0 of 3 cases, 1 of 1 case"
    assert check_data_set(write(tmp_path, {}), processes=0).folds is None
    assert folds_text(None).startswith("made of the sorted names")


@pytest.mark.parametrize("name", ["../a", "a/b", "a\\b", "..", ".a", "/etc/a", "C:a", "a\nb", "", "a" * 300])
def test_a_cases_name_is_a_files_name_and_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    assert not is_file_name(name)
    dataset = {name: {"images": ["image_0.nii"], "label": "label_0.nii"}}
    (tmp_path / "imagesTr").mkdir()
    write(tmp_path, {}).rename(tmp_path / "old")
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "dataset": dataset}
    (tmp_path / "dataset.json").write_text(json.dumps({**described, "file_ending": ".nii", "numTraining": 1}))
    with pytest.raises(BadInput, match=r"dataset\.json: the case .* in dataset can't be a file's name"):
        read_data_set(tmp_path)


@pytest.mark.parametrize("name", ["liver", "left kidney", "Niere (links)", "肝臓", "case_0-1.5", "a b"])
def test_usual_names_are_taken(name: str) -> None:
    assert is_file_name(name)


@pytest.mark.parametrize("key", ["labels", "modality", "channel_names"])
@pytest.mark.parametrize("start", ["$", "@", "%", " $"])
def test_names_in_a_data_list_are_never_run(tmp_path: Path, key: str, start: str) -> None:
    """They are written into the plan, which is a configuration."""
    name = f"{start}__import__('pathlib').Path('{tmp_path}/run').touch()"
    path = write(tmp_path, {}, **{key: {"1": name} if key == "labels" else {"0": name}})
    with pytest.raises(BadInput, match=rf"datalist\.json: {key}: .* begins with \{start.strip()}, as code does"):
        prepare(path, tmp_path / "out")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["CT\nnormalise: $1", "a\x00b", "a\u2028b"])
def test_a_name_that_would_end_the_plans_comment_is_refused(tmp_path: Path, name: str) -> None:
    described = {"channel_names": {"0": name}, "labels": {"liver": 1}, "training": []}
    with pytest.raises(BadInput, match=r"channel_names: .* holds characters that can't be shown\. Rename it\."):
        channel_names(described, tmp_path / "dataset.json")
