from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import BUNDLE, TINY

from cyclic_committee.scripts.bundles.fold_bundle import copy_template, write_fold
from cyclic_committee.scripts.bundles.server_folder import make_work_folder, served_bundle
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.runtime.errors import BadInput

OVERLAY = {key: value for key, value in TINY.items() if key != "device"}


@pytest.fixture
def bundle(tmp_path: Path, model: Path) -> Path:
    """A bundle of tiny networks, with weights."""
    folder = tmp_path / "bundle"
    copy_template(BUNDLE, folder)
    write_fold(folder, yaml.safe_dump(OVERLAY))
    shutil.copy(model, folder / "models" / "model.pt")
    return folder


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(OVERLAY))
    return path


def test_it_holds_a_whole_bundle_and_the_released_weights(process_state: None, tmp_path: Path, bundle: Path) -> None:
    work, weights = tmp_path / "work", (bundle / "models" / "model.pt").read_bytes()
    make_work_folder(work, bundle=bundle)
    assert (served_bundle(work) / "models" / "model.pt").read_bytes() == weights
    assert (work / "released" / "model.pt").read_bytes() == weights
    shutil.rmtree(bundle)
    said = Predictor.from_config(bundle=served_bundle(work), device="cpu").predict(torch.zeros(1, 48, 48, 2))
    assert said.shape == (1, 48, 48, 2)


def test_overlays_are_merged_in_for_those_who_read_one_file(
    process_state: None, tmp_path: Path, overlay: Path, model: Path
) -> None:
    make_work_folder(tmp_path / "work", overlays=[str(overlay)], ckpt_path=model)
    for name in ("inference.yaml", "train.yaml"):
        config = yaml.safe_load((served_bundle(tmp_path / "work") / "configs" / name).read_text())
        assert config["member"]["features"] == OVERLAY["member#features"]


def test_an_overlay_goes_over_what_a_fold_has_already(process_state: None, tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "mirror.yaml").write_text("mirror: true")
    make_work_folder(tmp_path / "work", bundle=bundle, overlays=[str(tmp_path / "mirror.yaml")])
    config = yaml.safe_load((served_bundle(tmp_path / "work") / "configs" / "inference.yaml").read_text())
    assert config["mirror"] is True
    assert config["member"]["features"] == OVERLAY["member#features"]


def test_another_start_keeps_the_weights_that_were_trained(process_state: None, tmp_path: Path, bundle: Path) -> None:
    make_work_folder(tmp_path / "work", bundle=bundle)
    weights = served_bundle(tmp_path / "work") / "models" / "model.pt"
    weights.write_bytes(b"trained")
    make_work_folder(tmp_path / "work", bundle=bundle)
    assert weights.read_bytes() == b"trained"


def test_a_start_that_was_interrupted_is_begun_anew(process_state: None, tmp_path: Path, bundle: Path) -> None:
    make_work_folder(tmp_path / "work", bundle=bundle)
    (tmp_path / "work" / "source.json").unlink()
    shutil.rmtree(served_bundle(tmp_path / "work") / "configs")
    make_work_folder(tmp_path / "work", bundle=bundle)
    assert (served_bundle(tmp_path / "work") / "configs" / "train.yaml").is_file()


def test_another_bundle_wants_another_folder(process_state: None, tmp_path: Path, bundle: Path, overlay: Path) -> None:
    make_work_folder(tmp_path / "work", bundle=bundle)
    shutil.copytree(bundle, tmp_path / "other")
    with pytest.raises(BadInput, match=r"work: was made with the bundle .*bundle, not .*other\. Choose another --work"):
        make_work_folder(tmp_path / "work", bundle=tmp_path / "other")
    with pytest.raises(BadInput, match="was made with the overlays"):
        make_work_folder(tmp_path / "work", bundle=bundle, overlays=[str(overlay)])


@pytest.mark.parametrize(
    ("what", "message"),
    [("configs", r"holds no configs/inference\.yaml"), ("models", r"model\.pt: no such weights\. Train first")],
)
def test_what_is_missing_is_named(tmp_path: Path, bundle: Path, what: str, message: str) -> None:
    shutil.rmtree(bundle / what)
    with pytest.raises(BadInput, match=message):
        make_work_folder(tmp_path / "work", bundle=bundle)


def test_weights_of_other_networks_are_refused(process_state: None, tmp_path: Path, model: Path) -> None:
    with pytest.raises(BadInput, match="doesn't fit"):
        make_work_folder(tmp_path / "work", ckpt_path=model)
    assert not served_bundle(tmp_path / "work").exists()
