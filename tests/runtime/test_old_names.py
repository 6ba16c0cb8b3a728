"""What was written for version 0.1, when all modules lay in one folder, goes on working."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import BUNDLE
from monai.bundle import ConfigParser

from cyclic_committee.scripts.runtime.old_names import MODULES, keep_old_names

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
