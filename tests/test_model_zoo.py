"""Would MONAI's Model Zoo accept the bundle?

What its continuous integration checks (github.com/Project-MONAI/model-zoo: CONTRIBUTING.md, ci/verify_bundle.py,
ci/get_bundle_requirements.py, ci/unit_tests), and where it is tested here:

- files, large_files.yml, keys, the schema's required part, package versions, no personal paths: this file
- a unit test for training, evaluation and inference, and its _dist twin for several processes: this file
- check_properties of every configuration: test_bundle.py; with the overlays for many GPUs: this file
- version and changelog, verify_metadata, verify_net_in_out, ckpt_export: test_bundle.py
- LICENSE: test_package.py; what several processes compute: training/test_distributed.py
- TorchScript and TensorRT: inference/test_export.py
- models/model.pt, and large_files.yml once weights are released: bundles/test_release.py
- mypy, with the zoo's settings: test_package.py

What can't be tested here: that models/model.pt is there, which the zoo prefers, since no weights are released; GPUs;
that the zoo doesn't have this version yet.
"""

from __future__ import annotations

import configparser
import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import BUNDLE, CONFIGS, ROOT, TINY, Workflow
from monai.bundle import ConfigParser, ConfigWorkflow, download_large_files
from packaging.requirements import Requirement
from test_bundle import TENSOR_KEYS

from cyclic_committee.scripts.runtime.bundle_paths import copy_bundle
from cyclic_committee.scripts.runtime.errors import find_bad_input

NAME = "models/cyclic_committee"  # the bundle's place in the zoo, whose tests run beside `models`
LIMIT_BYTES = 25 * 10**6  # of a file in the zoo
HASH_TYPES = ("md5", "sha1", "sha256", "sha512")
STRING, OBJECT = {"type": "string"}, {"type": "object"}
TENSOR = {
    "type": "object",
    "properties": {
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": OBJECT,
        **dict.fromkeys(["type", "format", "dtype"], STRING),
    },
    "required": sorted(TENSOR_KEYS - {"modality", "is_patch_data", "channel_def"}),
}
OPTIONAL_TEXTS = ["data_source", "data_type", "image_classes", "label_classes", "pred_classes", "intended_use"]
TEXTS = ["schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors"]
SCHEMA: dict[str, Any] = {  # what meta_schema_20240725.json demands
    "type": "object",
    "properties": {
        "changelog": {"type": "object", "additionalProperties": STRING},
        "required_packages_version": {"type": "object", "additionalProperties": STRING},
        "eval_metrics": OBJECT,
        "supported_apps": OBJECT,
        "references": {"type": "array", "items": STRING},
        "network_data_format": {
            "type": "object",
            "properties": {key: {"type": "object", "additionalProperties": TENSOR} for key in ("inputs", "outputs")},
            "required": ["inputs", "outputs"],
        },
        **dict.fromkeys([*TEXTS, *OPTIONAL_TEXTS, "copyright"], STRING),
    },
    "required": [*TEXTS, "copyright", "required_packages_version", "network_data_format"],
}


def large_file_problems(bundle: Path) -> list[str]:
    """Return what is wrong with a bundle's large_files.yml, and which large files it lacks."""
    problems = []
    entries = yaml.safe_load((bundle / "large_files.yml").read_text())["large_files"]
    for entry in entries:
        problems += [f"no {key}" for key in ("path", "url", "hash_val", "hash_type") if not entry.get(key)]
        if problems:
            continue
        path = bundle / entry["path"]
        if not path.resolve().is_relative_to(bundle.resolve()):
            problems.append("outside")
        elif entry["hash_type"] not in HASH_TYPES:
            problems.append("unknown hash_type")
        elif path.is_file() and hashlib.new(entry["hash_type"], path.read_bytes()).hexdigest() != entry["hash_val"]:
            problems.append("another file")
    listed = {entry.get("path") for entry in entries}
    files = {str(path.relative_to(bundle)): path.stat().st_size for path in bundle.rglob("*") if path.is_file()}
    return problems + [
        f"{name} not listed" for name, size in files.items() if size > LIMIT_BYTES and name not in listed
    ]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the zoo's clone is, with the bundle in it; without weights that someone trained here."""
    folder = tmp_path_factory.mktemp("zoo")
    copy_bundle(folder / NAME)
    return folder


