from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cross_validations import cross_validation, data_set

from cyclic_committee.scripts.report.runs import read_runs, short_names
from cyclic_committee.scripts.runtime.errors import BadInput

SETTINGS = '{"dataset_dir": "x", "layout": "auto", "values": {}, "overlays": []}'


@pytest.fixture(scope="module")
def made(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return cross_validation(folder / "a run", data_set(folder / "data", phantoms, cases=6), done=[0, 3])


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "a run", symlinks=True)


def test_a_run_knows_its_folds_cases_and_files(run: Path) -> None:
    [found] = read_runs([run])
    assert (found.name, found.key, found.missing) == ("a run", "a_run", (1, 2, 4))
    assert sorted(found.scores) == [0, 3]
    assert found.organs == {"liver": 1, "kidney": 2, "spleen": 3, "pancreas": 4}
    assert len(found.rows) == 4 * len(found.folds)
    assert found.files.keys() == found.folds.keys()
    for case, item in found.files.items():
        assert Path(item["label"]).name == f"{case}.nii.gz"
        assert (run / f"fold_{found.folds[case]}" / "labels" / Path(item["image"]).name).is_file()
    assert [len(history) for history in found.histories.values()] == [4, 4]
    assert [Path(file).name for file in found.overlays] == ["overlay_0.yaml"]


def test_a_data_set_that_is_gone_is_a_problem_and_no_error(run: Path) -> None:
    settings = json.loads((run / "cross_validation.json").read_text())
    (run / "cross_validation.json").write_text(json.dumps({**settings, "dataset_dir": "/gone"}))
    [found] = read_runs([run])
    assert found.files == {}
    assert found.missing == (1, 2)
    assert found.problem.startswith("/gone: no such folder")


def test_cases_of_one_name_in_two_folds_stay_two(run: Path) -> None:
    text = (run / "fold_0" / "scores.csv").read_text()
    (run / "fold_3" / "scores.csv").write_text(text)
    [found] = read_runs([run])
    assert {case.split(" ", 1)[1] for case in found.folds} == {"(fold 0)", "(fold 3)"}
    assert all(Path(found.files[case]["label"]).name.startswith(case.split()[0]) for case in found.files)


def test_names_tell_runs_apart() -> None:
    assert short_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert short_names([Path("/x/cv"), Path("/y/cv"), Path("/y/b")]) == ["x/cv", "y/cv", "y/b"]


def damage(run: Path, *, settings: str | None = None, scores: str | None = None) -> Path:
    """Write other contents into a run's files."""
    if settings is not None:
        (run / "cross_validation.json").write_text(settings)
    for path in run.glob("fold_*/scores.csv") if scores is not None else ():
        path.write_text(scores)
    return run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"settings": "{"}, r"a run: can't be read .* Give a folder that cross-validate has written\."),
        ({"settings": "{}"}, r"a run: can't be read"),
        ({"settings": SETTINGS.replace("[]", "3")}, r"a run: can't be read .*overlays is 3.*\. Give a folder"),
        ({"settings": SETTINGS.replace('"x"', "[]")}, r"a run: can't be read .*dataset_dir is \[\]"),
        ({"settings": "[" * 100_000}, r"a run: can't be read"),
        ({"scores": "case,label,organ\nx,1,liver\n"}, r"a run: can't be read"),
        ({"scores": "case,label,organ,dsc,nsd\n"}, r"a run: no fold is done yet\. Go on with cross-validate"),
    ],
)
def test_a_damaged_run_is_named(run: Path, content: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_runs([damage(run, **content)])


def test_what_is_no_run_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"data: is no cross-validation\. Give the folder that one was written to\."):
        read_runs([tmp_path / "data"])
    with pytest.raises(BadInput, match=r"a run is given twice\. Give each once\."):
        read_runs([run, tmp_path / "data" / ".." / "a run"])
    with pytest.raises(BadInput, match="runs: there is none"):
        read_runs([])
    for folder in run.glob("fold_*"):
        shutil.rmtree(folder)
    with pytest.raises(BadInput, match="no fold is done yet"):
        read_runs([run])
