from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import SCHEDULE, TINY, WHOLE_PLAN
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from cyclic_committee.scripts.data.layouts import read_data_set
from cyclic_committee.scripts.experiments import cross_validation
from cyclic_committee.scripts.experiments.cross_validation import cross_validate, folds_of
from cyclic_committee.scripts.handlers.mlflow_parent_run import ParentRun
from cyclic_committee.scripts.metrics.score_table import ScoreRow, write_csv
from cyclic_committee.scripts.runtime.errors import BadInput

TINY_RUN = {**{key: value for key, value in TINY.items() if key != "device"}, **SCHEDULE}
ROW: ScoreRow = {"case": "case", "label": 1, "organ": "liver", "dsc": 0.5, "nsd": 0.25}
COMMAND = "from cyclic_committee.scripts.commands.main import main; main()"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY_RUN))
    return path


@pytest.fixture
def data_list(phantoms: Path, tmp_path: Path) -> Path:
    """The five phantoms, in two folds of their own."""
    cases = [
        {"image": f"TrainingImg/{path.name}", "label": f"TrainingMask/{path.name.replace('_0000', '')}", "fold": k % 2}
        for k, path in enumerate(sorted((phantoms / "TrainingImg").iterdir()))
    ]
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": cases}))
    return path


def test_each_case_is_scored_once_and_stands_under_one_parent(
    data_list: Path, phantoms: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a run"
    cross_validate(data_list, out, overlays=[str(tiny)], folds=[1], data_root=phantoms)
    assert "Folds 1; not done yet: 0" in capsys.readouterr().out
    first = (out / "fold_1" / "model.pt").stat().st_mtime_ns
    rows = cross_validate(data_list, out, overlays=[str(tiny)], data_root=phantoms)
    assert (out / "fold_1" / "model.pt").stat().st_mtime_ns == first  # what is done isn't done again
    assert sorted({row["case"] for row in rows}) == [f"train_00{k}" for k in range(5)]
    assert len(rows) == 5 * 4
    with (out / "scores.csv").open() as file:
        assert [row["case"] for row in csv.DictReader(file)] == [row["case"] for row in rows]
    for fold, cases in ((0, 3), (1, 2)):
        assert len(list((out / f"fold_{fold}" / "labels").iterdir())) == cases
    client = MlflowClient(f"sqlite:///{out}/mlflow/mlflow.db")
    [experiment] = [one for one in client.search_experiments() if one.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if MLFLOW_PARENT_RUN_ID not in run.data.tags]
    children = [run.data.tags[MLFLOW_PARENT_RUN_ID] for run in runs if run is not parent]
    assert children == [parent.info.run_id] * 2
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["dsc_liver"] == pytest.approx(
        sum(row["dsc"] for row in rows if row["organ"] == "liver") / 5, abs=1e-6
    )


@pytest.mark.slow
def test_a_killed_one_goes_on_to_the_same_table(data_list: Path, phantoms: Path, tiny: Path, tmp_path: Path) -> None:
    tables = []
    landmarks = ["mlflow/mlruns/**/environment.txt", "fold_0/checkpoint.pt", "fold_0/model.pt"]
    for name, kills in (("undisturbed", []), ("killed", landmarks)):
        out = tmp_path / name
        words = ["cross-validate", str(data_list), str(out), str(tiny), "--folds", "0", "--data_root", str(phantoms)]
        command = [sys.executable, "-c", COMMAND, *words]
        for landmark in kills:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while not any(out.glob(landmark)) and process.poll() is None:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        tables.append((out / "scores.csv").read_text())
        history = json.loads((out / "fold_0" / "history.json").read_text())
        assert [row["epoch"] for row in history] == [1, 2]
        client = MlflowClient(f"sqlite:///{out}/mlflow/mlflow.db")
        [experiment] = [one for one in client.search_experiments() if one.name != "Default"]
        runs = client.search_runs([experiment.experiment_id])
        assert [run.info.status for run in runs] == ["FINISHED"] * 2  # the parent and its child
    assert tables[0] == tables[1]


def test_a_folder_goes_on_with_its_own_settings_only(
    data_list: Path, phantoms: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do_nothing(out: Path, fold: int, *arguments: object, **others: object) -> None:
        (out / f"fold_{fold}").mkdir(exist_ok=True)
        write_csv([{**ROW, "case": f"case_{fold}"}], out / f"fold_{fold}" / "scores.csv")

    monkeypatch.setattr(cross_validation, "do_fold", do_nothing)
    out = tmp_path / "run"
    rows = cross_validate(data_list, out, overlays=[str(tiny)], data_root=phantoms, values={"seed": 1})
    assert [row["case"] for row in rows] == ["case_0", "case_1"]
    whole = (out / "cross_validation.json").read_text()
    for damaged, told in ((whole[:-9], "damaged JSON in line"), ("[]", "holds no JSON object")):
        (out / "cross_validation.json").write_text(damaged)
        with pytest.raises(BadInput, match=rf"cross_validation\.json: {told}"):
            cross_validate(data_list, out, overlays=[str(tiny)], data_root=phantoms, values={"seed": 1})
    (out / "cross_validation.json").write_text(whole)
    for other in ({"values": {"seed": 2}}, {"overlays": []}):
        settings = {"overlays": [str(tiny)], "values": {"seed": 1}, "data_root": phantoms, **other}
        with pytest.raises(BadInput, match=f"was begun with other {next(iter(other))}"):
            cross_validate(data_list, out, **settings)
    with pytest.raises(BadInput, match="output_dir: each fold has its own"):
        cross_validate(data_list, out, overlays=[str(tiny)], data_root=phantoms, values={"output_dir": "elsewhere"})
    with pytest.raises(BadInput, match="has the folds 0, 1, got"):
        cross_validate(data_list, out, overlays=[str(tiny)], data_root=phantoms, values={"seed": 1}, folds=[3])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(BadInput, match="holds other things"):
        cross_validate(data_list, tmp_path / "full", data_root=phantoms)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_folds_of_several_machines_stand_under_one_parent_and_are_put_together(
    data_list: Path, phantoms: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents: list[tuple[str, str]] = []

    def one_row(out: Path, fold: int, *arguments: object, parent: ParentRun, **others: object) -> None:
        parents.append((parent.tracking_uri, parent.run_id))
        (out / f"fold_{fold}").mkdir(exist_ok=True)
        write_csv([{**ROW, "case": f"case_{fold}"}], out / f"fold_{fold}" / "scores.csv")

    monkeypatch.setattr(cross_validation, "do_fold", one_row)
    server = f"sqlite:///{tmp_path}/server/mlflow.db"
    settings = {"overlays": [str(tiny)], "data_root": phantoms, "values": {"tracking_uri": server}}
    for fold in (0, 1):
        cross_validate(data_list, tmp_path / f"machine_{fold}" / "run", folds=[fold], **settings)
    assert parents[0] == parents[1]
    assert parents[0][0] == server
    shutil.move(tmp_path / "machine_1" / "run" / "fold_1", tmp_path / "machine_0" / "run")
    monkeypatch.setattr(cross_validation, "do_fold", lambda *arguments, **others: None)
    rows = cross_validate(data_list, tmp_path / "machine_0" / "run", **settings)
    assert [row["case"] for row in rows] == ["case_0", "case_1"]
    with pytest.raises(BadInput, match="tracking_uri must be sqlite"):
        cross_validate(data_list, tmp_path / "other", **{**settings, "values": {"tracking_uri": "nowhere"}})


def test_a_plans_prepared_cases_are_used(
    data_list: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, object]] = []

    def remember(out: Path, fold: int, *arguments: object, values: dict[str, object], **others: object) -> None:
        given.append(values)

    monkeypatch.setattr(cross_validation, "do_fold", remember)
    monkeypatch.setattr(cross_validation, "scores_of", lambda *arguments: [ROW])
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**WHOLE_PLAN, "cache_dir": "/prepared/cases"}))
    cross_validate(data_list, tmp_path / "a", data_root=phantoms, folds=[0])
    cross_validate(data_list, tmp_path / "b", data_root=phantoms, folds=[0], overlays=[str(tmp_path / "plan.yaml")])
    assert given[0]["cache_dir"] == str(tmp_path / "a" / "cases")
    assert "cache_dir" not in given[1]  # that of the plan counts


def test_folds_are_the_data_lists_own_or_nnunets(data_list: Path, phantoms: Path) -> None:
    assert folds_of(read_data_set(data_list, data_root=phantoms), data_list) == [0, 1]
    assert folds_of(read_data_set(phantoms), phantoms) == [0, 1, 2, 3, 4]


def test_too_few_cases_are_refused(tmp_path: Path, phantoms: Path) -> None:
    for folder, suffix in (("images", "_0000"), ("labels", "")):
        (tmp_path / folder).mkdir()
        source = phantoms / ("TrainingImg" if suffix else "TrainingMask")
        for k in range(4):
            (tmp_path / folder / f"case_{k}.nii.gz").symlink_to(source / f"train_00{k}{suffix}.nii.gz")
    with pytest.raises(BadInput, match="4 cases are too few for 5 folds"):
        cross_validate(tmp_path, tmp_path / "run")
