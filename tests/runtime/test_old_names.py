"""What was written for version 0.1, when all modules lay in one folder, goes on working."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import yaml
from conftest import BUNDLE, CONFIGS
from monai.bundle import ConfigParser

from cyclic_committee.scripts.runtime.errors import BadInput
from cyclic_committee.scripts.runtime.old_names import KEYS, MODULES, NAMES, keep_old_names, refuse_old_options
from cyclic_committee.scripts.runtime.workflow import require_known_keys

TODAY = "cyclic_committee.scripts"
OLD_PLAN = """\
normalise:
  - {_target_: scripts.normalisation.ClipAndStandardise, clip: [-958, 327], mean: 82.92, sd: 136.97}
  - {_target_: scripts.normalisation.StandardiseImage, nonzero: true}
resampling: {_target_: scripts.resampling.NormaliseThenResample}
select: {_target_: scripts.selection.SmallLoss, keep: 0.5}
"""


@pytest.mark.parametrize("old", MODULES)
def test_an_old_name_leads_to_a_module_that_exists_and_hides_none(old: str) -> None:
    path = BUNDLE / "scripts" / f"{MODULES[old].replace('.', '/')}.py"
    assert path.is_file()
    assert not (BUNDLE / "scripts" / old).exists()
    assert not path.parents[1].joinpath(f"{old}.py").exists()


def test_an_old_plan_and_an_old_overlay_make_todays_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BUNDLE))
    (tmp_path / "plan.yaml").write_text(OLD_PLAN)
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / "train.yaml"), str(tmp_path / "plan.yaml")])
    assert [type(part).__module__ for part in parser.get_parsed_content("normalise")] == [
        "scripts.transforms.normalisation",
        "scripts.transforms.normalisation",
    ]
    assert type(parser.get_parsed_content("resampling")).__module__ == "scripts.transforms.resampling"
    assert repr(parser.get_parsed_content("select")) == "SmallLoss(keep=0.5, warmup_epochs=0)"


@pytest.mark.parametrize("old", NAMES)
def test_an_old_class_or_function_is_found_by_its_new_name(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    monkeypatch.syspath_prepend(str(BUNDLE))
    found: object = locate(f"scripts.{old}")
    assert getattr(found, "__name__", "") == NAMES[old]


@pytest.mark.parametrize("old", KEYS)
@pytest.mark.parametrize("config", [{"{}": 3}, {"train": {"trainer": {"mine": "@{}"}}}], ids=["given", "asked for"])
def test_an_old_key_is_told_its_new_name(old: str, config: dict[str, Any]) -> None:
    known = set(yaml.safe_load((CONFIGS / "train.yaml").read_text()))
    assert KEYS[old] in known
    asked = json.loads(json.dumps(config).replace("{}", old))
    with pytest.raises(BadInput, match=f"^{old}: is called {KEYS[old]} today. Write that in"):
        require_known_keys(asked, known=known)


@pytest.mark.parametrize("word", ["--ways", "--ways=shift"])
def test_an_old_option_of_a_command_is_told_its_new_name(word: str) -> None:
    with pytest.raises(BadInput, match=r"^--ways: is called --corruptions today\."):
        refuse_old_options(["phantom", "--out", "OUT", word, "shift"])
    refuse_old_options(["check", word])
    refuse_old_options([])


def test_an_old_key_is_none_in_a_bundle_that_still_has_it() -> None:
    require_known_keys({"iterations": 3, "sampler": "@iterations"}, known={"iterations", "sampler"})


def test_the_import_of_the_old_readme_works() -> None:
    old = import_module(f"{TODAY}.predictor")
    assert old.Predictor is import_module(f"{TODAY}.inference.predictor").Predictor
    with pytest.raises(AttributeError):
        _ = old.Nothing


def test_a_name_that_never_was_is_still_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"cyclic_committee\.scripts\.nothing"):
        import_module(f"{TODAY}.nothing")


def test_a_package_that_is_imported_twice_is_looked_up_once() -> None:
    before = len(sys.meta_path)
    keep_old_names(TODAY)
    assert len(sys.meta_path) == before
