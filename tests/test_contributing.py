"""What CONTRIBUTING.md tells people to type and to write is right."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import BUNDLE, CONFIGS, ROOT
from monai.bundle import ConfigParser
from test_docs import README, commands_of
from test_package import GATES

from cyclic_committee.scripts.networks.committee import Committee
from cyclic_committee.scripts.training import selection

PAGE = ROOT / "CONTRIBUTING.md"
SLOW = "python -m pytest -m slow"
RUN_ELSEWHERE = {*README, "python -m build --wheel", SLOW}  # to make the wheel of test_package.py; by .ci/run


def block(language: str, *, section: str) -> str:
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    [found] = re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.parametrize("command", commands_of(PAGE))
def test_a_command_is_one_that_tests_run_or_runs_tests_that_exist(command: str) -> None:
    program, *words = command.split()
    if words[:2] == ["-m", "pytest"] and command != SLOW:
        assert program == "python"
        assert [path for path in words[2:] if not list((ROOT / path).glob("test_*.py"))] == []
    else:
        assert command in RUN_ELSEWHERE | GATES.keys()


def test_continuous_integration_runs_the_slow_tests_too() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert f".venv/bin/{SLOW} --dist worksteal" in lines  # one by one: a file of long tests isn't one process' work


def test_each_file_and_program_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:bundle|tests|\.ci)/[\w./-]+)`", PAGE.read_text(encoding="utf-8")))
    made = {"bundle/configs/variants/own_loss.yaml", "tests/ROOM"}  # by who follows the page
    assert [path for path in named - made if not (ROOT / path).exists()] == []
    assert Path(sys.executable).with_name("pre-commit").is_file()


def test_the_rule_that_is_shown_is_one() -> None:
    source = Path(selection.__file__).read_text(encoding="utf-8") + block("python", section="Add a rule")
    names: dict[str, Any] = {"__name__": selection.__name__, "__package__": selection.__package__}
    exec(source, names)  # with a `Rule` of its own: the subclasses of ours are offered to users
    _, _, name = yaml.safe_load(block("yaml", section="Add a rule"))["select"]["_target_"].rpartition(".")
    kept = names[name](keep=0.5)(torch.tensor([[3.0, 1.0, 2.0, 4.0], [0.0, 9.0, 9.0, 1.0]]))
    assert kept.tolist() == [[False, True, True, False], [True, False, False, True]]


def test_the_network_that_is_shown_becomes_the_members(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BUNDLE))
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(block("yaml", section="Add a network"))
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "inference.yaml"), str(overlay)])
    network = parser.get_parsed_content("network_def")
    assert type(network).__name__ == Committee.__name__
    assert network.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 5, 32, 32)
