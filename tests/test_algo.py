from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from auto3dseg_runs import TINY_TRAINING, input_files, made_fold, mr_list, phantom_list, runner
from conftest import BUNDLE
from monai.apps.auto3dseg import AlgoEnsembleBestN, AlgoEnsembleBuilder, BundleGen, import_bundle_algo_history
from monai.auto3dseg import algo_from_json, algo_to_json
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out
from test_bundle import REQUIRED_METADATA

from cyclic_committee.scripts import algo as algo_module
from cyclic_committee.scripts.algo import CommitteeAlgo
from cyclic_committee.scripts.bundles.fold_bundle import copy_template
from cyclic_committee.scripts.planning.preparation import prepare
from cyclic_committee.scripts.runtime.errors import BadInput

PLACES = {"data_list", "dataset_dir", "layout", "data_root", "cache_dir", "fold"}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A foreign working directory; what MONAI and workflows do to the process is undone."""
    folder, path, before = tmp_path_factory.mktemp("elsewhere"), list(sys.path), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.path[:] = path


@pytest.fixture(scope="module")
def data_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom_list(tmp_path_factory.mktemp("data") / "of phantoms")


@pytest.fixture(scope="module")
def work(elsewhere: Path, data_list: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of AutoRunner, with the ensemble of the best of each fold."""
    folder = tmp_path_factory.mktemp("auto") / "a work folder"
    runner(folder, data_list, train={**TINY_TRAINING, "num_warmup_epochs": 1}).run()
    return folder


@pytest.fixture
def untrained(tmp_path: Path, data_list: Path) -> CommitteeAlgo:
    return made_fold(tmp_path / "work", data_list)


def config(fold: Path | str, name: str = "train.yaml") -> dict[str, Any]:
    return ConfigParser.load_config_file(str(Path(fold) / "configs" / name))


def history(work: Path) -> dict[str, Any]:
    return {str(one["identifier"]): one for one in import_bundle_algo_history(str(work), only_trained=False)}


def test_autorunner_trains_both_folds_and_their_ensemble_predicts(work: Path, elsewhere: Path, data_list: Path) -> None:
    folds = history(work)
    assert list(folds) == ["committee_0", "committee_1"]
    assert all(fold["is_trained"] and 0 <= fold["best_metric"] <= 1 for fold in folds.values())
    image = nib.load(data_list.parent / json.loads(data_list.read_text())["testing"][0]["image"])
    [predicted] = (work / "ensemble_output").rglob("*.nii.gz")
    label = nib.load(predicted)
    assert label.shape == image.shape
    assert np.allclose(label.affine, image.affine, atol=1e-4)
    assert set(np.unique(np.asanyarray(label.dataobj))) <= set(range(5))
    assert not list(elsewhere.iterdir())
    assert not list(work.rglob("*.pkl"))
    assert len(list((work / "committee_data" / "cases").iterdir())) == 4  # once for both folds


def test_the_plan_is_that_of_prepare_key_by_key(work: Path, data_list: Path, tmp_path: Path) -> None:
    train_only = json.loads(data_list.read_text())
    names = {1: "label_1", 2: "label_2", 3: "label_3", 4: "label_4"}
    plan = yaml.safe_load(prepare(data_list, tmp_path, labels=names, channel_names=["CT"]).read_text())
    state = json.loads((work / "committee_1" / "algo_object.json").read_text())["_state_"]
    filled = state["fill_records"]["overlay.yaml"]
    assert len(train_only["training"]) == 4
    assert filled.keys() - plan.keys() == {"data_list", "fold"}
    assert plan.keys() - filled.keys() == set()
    for key in plan.keys() - PLACES:
        assert filled[key] == plan[key], key
    assert (filled["fold"], filled["data_list"]) == (1, "../task list.json")


def test_what_was_asked_of_the_training_is_in_all_configurations(work: Path) -> None:
    training, inference = config(work / "committee_0"), config(work / "committee_0", "inference.yaml")
    assert (training["max_epochs"], training["batch_size"], training["val_interval"]) == (2, 4, 2)
    assert training["lr_scheduler"]["_target_"].endswith("SequentialLR")
    assert inference["member"] == training["member"] == TINY_TRAINING["member"]
    assert inference["patch_size"] == [48, 48]
    assert "track" not in inference