def test_the_bundle_has_the_zoos_files(zoo: Path) -> None:
    configs = ["metadata.json", "logging.conf", "train.yaml", "evaluate.yaml"]
    configs += ["inference.yaml", "multi_gpu_train.yaml", "multi_gpu_evaluate.yaml"]
    others = ["LICENSE", "large_files.yml", "docs/README.md", "docs/data_license.txt"]
    for name in [*others, *(f"configs/{config}" for config in configs)]:
        assert (zoo / NAME / name).stat().st_size > 0, name
    assert len(list(CONFIGS.glob("inference.*"))) == 1  # of several the zoo and MONAI Label take different ones


def test_every_large_file_of_the_bundle_is_listed(zoo: Path) -> None:
    assert large_file_problems(zoo / NAME) == []


WEIGHTS = b"weights"
ENTRY = {
    "path": "models/model.pt",
    "url": "https://example.org/model.pt",
    "hash_val": hashlib.sha256(WEIGHTS).hexdigest(),
    "hash_type": "sha256",
}


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        ({}, []),
        ({"url": ""}, ["no url"]),
        ({"hash_val": ""}, ["no hash_val"]),
        ({"hash_type": "crc32"}, ["unknown hash_type"]),
        ({"hash_type": "md5"}, ["another file"]),
        ({"path": "../model.pt"}, ["outside"]),
    ],
)
def test_an_entry_for_a_large_file_is_complete(tmp_path: Path, difference: dict[str, str], expected: list[str]) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_bytes(WEIGHTS)
    (tmp_path / "large_files.yml").write_text(yaml.safe_dump({"large_files": [{**ENTRY, **difference}]}))
    assert large_file_problems(tmp_path) == expected


@pytest.mark.parametrize("entries", [None, [], [ENTRY]], ids=["the bundle's", "none", "one"])
def test_monai_fetches_what_is_listed_and_nothing_else(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: list[dict[str, str]] | None
) -> None:
    text = yaml.safe_dump({"large_files": entries})
    if entries is None:
        text = (zoo / NAME / "large_files.yml").read_text()
        entries = yaml.safe_load(text)["large_files"]
    (tmp_path / "large_files.yml").write_text(text)
    fetched: list[dict[str, str]] = []
    monkeypatch.setattr("monai.bundle.scripts.download_url", lambda **entry: fetched.append(entry))
    download_large_files(bundle_path=str(tmp_path))
    assert [entry["url"] for entry in fetched] == [entry["url"] for entry in entries]


def test_a_large_file_without_an_entry_is_named(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "large_files.yml").write_text((zoo / NAME / "large_files.yml").read_text())
    with (tmp_path / "models" / "model.pt").open("wb") as file:
        file.truncate(LIMIT_BYTES + 1)
    assert large_file_problems(tmp_path) == ["models/model.pt not listed"]


def test_the_package_holds_all_files_of_the_bundle(zoo: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["cyclic_committee"].split()
    files = [path.relative_to(zoo / NAME) for path in (zoo / NAME).rglob("*") if path.is_file()]
    for file in files:
        assert file.suffix == ".py" or any(fnmatch.fnmatch(str(file), pattern) for pattern in patterns), file


def test_the_metadata_have_what_the_schema_demands() -> None:
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    jsonschema.validate(metadata, SCHEMA)
    for key in SCHEMA["required"]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({name: value for name, value in metadata.items() if name != key}, SCHEMA)


def test_the_metadatas_versions_are_those_that_the_package_asks_for() -> None:
    """The zoo installs exactly these."""
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    own = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    versions = {key.lower(): value for key, value in metadata["required_packages_version"].items()}
    versions |= {name: metadata[key] for name, key in own.items()}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = [Requirement(line) for line in setup["options"]["install_requires"].split("\n") if line]
    assert {requirement.name for requirement in required} == {*versions, "jsonschema"}  # which the zoo itself brings
    for requirement in required:
        assert requirement.name == "jsonschema" or versions[requirement.name] in requirement.specifier, requirement


def strings(config: Any) -> Iterator[str]:
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            yield from strings(value)
    elif isinstance(config, str):
        yield config


FILES = [*sorted([*CONFIGS.rglob("*.yaml"), *CONFIGS.rglob("*.json")]), BUNDLE / "large_files.yml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_has_a_key_twice_or_a_place_of_ours(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    config = ConfigParser.load_config_file(path)
    assert not [value for value in strings(config) if value.startswith(("/", "~", "file:"))]


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ("inference.yaml", ["bundle_root", "device", "network_def", "inferer", "output_dir"]),
        ("train.yaml", ["bundle_root", "device", "dataset_dir", "output_dir", "network_def", "val_interval"]),
        ("train.yaml", [f"train#{key}" for key in ("trainer#max_epochs", "dataset#data", "handlers", "inferer")]),
        ("train.yaml", [f"validate#{key}" for key in ("evaluator", "handlers", "dataset#data", "inferer")]),
        ("train.yaml", [f"validate#{key}" for key in ("preprocessing", "postprocessing", "key_metric")]),
    ],
)
def test_configurations_have_the_keys_that_the_zoo_asks_for(config: str, keys: list[str]) -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / config))
    assert [key for key in keys if key not in parser] == []


