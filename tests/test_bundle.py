"""What the platforms demand of the bundle, and that it runs from anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import BUNDLE, CONFIGS, TINY, Workflow
from monai.bundle import ConfigParser, ckpt_export, verify_metadata, verify_net_in_out

VARIANTS = sorted(path.stem for path in (CONFIGS / "variants").glob("*.yaml"))
TINY_VALUES = {key: value for key, value in TINY.items() if key not in ("crop_size", "device")}
# the part of MONAI's schema (meta_schema_20240725.json) that a bundle's metadata must have
REQUIRED_METADATA = {
    "version": str,
    "changelog": dict,
    "monai_version": str,
    "pytorch_version": str,
    "numpy_version": str,
    "required_packages_version": dict,
    "task": str,
    "description": str,
    "authors": str,
    "copyright": str,
    "network_data_format": dict,
}
TENSOR_KEYS = {
    "type",
    "format",
    "modality",
    "num_channels",
    "spatial_shape",
    "dtype",
    "value_range",
    "is_patch_data",
    "channel_def",
}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / name).read_text())


@pytest.mark.parametrize(
    ("kind", "configs"),
    [
        ("train", ["train.yaml"]),
        ("inference", ["inference.yaml"]),
        ("evaluation", ["inference.yaml", "evaluate.yaml"]),
        ("train", ["train.yaml", "variants/small.yaml"]),
    ],
)
def test_a_workflow_has_all_properties_even_without_data(
    workflow: Workflow, tmp_path: Path, kind: str, configs: list[str]
) -> None:
    values = {**TINY_VALUES, "dataset_dir": str(tmp_path / "none"), "output_dir": str(tmp_path / "output")}
    assert workflow(kind, *configs, **values).check_properties() == []
    assert not (tmp_path / "output").exists()  # looking at a bundle writes nothing


def test_metadata_has_what_monai_requires() -> None:
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    for key, kind in REQUIRED_METADATA.items():
        assert isinstance(metadata[key], kind), key
    assert metadata["schema"].endswith("meta_schema_20240725.json")
    assert metadata["version"] in metadata["changelog"]
    formats = metadata["network_data_format"]
    assert TENSOR_KEYS - {"modality"} <= set(formats["outputs"]["pred"])
    assert set(formats["inputs"]["image"]) == TENSOR_KEYS
    labels = {key: name for key, name in formats["outputs"]["pred"]["channel_def"].items() if key != "0"}
    assert labels == load("train.yaml")["labels"] == load("inference.yaml")["labels"]
    version = re.search(r'__version__ = "(.*)"', (BUNDLE / "__init__.py").read_text())
    assert version is not None
    assert metadata["version"] == version[1]


def test_metadata_passes_monais_verification_offline(tmp_path: Path) -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "required": list(REQUIRED_METADATA),
        "properties": {key: {"type": {str: "string", dict: "object"}[kind]} for key, kind in REQUIRED_METADATA.items()},
    }
    path = tmp_path / "meta_schema_20240725.json"  # MONAI downloads it unless it lies there
    path.write_text(json.dumps(schema))
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(path))


@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_the_network_takes_and_gives_what_the_metadata_say(
    monkeypatch: pytest.MonkeyPatch, variant: str | None
) -> None:
    monkeypatch.syspath_prepend(str(BUNDLE))
    overlay = [str(CONFIGS / "variants" / f"{variant}.yaml")] if variant else []
    small = {"member#features": [4, 8, 16]} if variant not in ("segresnet", "mixed") else {}
    verify_net_in_out(
        "network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=[str(CONFIGS / "inference.yaml"), *overlay],
        device="cpu",
        **small,
    )


def test_the_committee_is_exported_with_its_weights(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train(tmp_path)
    config = [str(CONFIGS / "inference.yaml")]
    values = {"member#features": TINY["member#features"]}
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=config,
        **values,
    )
    parser = ConfigParser()
    parser.read_config(config)
    parser.update(values)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    image = torch.randn(2, 1, 64, 64)
    assert torch.allclose(torch.jit.load(tmp_path / "model.ts")(image), network(image), atol=1e-6)


SHARED = [
    *("bundle_root", "device", "labels", "channels", "classes", "orientation", "spacing_mm", "normalise", "resampling"),
    *(
        "layout",
        "data_root",
        "patch_size",
        "precision",
        "member",
        "network_def",
        "ensemble_members",
        "is_not_rank_zero",
    ),
]


@pytest.mark.parametrize("key", SHARED)
def test_training_and_inference_agree(key: str) -> None:
    assert load("train.yaml")[key] == load("inference.yaml")[key]


def test_training_and_inference_normalise_alike() -> None:
    training = load("train.yaml")["validate"]
    reading = [
        {**t, "keys": "image"} for t in training["preprocessing"]["transforms"] if "LabelIdsd" not in t["_target_"]
    ]
    assert load("inference.yaml")["preprocessing"]["transforms"] == reading
    inferer, validating = load("inference.yaml")["inferer"], training["inferer"]
    assert {key: value for key, value in inferer.items() if key != "mirror"} == validating


def test_the_defaults_are_the_papers() -> None:
    config = load("train.yaml")
    expected = {
        "batch_size": 8,
        "patch_size": [512, 512],
        "learning_rate": 0.01,
        "momentum": 0.99,
        "weight_decay": 3e-5,
        "max_epochs": 1000,
        "iterations_per_epoch": 250,
        "gradient_clip": 12,
        "select": {"_target_": "scripts.training.selection.LossDifference", "keep": 0.75},
    }
    assert {key: config[key] for key in expected} == expected
    assert config["lr_scheduler"]["power"] == 0.9
    assert config["optimizer"]["nesterov"] is True


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_overlays_training_and_inference_with_known_keys(variant: str) -> None:
    own = set(load(f"variants/{variant}.yaml")) - set(load("train.yaml"))
    text = (CONFIGS / "variants" / f"{variant}.yaml").read_text()
    assert [key for key in own if f"@{key}" not in text] == []  # a variant may have keys of its own, if it uses them


def test_a_bundle_has_at_least_the_variants_that_are_promised() -> None:
    assert set(VARIANTS) >= {"small", "small_loss", "every_sample", "random_subset", "warmup", "segresnet", "mixed"}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_keep_the_traps_of_the_language_away(path: Path) -> None:
    text = path.read_text()
    expressions = re.findall(r"[\"'](\$[^\n]*?)[\"']\s*(?:#.*)?$", text, flags=re.MULTILINE)
    for expression in expressions:
        assert "import" not in expression
        assert len(expression) < 80, expression
    assert "<<:" not in text


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_a_copied_bundle_trains_and_infers_from_a_foreign_folder(phantoms: Path, tmp_path: Path) -> None:
    copied = tmp_path / "a copy"
    shutil.copytree(BUNDLE, copied, ignore=shutil.ignore_patterns("__pycache__", "*.pt"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    tiny = [f"--{key}={value}" for key, value in TINY_VALUES.items() if key != "crop_size"]
    few = [
        "--max_epochs=1",
        "--iterations_per_epoch=1",
        "--batch_size=2",
        "--num_workers=0",
        "--crop_size=[48, 48]",
        "--fold=none",
        "--fold=none",
    ]
    config, data = str(copied / "configs" / "train.yaml"), str(phantoms)
    done = run(
        "run", "training", "--config_file", config, "--dataset_dir", data, *tiny, *few, "--fold=none", cwd=elsewhere
    )
    assert done.returncode == 0, done.stderr
    assert (copied / "models" / "model.pt").is_file()
    assert (copied / "output" / "mlflow" / "mlflow.db").is_file()
    assert re.search(r"^epoch 1/1  loss \d\.\d+ \d\.\d+ \d\.\d+  kept 100 %", done.stdout, flags=re.MULTILINE)
    assert "Traceback" not in done.stderr

    image = next((phantoms / "TrainingImg").iterdir())
    config = str(copied / "configs" / "inference.yaml")
    where = ["--dataset_dir", str(image), "--output_dir", "labels"]
    done = run("run", "--config_file", config, *where, *tiny, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    label = nib.load(elsewhere / "labels" / image.name)
    assert label.shape == nib.load(image).shape
    assert label.get_data_dtype() == np.uint8
    assert list(elsewhere.iterdir()) == [elsewhere / "labels"]


def test_bad_input_on_the_command_line_ends_in_one_line_and_exit_code_1(tmp_path: Path) -> None:
    config = str(CONFIGS / "train.yaml")
    done = run(
        "run", "training", "--config_file", config, "--leraning_rate", "0.1", cwd=tmp_path, PYTHONWARNINGS="ignore"
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: leraning_rate: no such key, nothing in the configuration uses it. Did you mean learning_rate?\n"
    )
