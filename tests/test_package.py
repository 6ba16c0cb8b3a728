from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import BUNDLE, ROOT

from cyclic_committee import __version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy, so that nothing is left in the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("README.md", "LICENSE", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(BUNDLE, source / "bundle", ignore=shutil.ignore_patterns("__pycache__", "*.pt", "output"))
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(source / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next((source / "dist").glob("*.whl")))


def test_the_wheel_is_the_bundle_as_a_package(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert f"cyclic_committee-{__version__}.dist-info/METADATA" in names
    files = [path for folder in ("configs", "scripts", "monai_label") for path in (BUNDLE / folder).rglob("*.*")]
    for path in [*(path for path in files if path.suffix != ".pyc"), BUNDLE / "LICENSE"]:
        assert f"cyclic_committee/{path.relative_to(BUNDLE)}" in names
    top_level = {name.split("/")[0] for name in names}
    assert top_level == {"cyclic_committee", f"cyclic_committee-{__version__}.dist-info"}  # no package called scripts
    assert not [name for name in names if name.endswith(".pt")]


def test_the_distribution_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    metadata = wheel.read(f"cyclic_committee-{__version__}.dist-info/METADATA").decode()
    assert "Requires-Python: >=3.10" in metadata
    assert re.search("^License(-Expression)?: Apache-2.0", metadata, flags=re.MULTILINE)
    requirements = re.findall(r"^Requires-Dist: ([\w-]+)(\S*)", metadata, flags=re.MULTILINE)
    assert ("monai", ">=1.6.1") in requirements
    assert ("torch", ">=2.10") in requirements  # a floor, no pin: each index has its own builds
    assert dict(requirements)["numpy"] in ("<3,>=1.26", ">=1.26,<3")


def test_everything_that_is_imported_is_required() -> None:
    required = {re.split(r"[^\w-]", item)[0].lower() for item in importlib.metadata.requires("cyclic-committee") or []}
    distribution = {"ignite": "pytorch-ignite", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    imported = set()
    for path in (BUNDLE / "scripts").rglob("*.py"):
        imported |= set(re.findall(r"^(?:import|from) (\w+)", path.read_text(), flags=re.MULTILINE))
    third_party = {name for name in imported if name not in sys.stdlib_module_names}
    assert {distribution.get(name, name) for name in third_party} <= required


def test_the_bundles_licence_is_the_projects() -> None:
    assert (ROOT / "LICENSE").read_text() == (BUNDLE / "LICENSE").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_changelog_knows_the_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


GATES = {  # as they are typed, and as they are tested
    "ruff check --fix": "ruff check",
    "ruff format": "ruff format --check",
    "mypy": "mypy",
    "pre-commit install": "pre-commit validate-config",
}


@pytest.mark.parametrize("command", GATES.values())
def test_the_code_passes_its_gates(command: str) -> None:
    program, *arguments = command.split()
    program = str(Path(sys.executable).with_name(program))
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
