"""The commands on the page about MONAI Label."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import BUNDLE, ROOT, TINY
from test_docs import commands_of

from cyclic_committee.scripts.bundles.fold_bundle import copy_template
from cyclic_committee.scripts.commands.main import COMMANDS

PAGE = BUNDLE / "docs" / "monai_label.md"
LABEL_SERVER, SCORING, PREDICT = (
    "cyclic-committee label-server ",
    "python benchmarks/study_scoring.py",
    "cyclic-committee predict ",
)
PROGRAM = Path(sys.executable).with_name("cyclic-committee")


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """What the page's reader has: the demo's bundle, and a study."""
    copy_template(BUNDLE, tmp_path / "demo" / "bundle")
    shutil.copy(model, tmp_path / "demo" / "bundle" / "models" / "model.pt")
    overlay = tmp_path / "demo" / "bundle" / "configs" / "tiny.yaml"
    overlay.write_text(yaml.safe_dump({key: value for key, value in TINY.items() if key != "device"}))
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    return tmp_path


def run(command: str, folder: Path) -> str:
    """Run a documented command, with the overlay of the tiny networks."""
    words = shlex.split(command.replace("variants/small.yaml", "demo/bundle/configs/tiny.yaml"))
    words[0] = {"python": sys.executable, "cyclic-committee": str(PROGRAM)}[words[0]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def documented(beginning: str) -> str:
    [command] = [command for command in commands_of(PAGE) if command.startswith(beginning)]
    return command


def test_every_command_is_run_by_a_test() -> None:
    """The server's is what `label_servers.label_server` runs."""
    assert len(commands_of(PAGE)) == len([documented(one) for one in (LABEL_SERVER, SCORING, PREDICT)])


@pytest.mark.slow
def test_the_documented_scoring_benchmark_works(folder: Path) -> None:
    assert "of the time of labelling" in run(f"{documented(SCORING)} --cases 3", folder)


@pytest.mark.skipif("predict" not in COMMANDS, reason="this version has no command predict")
def test_the_documented_prediction_works(folder: Path) -> None:
    studies = pytest.importorskip("dicom_studies", reason="pydicom isn't installed: pip install '.[dicom]'")
    studies.write_series(folder / "STUDY", np.zeros((40, 40, 3)), np.diag([-2.0, -2.0, 3.0, 1.0]))
    run(f"{documented(PREDICT)} --bundle demo/bundle --config variants/small.yaml", folder)
    assert (folder / "LABELS" / "STUDY.nii.gz").is_file()
