"""One way to open a configuration: every command makes the same of the same words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import BUNDLE, TINY, WHOLE_PLAN

from cyclic_committee.scripts.bundles.fold_bundle import copy_template
from cyclic_committee.scripts.bundles.server_folder import make_work_folder, served_bundle
from cyclic_committee.scripts.commands.data import prepare
from cyclic_committee.scripts.commands.inference import export, predict
from cyclic_committee.scripts.commands.training import cross_validate, estimate, parameters
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.runtime import configuration
from cyclic_committee.scripts.runtime.config_files import config_files, find_config, read_json, require_plan
from cyclic_committee.scripts.runtime.configuration import open_config
from cyclic_committee.scripts.runtime.errors import BadInput

MINE = "variants/mine.yaml"  # lies in the copy alone
SPACING_MM = [5.5, 5.5]  # of the copy's own
COMPARED = ("spacing_mm", "member", "patch_size", "labels", "orientation", "bundle_root")


@pytest.fixture
def changed(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle with another variant `small`, and one that the installed bundle hasn't."""
    bundle = tmp_path / "my_bundle"
    copy_template(BUNDLE, bundle)
    shutil.copy(model, bundle / "models" / "model.pt")
    values = {key: value for key, value in TINY.items() if key != "device"}
    for name in ("small", "mine"):
        (bundle / "configs" / "variants" / f"{name}.yaml").write_text(
            yaml.safe_dump({**values, "spacing_mm": SPACING_MM})
        )
    monkeypatch.chdir(tmp_path)
    return bundle


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The merged configurations that are opened, in turn."""
    merged: list[dict[str, Any]] = []
    check = configuration.require_known_keys

    def seen(config: dict[str, Any], **known: Any) -> None:
        merged.append(config)
        check(config, **known)

    monkeypatch.setattr(configuration, "require_known_keys", seen)
    return merged


def predicted(bundle: Path, overlay: str, phantoms: Path) -> None:
    image = next((phantoms / "TrainingImg").iterdir())
    predict(str(image), out="labels", bundle=str(bundle), config=overlay)


def served(bundle: Path, overlay: str, phantoms: Path) -> None:
    work = Path("work").resolve()
    make_work_folder(work, bundle=bundle, overlays=[overlay])
    config = open_config("inference.yaml", bundle=served_bundle(work))
    config["bundle_root"] = str(bundle.resolve())  # its own, of which it is a copy


def validated(bundle: Path, overlay: str, phantoms: Path) -> None:
    with pytest.raises(BadInput, match="nothing has been evaluated"):
        cross_validate(str(phantoms), "CV", overlay, bundle=str(bundle), folds=[])


COMMANDS: dict[str, tuple[str, Callable[[Path, str, Path], Any]]] = {
    "predict": ("inference.yaml", predicted),
    "Predictor.from_config": ("inference.yaml", lambda b, o, p: Predictor.from_config(bundle=b, overlays=[o])),
    "export": ("inference.yaml", lambda b, o, p: export("out.ts", "torchscript", bundle=str(b), config=o)),
    "label-server": ("inference.yaml", served),
    "parameters": ("train.yaml", lambda b, o, p: parameters(o, bundle=str(b))),
    "estimate": ("train.yaml", lambda b, o, p: estimate(o, bundle=str(b), batch_size=1)),
    "prepare": ("train.yaml", lambda b, o, p: prepare(str(p), "PREPARED", o, bundle=str(b))),
    "cross-validate": ("train.yaml", validated),
}


@pytest.mark.parametrize("overlay", ["variants/small.yaml", MINE])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_makes_the_same_configuration_of_the_same_words(
    process_state: None, phantoms: Path, changed: Path, opened: list[dict[str, Any]], command: str, overlay: str
) -> None:
    kind, run = COMMANDS[command]
    wanted = open_config(kind, [overlay], bundle=changed).get()
    assert wanted["spacing_mm"] == SPACING_MM
    run(changed, overlay, phantoms)
    assert len(opened) > 1
    for key in ("spacing_mm", "bundle_root") if command == "prepare" else COMPARED:  # which makes a plan of the rest
        assert opened[-1][key] == wanted[key], key


def test_a_path_goes_before_a_name_and_a_bundle_has_its_own_names(changed: Path, tmp_path: Path) -> None:
    assert find_config("variants/small.yaml", bundle=changed) == changed / "configs" / "variants" / "small.yaml"
    assert find_config("variants/small.yaml") == BUNDLE / "configs" / "variants" / "small.yaml"
    (tmp_path / "variants").mkdir()
    (tmp_path / MINE).write_text("{}")
    assert find_config(MINE, bundle=changed) == Path(MINE)
    with pytest.raises(BadInput, match=r"no such configuration file, neither here nor in .*my_bundle/configs"):
        find_config("variants/other.yaml", bundle=changed)


def test_the_base_may_be_named_and_is_read_once(changed: Path) -> None:
    base, small = changed / "configs" / "train.yaml", changed / "configs" / "variants" / "small.yaml"
    assert config_files("train.yaml", [base, "variants/small.yaml"], bundle=changed) == [str(base), str(small)]
    assert config_files("train.yaml", ["variants/small.yaml"], bundle=changed) == [str(base), str(small)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", r"mine\.yaml: can't be read as YAML"),
        ("- 1\n- 2\n", r"mine\.yaml: holds no keys with values"),
        ("spacing: [1, 1]", r"spacing: no such key, nothing in the configuration uses it\. Did you mean spacing_mm"),
        ("nowhere#else: 1", r"nowhere: no such key"),
        ("batch_size: 1\nbatch_size: 2", r"mine\.yaml: can't be read as YAML .*the key batch_size is there twice"),
        ("batch_size: 2020-99-99", r"mine\.yaml: can't be read as YAML"),
        ("batch_size: !!bool x", r"mine\.yaml: can't be read as YAML"),
        (f"patch_size: {'[' * 3000}", r"mine\.yaml: can't be read as YAML"),
        ("patch_size: &a [*a]", r"mine\.yaml: can't be read as YAML .*lead in a circle"),
        ("\n".join(["a0: &a0 [1, 1]", *(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]" for n in range(40))]), "repeat too much"),
        ("3: 4", r"mine\.yaml: holds no keys with values"),
    ],
)
def test_what_cannot_be_a_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        open_config("train.yaml", [tmp_path / "mine.yaml"])


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no configs/inference\.yaml"):
        open_config("inference.yaml", bundle=tmp_path)


def test_the_data_set_is_read_once_for_both_parts(phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cyclic_committee.scripts.data import layouts

    config, reads = open_config("train.yaml", values={"dataset_dir": str(phantoms)}), []
    scripts = __import__("scripts.data.cases", fromlist=["cases"])  # the same file by the configuration's name
    monkeypatch.setattr(scripts, "read_data_set", lambda *a, **k: reads.append(a) or layouts.read_data_set(*a, **k))
    training, validation = (config.get_parsed_content(f"{part}#dataset#data") for part in ("train", "validate"))
    assert (len(training), len(validation), len(reads)) == (4, 1, 1)


@pytest.mark.parametrize(
    "line",
    [
        "labels: {'1': $__import__('pathlib').Path('run').touch()}",
        "cache_dir: '%plan.yaml::layout'",
        'dataset_dir: \' $open("run", "w")\'',
        "normalise: [{_target_: pathlib.Path.touch, self: run}]",
        "imports: [\"$open('run', 'w')\"]",
        "member#_target_: pathlib.Path.touch",
        "network_def: {'members::0::_target_': pathlib.Path.touch}",
        "normalise: [{_target_: scripts.transforms.normalisation.torch.hub.load, repo_or_dir: run}]",
        "labels: !!omap [{'1': $1}]",
    ],
)
def test_a_plan_with_code_in_it_is_refused_before_anything_runs(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phantoms: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(f"{line}\n")
    with pytest.raises(BadInput, match=r"plan\.yaml: holds .* which is code, and no plan of `prepare` does"):
        predict(str(phantoms), out="out", config="plan.yaml")
    with pytest.raises(BadInput, match="which is code"):
        parameters("plan.yaml")
    assert not Path("run").exists()


def test_an_overlay_of_comments_alone_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("# nothing yet\n")
    assert open_config("train.yaml", [tmp_path / "mine.yaml"])["batch_size"] == open_config("train.yaml")["batch_size"]


def test_a_plan_that_was_changed_by_hand_is_taken(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**WHOLE_PLAN, "cache_dir": "x", "max_epochs": 3}))
    require_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize("key", WHOLE_PLAN)
def test_a_plan_that_was_cut_off_is_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({name: WHOLE_PLAN[name] for name in WHOLE_PLAN if name != key}))
    with pytest.raises(BadInput, match=rf"plan\.yaml: has no {key}, as each plan has"):
        require_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("labels", [None, {}, [1], {"0": "a"}, {"x": "a"}, {"1": None}, {"1": "a\nb"}]),
        ("channels", [0, True, 1.5, "1", None]),
        ("orientation", ["RA", "RRS", 3, None, "xyz", "RLS"]),
        ("spacing_mm", [1, [1], [1, "a"], [0, 1], [1, float("nan")], [1, 1e6]]),
        ("normalise", [None, [3], [{"_target_": "scripts.transforms.normalisation.StandardiseImage", "nonzro": 1}]]),
        ("patch_size", [48, [48, 0], [48, 48, 48], [48, 1e3], [48, "48"]]),
        ("rotation_degrees", ["x", -1, float("inf")]),
        ("member#features", [[], [0], ["4"], 4, None]),
        ("member#strides", [[2], [[2]], [[0, 2]], 3]),
        ("batch_size", [0, "8", None, [8]]),
    ],
)
def test_a_plans_value_that_cannot_be_is_named(tmp_path: Path, key: str, values: list[Any]) -> None:
    for value in values:
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**WHOLE_PLAN, key: value}))
        with pytest.raises(BadInput, match=rf"plan\.yaml: {key} is .*\. Give "):
            require_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"labels": {"1": "liver", "1": "kidney"}}', 'can\'t be read as JSON .the key "1" is there twice'),
        ("[" * 100_000, "can't be read as JSON"),
        ("1" * 5000, "can't be read as JSON"),
        ('["\\ud800"]', "half of a character"),
    ],
    ids=range(4),
)
def test_json_that_other_programs_take_differently_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadInput, match=rf"a\.json: .*{message}"):
        read_json(tmp_path / "a.json")