def test_folds_validate_on_their_own_part(work: Path, data_list: Path) -> None:
    listed = json.loads(data_list.read_text())["training"]
    for fold in (0, 1):
        history_of = json.loads((work / f"committee_{fold}" / "output" / "history.json").read_text())
        assert [row["epoch"] for row in history_of] == [1, 2]
        parser = ConfigParser(config(work / f"committee_{fold}"))
        parser["bundle_root"] = str(work / f"committee_{fold}")
        names = {Path(case["image"]).name for case in parser.get_parsed_content("validate#dataset").data}
        assert names == {Path(entry["image"]).name for entry in listed if entry["fold"] == fold}


def test_a_trained_fold_copied_away_alone_is_a_whole_bundle(
    work: Path, data_list: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = tmp_path / "a fold alone"
    shutil.copytree(work / "committee_0", fold)
    schema = {"type": "object", "required": list(REQUIRED_METADATA)}
    (tmp_path / "meta_schema_20240725.json").write_text(json.dumps(schema))
    metadata = str(fold / "configs" / "metadata.json")
    verify_metadata(meta_file=metadata, filepath=str(tmp_path / "meta_schema_20240725.json"))
    monkeypatch.syspath_prepend(str(fold))
    inference = str(fold / "configs" / "inference.yaml")
    verify_net_in_out("network_def", meta_file=metadata, config_file=inference, device="cpu")
    for kind, names in (("train", ["train"]), ("inference", ["inference"]), ("evaluation", ["inference", "evaluate"])):
        workflow = ConfigWorkflow([str(fold / "configs" / f"{name}.yaml") for name in names], workflow_type=kind)
        workflow.initialize()
        assert workflow.check_properties() == [], kind

    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", inference]
    command += ["--dataset_dir", str(data_list.parent / "imagesTr"), "--output_dir", str(tmp_path / "labels")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "labels").iterdir())) == 5


def test_probabilities_are_on_the_images_grid_and_their_argmax_is_the_label_map(work: Path, data_list: Path) -> None:
    algo = history(work)["committee_0"]["algo_instance"]
    entry = json.loads(data_list.read_text())["testing"][0]
    file = str(data_list.parent / entry["image"])
    [found] = algo.predict([file])
    image = nib.load(file)
    assert found.dtype == torch.float32
    assert found.shape == (5, *image.shape)
    assert np.allclose(found.affine, image.affine)
    assert found.meta["filename_or_obj"] == file
    assert torch.allclose(found.sum(dim=0), torch.ones(image.shape), atol=1e-5)
    predictor = algo.get_inferer().predictor
    assert torch.equal(found.argmax(dim=0), predictor.predict(file)[0].long())
    [again] = algo.predict([{"image": [file]}], {"rank": 0, "image_save_func": {"_target_": "SaveImage"}})
    assert torch.equal(found, again)
    assert algo.get_inferer().predictor is predictor  # kept between files, whatever AutoRunner hands over
    [first] = algo.predict([file], {"ensemble_members": [0]})
    assert not torch.equal(first, found)
    assert copy.deepcopy(algo).get_score() == algo.get_score()


