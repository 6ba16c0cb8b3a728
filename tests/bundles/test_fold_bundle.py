from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import BUNDLE, CONFIGS
from monai.bundle import ConfigParser

from cyclic_committee.scripts.bundles.fold_bundle import (
    as_planned,
    blocks_of,
    copy_template,
    merged_text,
    settled,
    template_text,
    text_of,
    with_given,
    write_fold,
)
from cyclic_committee.scripts.runtime.errors import BadInput

PLAN = """\
# A plan.
data_list: "../task list.json"
dataset_dir: "$@bundle_root + '/' + @data_list"
fold: 1

# Names.
labels: {"1": "gland", "3": "lesion"}
channels: 2

normalise:
  # T1
  - {_target_: scripts.transforms.normalisation.StandardiseImage, nonzero: false}
  # T2

  - {_target_: scripts.transforms.normalisation.ClipAndStandardise, clip: [-100, 300], mean: 100, sd: 50}

# Small.
patch_size: [64, 32]
member#features: [8, 16, 16]
member#strides: [[2, 2], [2, 1]]
batch_size: 8
"""
TWICE = [1, [2]]
OVERLAYS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "numbers": {"batch_size": 2, "learning_rate": 1e-5, "seed": 7, "fold": "all"},
    "within a key": {"member#features": [4, 8], "member#strides": [[2, 2]], "train#dataset#folds": 3},
    "a key and within it": {"member": {"_target_": "x.Y", "a": [1]}, "member#a": [2]},
    "lists and dicts": {"augmentation": [], "to_tensor": [{"_target_": "Z", "keys": ["image", "label"], "n": None}]},
    "words": {"experiment_name": "a: b # c", "run_name": "import", "layout": "no", "data_root": 'it\'s "mine"'},
    "expressions": {"device": "$torch.device('cpu')", "network": "@network_def", "dataset_dir": "$@bundle_root + '/ä'"},
    "more": {"+labels": {"5": "colon"}, "+to_tensor": [{"_target_": "Z"}], "new_key": "@seed"},
    "the small variant": yaml.safe_load((CONFIGS / "variants" / "small.yaml").read_text()),
    "the same list twice": {"augmentation": [{"_target_": "Z", "a": TWICE, "b": TWICE}]},
}


@pytest.mark.parametrize("name", ["train.yaml", "inference.yaml"])
@pytest.mark.parametrize("overlay", OVERLAYS.values(), ids=list(OVERLAYS))
def test_the_merged_text_parses_to_the_same_as_template_and_overlay(
    tmp_path: Path, name: str, overlay: dict[str, Any]
) -> None:
    if name == "inference.yaml":
        overlay = {k: v for k, v in overlay.items() if not k.startswith(("train#", "+to_tensor"))}
    (tmp_path / "overlay.json").write_text(json.dumps(overlay))
    merged = tmp_path / "merged.yaml"
    merged.write_text(merged_text((CONFIGS / name).read_text(), overlay))
    expected = ConfigParser.load_config_files([str(CONFIGS / name), str(tmp_path / "overlay.json")])
    assert ConfigParser.load_config_files([str(merged)]) == expected
    assert "&id" not in merged.read_text()


def test_what_isnt_changed_stays_letter_by_letter_with_all_comments() -> None:
    template = (CONFIGS / "train.yaml").read_text()
    assert merged_text(template, {}) == template
    assert merged_text(template, {"seed": 0}) == template
    before, after = template.splitlines(), merged_text(template, {"seed": 3}).splitlines()
    assert [line for line in after if line not in before] == ["#~ seed: 0", "seed: 3"]
    assert [line for line in before if line not in after] == ["seed: 0"]


@pytest.mark.parametrize("overlay", OVERLAYS.values(), ids=list(OVERLAYS))
def test_another_overlay_takes_the_place_of_the_first(overlay: dict[str, Any]) -> None:
    template = (CONFIGS / "train.yaml").read_text()
    assert template_text(merged_text(template, overlay)) == template
    assert merged_text(merged_text(template, overlay), {"seed": 3}) == merged_text(template, {"seed": 3})


def test_a_fold_of_another_version_keeps_its_own_template(fold: Path) -> None:
    train = fold / "configs" / "train.yaml"
    train.write_text(train.read_text().replace("seed: 0\n", "seed: 5  # mine\n"))
    own = train.read_text()
    write_fold(fold, PLAN, channel_names=["T1", "T2"])
    write_fold(fold, "fold: 0\nseed: 7\n")
    assert loaded(fold, "train.yaml")["seed"] == 7
    assert "patch_size: [512, 512]" in train.read_text().splitlines()
    write_fold(fold, "fold: 0\n")
    assert train.read_text().endswith(own)


@pytest.mark.parametrize("text", [PLAN, (CONFIGS / "train.yaml").read_text(), (CONFIGS / "inference.yaml").read_text()])
def test_blocks_are_the_keys_and_the_whole_text(text: str) -> None:
    blocks, tail = blocks_of(text)
    assert [block.key for block in blocks] == list(yaml.safe_load(text))
    assert text_of(blocks, tail) == text


def test_a_key_that_leads_nowhere_is_named() -> None:
    with pytest.raises(BadInput, match="mamber#features: no such key"):
        merged_text(PLAN, {"mamber#features": [1]})