def test_the_interval_of_validation_is_val_interval() -> None:
    handlers = yaml.safe_load((CONFIGS / "train.yaml").read_text())["train"]["handlers"]
    assert [handler["interval"] for handler in handlers if "Validat" in handler["_target_"]] == ["@val_interval"]


ZOO_STYLE = {  # of the zoo's runtests.sh, pyproject.toml and setup.cfg; its settings of mypy are in ours
    "black": ["--check", "--skip-magic-trailing-comma", "--line-length", "120", "--target-version", "py39"],
    "isort": ["--check", "--profile", "black", "--line-length", "120"],
    "flake8": [
        "--isolated",
        "--max-line-length=120",
        "--select=B,C,E,F,N,P,T4,W,B9",
        "--ignore=E203,E501,E741,W503,W504,C408,N812,B023",
    ],
}


@pytest.mark.parametrize("tool", ZOO_STYLE)
def test_the_zoos_formatters_and_linters_find_nothing(tool: str) -> None:
    command = [sys.executable, "-m", tool, *ZOO_STYLE[tool], str(BUNDLE / "scripts"), str(BUNDLE / "__init__.py")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


HEADINGS = ["Authors", "Tags", "Model Description", "Data", "Preprocessing", "Performance"]
HEADINGS += ["System Configuration", "Limitations", "References"]


def test_the_documentation_has_the_templates_headings_in_its_order() -> None:
    """Of the zoo's docs/readme_template.md, without those that only some bundles need."""
    blocks = re.sub(r"^```.*?^```", "", (BUNDLE / "docs" / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.*)$", blocks, flags=re.MULTILINE)
    template = [heading.lower() for heading in HEADINGS]
    assert [heading.lower() for heading in found if heading.lower() in template] == template


def test_the_documentation_tells_of_torchscript_and_tensorrt() -> None:
    """The zoo wants to know there whether a bundle supports them."""
    text = (BUNDLE / "docs" / "README.md").read_text()
    assert "TorchScript" in text
    assert "TensorRT" in text


def test_logging_goes_to_the_terminal_alone() -> None:
    conf = configparser.RawConfigParser()
    conf.read(CONFIGS / "logging.conf")
    names = conf["handlers"]["keys"].split(",")
    assert [conf[f"handler_{name}"]["class"] for name in names] == ["StreamHandler"]


# ---- the zoo's test_<bundle>.py

TRAINING = {
    "member#features": TINY["member#features"],
    "spacing_mm": TINY["spacing_mm"],
    "patch_size": TINY["patch_size"],
    "crop_size": TINY["crop_size"],
    "train#trainer#max_epochs": 1,
    "iterations_per_epoch": 2,
    "batch_size": 4,
    "train#dataloader#num_workers": 0,
    "train#dataloader#persistent_workers": False,
    "augmentation": [],
    "track": False,
    "val_interval": 1,
}
INFERENCE = {key: TRAINING[key] for key in ("member#features", "spacing_mm", "patch_size")}
Checked = Callable[..., None]


@pytest.fixture
def checked(zoo: Path, phantoms: Path, process_state: None, monkeypatch: pytest.MonkeyPatch) -> Checked:
    """Run a workflow as the zoo's unit tests do: from the zoo's folder, all properties checked, then finalized."""
    monkeypatch.syspath_prepend(str(BUNDLE))
    monkeypatch.chdir(zoo)

    def check(kind: str, *configs: str, **override: Any) -> None:
        made = ConfigWorkflow(
            workflow_type=kind,
            config_file=[f"{NAME}/configs/{config}" for config in configs],
            logging_file=f"{NAME}/configs/logging.conf",
            meta_file=f"{NAME}/configs/metadata.json",
            **{"bundle_root": NAME, "dataset_dir": str(phantoms), **override},
        )
        made.initialize()
        assert made.check_properties() == []
        made.run()
        made.finalize()

    return check


def test_the_bundle_trains_evaluates_and_infers_by_the_zoos_unit_test(
    checked: Checked, zoo: Path, phantoms: Path, tmp_path: Path
) -> None:
    checked("train", "train.yaml", **TRAINING)
    model = zoo / NAME / "models" / "model.pt"
    assert model.is_file()
    checked("eval", "inference.yaml", "evaluate.yaml", **INFERENCE)
    assert len((zoo / NAME / "evaluation" / "scores.csv").read_text().splitlines()) == 1 + 5 * 4

    elsewhere = model.replace(tmp_path / "weights.pt")
    image = min((phantoms / "TrainingImg").iterdir())
    places = {"dataset_dir": str(image), "output_dir": str(tmp_path / "labels"), "handlers#0#path": str(elsewhere)}
    checked("infer", "inference.yaml", **INFERENCE, **places)
    assert [path.name for path in (tmp_path / "labels").iterdir()] == [image.name]


@pytest.mark.parametrize("configs", [["inference.yaml"], ["inference.yaml", "evaluate.yaml"]])
def test_without_the_loader_of_weights_which_comes_first_nothing_is_inferred(
    checked: Checked, phantoms: Path, tmp_path: Path, configs: list[str]
) -> None:
    """By design: other bundles of the zoo infer with random weights here."""
    handlers = yaml.safe_load((CONFIGS / configs[-1]).read_text())["handlers"]
    assert ["LoadWeights" in handler["_target_"] for handler in handlers] == [True] + [False] * (len(handlers) - 1)
    override = {**INFERENCE, "handlers#0#_disabled_": True, "output_dir": str(tmp_path / "output")}
    if len(configs) == 1:
        override["dataset_dir"] = str(phantoms / "TrainingImg")
    with pytest.raises(RuntimeError) as caught:
        checked("infer", *configs, **override)
    message = str(find_bad_input(caught.value))
    assert message.startswith("The committee's weights were never loaded or trained: give a checkpoint")
    assert "\n" not in message
    assert not (tmp_path / "output").exists()


# ---- its twin, test_<bundle>_dist.py


@pytest.mark.parametrize(
    ("kind", "configs"),
    [
        ("train", ["train.yaml", "multi_gpu_train.yaml"]),
        ("infer", ["inference.yaml", "multi_gpu_evaluate.yaml"]),
        ("eval", ["inference.yaml", "evaluate.yaml", "multi_gpu_evaluate.yaml"]),
    ],
)
def test_a_workflow_for_many_gpus_has_all_properties(
    workflow: Workflow, phantoms: Path, tmp_path: Path, kind: str, configs: list[str]
) -> None:
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path / "output")}
    assert workflow(kind, *configs, **INFERENCE, **places).check_properties() == []
    assert not (tmp_path / "output").exists()