def test_a_work_folder_may_be_moved(work: Path, data_list: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved elsewhere"
    shutil.copytree(work, moved)
    algo = history(moved)["committee_1"]["algo_instance"]
    assert Path(algo.get_output_path()) == moved / "committee_1"
    parameters = {**TINY_TRAINING, "num_epochs": 1, "num_epochs_per_validation": 1, "iterations_per_epoch": 1}
    before = sorted(moved.glob("committee_data/cases/*/*"))
    assert algo.train(parameters).returncode == 0
    assert sorted(moved.glob("committee_data/cases/*/*")) == before  # found prepared
    assert len(json.loads((moved / "committee_1" / "output" / "history.json").read_text())) == 1
    assert isinstance(algo.get_score(), float)


def test_the_score_is_that_of_the_last_weights(work: Path, tmp_path: Path) -> None:
    fold = tmp_path / "committee_0"
    shutil.copytree(work / "committee_0", fold)
    algo, _ = algo_from_json(str(fold / "algo_object.json"))
    rows = [{"epoch": 1, "validation/dsc_mean": 0.9}, {"epoch": 2, "validation/dsc_mean": 0.7}]
    (fold / "output" / "history.json").write_text(json.dumps(rows))
    assert algo.get_score() == 0.7
    (fold / "models" / "model.pt").unlink()  # a training that was interrupted
    with pytest.raises(BadInput, match="isn't trained to the end"):
        algo.get_score()


def test_autorunner_on_two_mr_channels_and_three_labels_with_the_best_n(elsewhere: Path, tmp_path: Path) -> None:
    data_list, folder = mr_list(tmp_path / "mr"), tmp_path / "work"
    names = ["gland", "lesion", "vessel"]
    member = {**TINY_TRAINING["member"], "features": [8, 16, 16]}
    small = {"overlays": ["variants/small.yaml"], "spacing_mm": [1.0, 1.0], "member": member, "augmentation": []}
    size = {"patch_size": [40, 36], "crop_size": [40, 36], "precision": "float32", "track": False}
    train = {
        **small,
        **size,
        "num_epochs": 1,
        "num_epochs_per_validation": 1,
        "iterations_per_epoch": 40,
        "learning_rate": 0.01,
    }
    made = runner(folder, data_list, train=train, modality="mri", class_names=names)
    made.set_ensemble_method("AlgoEnsembleBestN", n_best=1)
    made.run()
    assert config(folder / "committee_0")["labels"] == {"1": "gland", "2": "lesion", "5": "vessel"}
    [predicted] = (folder / "ensemble_output").rglob("*.nii.gz")
    label, reference = nib.load(predicted), nib.load(tmp_path / "mr" / "label_4.nii.gz")
    assert np.allclose(label.affine, reference.affine)
    found, true = np.asanyarray(label.dataobj), np.asanyarray(reference.dataobj)
    assert set(np.unique(found)) == {0, 1, 2, 5}  # label ids, not numbers of classes
    assert (found == true).mean() > 0.9

    builder = AlgoEnsembleBuilder(import_bundle_algo_history(str(folder)), str(folder / "input.yaml"))
    builder.set_ensemble_method(AlgoEnsembleBestN(n_best=2))
    [vote] = builder.get_ensemble()({"mode": "vote"})
    assert vote.shape == (1, *reference.shape)


@pytest.mark.parametrize(("name", "kind"), [("committee", "CommitteeAlgo"), ("mine", "MineAlgo")])
def test_a_changed_copy_of_the_bundle_is_a_template_of_its_own(
    process_state: None, data_list: Path, tmp_path: Path, name: str, kind: str
) -> None:
    copied, work = tmp_path / "templates" / name, tmp_path / "work"
    copy_template(BUNDLE, copied)
    train = copied / "configs" / "train.yaml"
    train.write_text(train.read_text().replace("seed: 0\n", "seed: 5  # mine\n"))
    if name == "mine":
        with (copied / "scripts" / "algo.py").open("a") as script:
            script.write('\n\nclass MineAlgo(CommitteeAlgo):\n    """Mine."""\n')
    source, stats = input_files(work, data_list, cases=4, labels=range(5))
    gen = BundleGen(str(work), None, str(copied.parent), str(stats), str(source))
    gen.generate(str(work), num_fold=1)
    gen.generate(str(work), num_fold=1)  # an earlier fold of its own gives way
    fold = work / f"{name}_0"
    assert "seed: 5  # mine" in (fold / "configs" / "train.yaml").read_text()
    [one] = import_bundle_algo_history(str(work), only_trained=False)
    assert type(one["algo_instance"]).__module__ == f"{name}.scripts.algo"
    assert type(one["algo_instance"]).__name__ == kind
    assert one["algo_instance"].template() == work / "algorithm_templates" / name


def test_a_foreign_working_directory_is_no_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_template(BUNDLE, tmp_path / "committee")
    monkeypatch.chdir(tmp_path)
    algo = CommitteeAlgo()
    algo.name = "committee"
    assert algo.template() == BUNDLE


def test_state_is_json_and_comes_back(untrained: CommitteeAlgo) -> None:
    algo_to_json(untrained, template_path=untrained.template_path)
    state = json.loads(Path(untrained.output_path, "algo_object.json").read_text())
    assert state["_target_"] == "cyclic_committee.scripts.algo.CommitteeAlgo"
    again, _ = algo_from_json(str(Path(untrained.output_path, "algo_object.json")))
    assert again.state_dict() == untrained.state_dict()


def test_a_fold_of_ours_is_replaced_and_nothing_else(untrained: CommitteeAlgo, tmp_path: Path) -> None:
    fold = Path(untrained.output_path)
    (fold / "models" / "model.pt").touch()
    untrained.export_to_disk(str(fold.parent), fold.name, fold=1)
    assert not (fold / "models" / "model.pt").exists()
    assert config(fold)["fold"] == 1
    (fold / "algo_object.json").unlink()
    with pytest.raises(BadInput, match="holds something else than a fold"):
        untrained.export_to_disk(str(fold.parent), fold.name, fold=0)
    assert config(fold)["fold"] == 1
    (fold.parent / "empty").mkdir()
    untrained.export_to_disk(str(fold.parent), "empty", fold=0)
    assert not list(fold.parent.glob(".unfinished*"))


def test_a_fold_that_cant_be_made_leaves_nothing(tmp_path: Path, data_list: Path) -> None:
    with pytest.raises(BadInput, match="leraning_rate: no such key"):
        made_fold(tmp_path / "work", data_list, leraning_rate=1)
    assert not list((tmp_path / "work").glob("*committee_0*"))


def test_generators_keep_the_overlay_of_the_present_folder(untrained: CommitteeAlgo, tmp_path: Path) -> None:
    present = config(untrained.output_path)
    untrained.export_to_disk(str(tmp_path / "far" / "away"), "committee_0_b", fill_with_datastats=False, num_epochs=3)
    kept = config(untrained.output_path)
    changed = {key for key in present if kept.get(key) != present[key]}
    assert changed == {"max_epochs", "data_list", "cache_dir"}
    assert Path(untrained.output_path, kept["data_list"]).is_file()
    untrained.export_to_disk(
        str(tmp_path / "far" / "away"), "committee_0_c", fill_with_datastats=False, bundle_root="/x"
    )
    assert config(untrained.output_path) == kept


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"leraning_rate": 0.1}, "leraning_rate: no such key.*learning_rate"),
        ({"member#fetures#x": [1]}, "member#fetures#x: no such key"),
        ({"rule": "Best"}, "rule: there is no Best. Choose one of EverySample"),
        ({"overlays": ["none.yaml"]}, r"none\.yaml: no such configuration file"),
    ],
)
def test_what_cannot_be_trained_is_told_before_anything_is_run(
    untrained: CommitteeAlgo, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(algo_module.subprocess, "run", lambda *a, **k: pytest.fail("was run"))
    before = Path(untrained.output_path, "configs", "train.yaml").read_text()
    with pytest.raises(BadInput, match=message) as caught:
        untrained.train(parameters)
    assert "\n" not in str(caught.value)
    assert Path(untrained.output_path, "configs", "train.yaml").read_text() == before


def test_a_failed_training_says_what_was_run(untrained: CommitteeAlgo, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match=r"committee_0: its training ended with code 1.*monai\.bundle run training"):
        untrained.train({**TINY_TRAINING, "fold": 7})
    assert "fold must be 0, 1" in capfd.readouterr().err


def test_what_is_asked_for_stays_for_the_next_training_only_in_the_fold(
    untrained: CommitteeAlgo, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(algo_module.subprocess, "run", lambda *a, **k: done)
    planned = config(untrained.output_path)
    untrained.train({"overlays": ["variants/small.yaml"], "num_epochs": 3, "patch_size": [64, 64]})
    assert config(untrained.output_path)["optimizer"]["_target_"].endswith("AdamW")
    assert config(untrained.output_path)["max_epochs"] == 3
    assert config(untrained.output_path, "inference.yaml")["member"]["features"] == [16, 32, 64, 96, 96]
    untrained.train({"num_images_per_batch": 2})
    assert config(untrained.output_path) == {**planned, "batch_size": 2}


@pytest.mark.parametrize(
    ("labels", "given", "reason"),
    [
        ([0, 1], {"sigmoid": True}, "sigmoid: overlapping"),
        ([0, 1, 2], {"class_names": [{"name": "whole", "index": [1, 2]}]}, "whole is a region"),
        ([0, 300], {}, "the label 300 isn't supported"),
        ([0, 1.5], {}, "the label 1.5 isn't supported"),
        ([0], {}, "no case shows any label"),
    ],
)
def test_unsupported_data_are_skipped_with_a_reason(
    tmp_path: Path, labels: list[float], given: dict[str, Any], reason: str
) -> None:
    source, stats = input_files(tmp_path, tmp_path / "task.json", cases=1, labels=labels, **given)
    algo = CommitteeAlgo()
    algo.set_data_source(str(source))
    algo.set_data_stats(str(stats))
    skipped, why = algo.pre_check_skip_algo()
    assert skipped
    assert reason in why
    assert "\n" not in why


def test_supported_data_are_not_skipped(untrained: CommitteeAlgo) -> None:
    assert untrained.pre_check_skip_algo() == (False, "")
