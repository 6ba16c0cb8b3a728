"""Every command that the documentation gives is run here, on phantoms and with tiny settings."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import BUNDLE, ROOT
from terminal import TINY_DEMO

from cyclic_committee.scripts.phantoms.data_set import write_phantoms

INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e {} && .venv/bin/"
TINY = "--member#features [4,8,16] --spacing_mm [6.0,6.0] --patch_size [48,48] --precision float32"
TINY_TRAINING = (
    f"{TINY} --crop_size [48,48] --max_epochs 1 --iterations_per_epoch 1 --batch_size 2 --num_workers 0 "
    "--val_interval 1"
)

FEW = {
    "data_memory.py": "2 3",
    "store_formats.py": "--cases 1 --rounds 1 --reads 3",
    "convolutions.py": "--size 256 --samples 1 --chosen 1 --rounds 1",
    "rounding.py": "--iterations 2 --every 1 --config tiny.yaml",
    "training_step.py": "--sides ours --size 64 --rounds 1 --steps 1 --config tiny.yaml",
    "inference.py --memory": "--slices 1 --many 2 --rounds 1",
    "noisy_labels --table": "",
    "noisy_labels": "--minutes 0.01 --settings biased_50_40 --cases 6,2 --results tried.jsonl",
    "inference.py": "--slices 1 --rounds 1 --config tiny.yaml",
    "evaluation.py": "--rounds 1",
    "preprocessing.py": "--slices 3 --rounds 1",
    "active_learning.py": "--seeds 1 --rounds 1 --pool 8 --config tiny.yaml",
    "killed_cross_validation.py": "--kills 1 --cases 5 --epochs 1 --folds 0 --config tiny.yaml",
    "killed_commands.py": "--kills 2 --commands prepare,release",
    "label_audit.py": "--cases 5 --seeds 1 --config tiny.yaml",
    "auto3dseg.py": "--cases 4 --unseen 1 --config tiny.yaml",
    "lost_processes.py": "--kills 1 --epochs 4",
    "estimate.py": "tiny.yaml --iterations 1",
    "data_pipeline.py": "--cases 1 --rounds 1 --samples 8 --config tiny.yaml",
}


def commands_of(document: Path) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.strip().replace("\\\n", " ").splitlines()]


README = commands_of(ROOT / "README.md")
DOCUMENTS = [
    (path, command) for path in (ROOT / "README.md", BUNDLE / "docs" / "README.md") for command in commands_of(path)
]


def test_the_first_two_blocks_are_the_two_commands_one_line_each() -> None:
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert [block.count("\n") for block in blocks[:2]] == [1, 1]
    assert blocks[0].strip() == INSTALL.format(".") + "cyclic-committee demo"
    assert blocks[1].strip() == INSTALL.format("'.[test]'") + "python -m pytest"
    assert (ROOT / "constraints.txt").is_file()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user's clone is, with data under the names that the documents use, each command run in order."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(BUNDLE, folder / "bundle", ignore=shutil.ignore_patterns("__pycache__", "*.pt", "output"))
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks")
    write_phantoms(folder / "DATASET", cases=5, seed=9)
    shutil.copytree(folder / "DATASET" / "TrainingImg", folder / "IMAGES")
    write_scans(folder / "SCANS", image=min((folder / "IMAGES").iterdir()))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY_DEMO))
    (folder / "CT").mkdir()
    for kind, source in (("image", "TrainingImg"), ("label", "TrainingMask")):
        shutil.copy(min((folder / "DATASET" / source).iterdir()), folder / "CT" / f"{kind}.nii.gz")
    return folder


def write_scans(folder: Path, *, image: Path) -> None:
    """A scan as a NIfTI file and, if there is what reads it, as a DICOM series."""
    folder.mkdir()
    shutil.copy(image, folder)
    if importlib.util.find_spec("highdicom"):
        from dicom_studies import write_series

        scan = nib.load(image)
        write_series(folder / "series", np.asanyarray(scan.dataobj), scan.affine)


def adapted(command: str) -> str | None:
    """Return a documented command in the size of a test; None: it is run elsewhere."""
    if command == README[1]:
        return None  # this very test run
    if command == README[0]:
        return command.split(" && ")[-1].removeprefix(".venv/bin/") + " tiny.yaml"
    command = command.replace("--nproc_per_node 4", "--nproc_per_node 2")
    command = command.replace("--exclude SUSPECTS", "--exclude RUN/audit/suspects.txt")
    planned = "--member#strides [[2,2],[2,2]]" if "plan.yaml" in command else ""
    if "monai.bundle run training" in command:
        return f"{command} {TINY_TRAINING} {planned}"
    if "monai.bundle run " in command:
        return f"{command} {TINY} {planned}"
    if "monai.bundle verify_net_in_out" in command:
        return f"{command} --member#features [4,8,16]"
    if command == "cyclic-committee demo":
        return None  # the end of the README's first command
    for name, few in FEW.items():
        if command.startswith(f"python benchmarks/{name}"):
            return f"{command} {few}"
    if command.startswith("python benchmarks/"):
        return f"{command} --config tiny.yaml"
    if command.startswith("cyclic-committee cross-validate"):
        return command.replace("PREPARED/plan.yaml", "tiny.yaml --folds 0")
    if command.startswith(("cyclic-committee export", "cyclic-committee predict")):
        return command.replace("variants/small.yaml", "tiny.yaml")
    if command.startswith("cyclic-committee evaluate"):
        return command.replace("REFERENCES", "DATASET/TrainingMask")
    return command


def shell(command: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", "-c", f"exec {command}" if "&&" not in command else command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


RUN_HERE = [(page, command) for page, command in DOCUMENTS if adapted(command) is not None]
BENCHMARKS = [
    pair for pair in RUN_HERE if pair[1].startswith("python benchmarks/")
]  # in a file, a process, of their own
RUN_HERE = [pair for pair in RUN_HERE if pair not in BENCHMARKS]


@pytest.mark.parametrize(("document", "command"), RUN_HERE, ids=[f"{p.parent.name}: {c[:70]}" for p, c in RUN_HERE])
def test_a_documented_command_works(clone: Path, document: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runnable = adapted(command)
    assert runnable is not None
    if runnable.startswith("mlflow ui"):
        port = free_port()
        server = shell(f"{runnable} --port {port}", clone)
        try:
            for _ in range(120):
                try:
                    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read().decode()
                    break
                except OSError:
                    time.sleep(0.5)
            assert "MLflow" in page
        finally:
            server.terminate()
            server.communicate()
        return
    require_success(runnable, clone)


def require_success(command: str, folder: Path) -> None:
    process = shell(command, folder)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "Traceback" not in output


def test_the_documented_python_works(clone: Path) -> None:
    """After the commands above, which leave weights in the bundle."""
    [code] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    image = min((clone / "IMAGES").iterdir()).name
    values = {'["variants/small.yaml"]': '["tiny.yaml"], ckpt_path="bundle/models/model.pt"', "ct_0000.nii.gz": image}
    for documented, here in values.items():
        assert documented in code
        code = code.replace(documented, here)
    (clone / "LABELS" / image).unlink(missing_ok=True)
    (clone / "label_one.py").write_text(code)
    subprocess.run([sys.executable, "label_one.py"], cwd=clone, check=True)
    assert (clone / "LABELS" / image).is_file()


def test_the_documented_autorunner_and_search_work(clone: Path) -> None:
    text = (BUNDLE / "docs" / "README.md").read_text()
    auto_runner, search = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    names = [path.name for path in sorted((clone / "DATASET" / "TrainingMask").iterdir())]
    cases = [
        {"image": f"TrainingImg/{name.replace('.nii', '_0000.nii')}", "label": f"TrainingMask/{name}", "fold": k % 2}
        for k, name in enumerate(names[:4])
    ]
    described = {"training": cases, "testing": [{"image": f"TrainingImg/{names[4].replace('.nii', '_0000.nii')}"}]}
    (clone / "datalist.json").write_text(json.dumps(described))
    small, epochs = '["variants/small.yaml"]', '"num_epochs": 10'
    assert small in auto_runner
    assert epochs in auto_runner
    (clone / "auto.py").write_text(auto_runner.replace(small, '["tiny.yaml"]').replace(epochs, '"num_epochs": 1'))
    subprocess.run([sys.executable, "auto.py"], cwd=clone, check=True)
    assert len(list((clone / "WORK" / "ensemble_output").rglob("*.nii.gz"))) == 1
    assert "n_trials=10" in search
    (clone / "search.py").write_text(
        search.replace(small, '["tiny.yaml"]')
        .replace('"num_epochs": 5', '"num_epochs": 1')
        .replace("n_trials=10", "n_trials=1")
    )
    subprocess.run([sys.executable, "search.py"], cwd=clone, check=True)
    assert len(list((clone / "WORK").glob("committee_0_override_rule_*/models/model.pt"))) == 1