def run_exported(zoo: Path, *configs: str, **override: Any) -> str:
    """Run all of a configuration, in one JSON file beside the others, by its id `run`, from the zoo's folder."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in configs])
    parser.update({"bundle_root": NAME, **override})
    exported = f"{NAME}/configs/override.json"
    ConfigParser.export_config_file(parser.config, str(zoo / exported), indent=4)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", exported, "--meta_file", f"{NAME}/configs/metadata.json"]
    command += ["--logging_file", f"{NAME}/configs/logging.conf"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": NAME}
    try:
        done = subprocess.run(
            command, cwd=zoo, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
    finally:
        (zoo / exported).unlink()
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_train_and_evaluate_by_the_zoos_unit_test(zoo: Path, phantoms: Path, tmp_path: Path) -> None:
    model, places = str(tmp_path / "model.pt"), {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    training = {**TRAINING, "val_interval": 2, "model_path": model}
    told = run_exported(zoo, "train.yaml", "multi_gpu_train.yaml", **training, **places)
    assert told.count("epoch 1/1") == 1  # one process tells
    evaluating = ["inference.yaml", "evaluate.yaml", "multi_gpu_evaluate.yaml"]
    run_exported(zoo, *evaluating, **INFERENCE, **places, **{"handlers#0#path": model})
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 5 * 4