def test_a_trainings_values_hide_the_plan_and_the_next_trainings_take_their_place() -> None:
    first = with_given(PLAN, {"member": {"a": 1}, "batch_size": 2, "normalise": []})
    assert yaml.safe_load(first)["batch_size"] == 2
    assert "member#features" not in yaml.safe_load(first)
    assert "#~ batch_size: 8" in first.splitlines()  # the plan can still be read
    second = with_given(first, {"patch_size": [8, 8]})
    assert yaml.safe_load(second) == {**yaml.safe_load(PLAN), "patch_size": [8, 8]}
    assert with_given(second, {}) == as_planned(first) == PLAN


def test_settled_values_stay() -> None:
    text = settled(PLAN, {"member": {"a": 1}, "batch_size": 2, "data_list": "x.json"}, why="For a test.")
    values = yaml.safe_load(as_planned(with_given(text, {"batch_size": 1})))
    assert (values["batch_size"], values["member"], values["data_list"]) == (2, {"a": 1}, "x.json")
    assert "member#strides" not in values
    assert "# For a test.\nbatch_size: 2" in text


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    copy_template(BUNDLE, tmp_path / "fold")
    return tmp_path / "fold"


def loaded(fold: Path, name: str) -> dict[str, Any]:
    return ConfigParser.load_config_file(str(fold / "configs" / name))


def test_a_fold_has_the_overlay_in_both_configurations_as_far_as_they_know_its_keys(fold: Path) -> None:
    write_fold(fold, PLAN, channel_names=["T1", "T2"], source="task.json")
    training, inference = loaded(fold, "train.yaml"), loaded(fold, "inference.yaml")
    for key in ("labels", "channels", "normalise", "patch_size", "member"):
        assert training[key] == inference[key]
    assert training["member"]["strides"] == [[2, 2], [2, 1]]
    assert (training["data_list"], training["fold"]) == ("../task list.json", 1)
    assert set(inference) == set(loaded(BUNDLE, "inference.yaml"))  # places of the training data don't belong there
    assert inference["dataset_dir"] == loaded(BUNDLE, "inference.yaml")["dataset_dir"]
    assert (fold / "configs" / "overlay.yaml").read_text() == PLAN
    assert "overlay.yaml" in (fold / "configs" / "train.yaml").read_text().splitlines()[0]
    assert not list(fold.rglob(".unfinished*"))


def test_a_copy_takes_nothing_along_that_was_made_by_use(tmp_path: Path) -> None:
    used = tmp_path / "used"
    shutil.copytree(BUNDLE, used, ignore=shutil.ignore_patterns("__pycache__", "*.pt"))
    (used / "models" / "model.pt").touch()
    for name in ("output", "data"):
        (used / name).mkdir()
    copy_template(used, tmp_path / "fold")
    assert not {"output", "data"} & {path.name for path in (tmp_path / "fold").iterdir()}
    assert (tmp_path / "fold" / "scripts" / "data" / "cases.py").is_file()  # a room of the same name
    assert [file.name for file in (tmp_path / "fold" / "models").iterdir()] == ["README.md"]


def test_an_unknown_key_is_named_and_nothing_is_written(fold: Path) -> None:
    before = (fold / "configs" / "train.yaml").read_text()
    with pytest.raises(BadInput, match=r"leraning_rate: no such key.*learning_rate"):
        write_fold(fold, PLAN + "leraning_rate: 1\n")
    assert (fold / "configs" / "train.yaml").read_text() == before
    assert not (fold / "configs" / "overlay.yaml").exists()


def test_the_metadata_are_those_of_data_and_network(fold: Path) -> None:
    write_fold(fold, PLAN, channel_names=["T1", "T2"], source="task.json")
    metadata, original = loaded(fold, "metadata.json"), loaded(BUNDLE, "metadata.json")
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert image["channel_def"] == {"0": "T1", "1": "T2"}
    assert pred["channel_def"] == {"0": "background", "1": "gland", "2": "lesion"}
    assert (image["num_channels"], pred["num_channels"]) == (2, 3)
    assert image["spatial_shape"] == pred["spatial_shape"] == ["8*n", "4*n"]
    assert image["value_range"] == [-5, 5]
    assert (image["modality"], image["format"]) == ("T1, T2", "magnitude")
    assert metadata["label_classes"] == "0 background, 1 gland, 3 lesion"
    assert "task.json, fold 1" in metadata["name"]
    assert metadata["version"] == original["version"]
    assert set(metadata) == set(original)


@pytest.mark.parametrize(
    ("overlay", "shape"),
    [
        ("", "256*n"),
        ("member#features: [8, 8, 8]\n", "8*n"),
        ((CONFIGS / "variants" / "mixed.yaml").read_text(), "512*n"),
    ],
    ids=["the paper's", "three stages", "other networks take their patch"],
)
def test_shapes_are_what_the_networks_take(fold: Path, overlay: str, shape: str) -> None:
    write_fold(fold, "fold: 0\n" + overlay)
    metadata = loaded(fold, "metadata.json")
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [shape, shape]
    assert metadata["name"] == loaded(BUNDLE, "metadata.json")["name"]
    assert metadata["network_data_format"]["inputs"]["image"]["value_range"] == pytest.approx([-2.77, 3.2], abs=0.01)
