"""Can a training be looked up in MLflow afterwards, however it ended?"""

from __future__ import annotations

import atexit
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Engine, Events
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointSaver, StatsHandler, ValidationHandler

from cyclic_committee.scripts.handlers.history import History
from cyclic_committee.scripts.handlers.mlflow_settings import hyper_parameters, plain, without_password
from cyclic_committee.scripts.handlers.mlflow_tracking import MLflowTracking
from cyclic_committee.scripts.runtime.atomic_files import HOST, UNFINISHED
from cyclic_committee.scripts.runtime.errors import BadInput

CONFIG = {
    "_meta_": {"version": "1"},
    "seed": 3,
    "spacing": [1.0, 2.0],
    "device": "$torch.device('cpu')",
    "long": "$" + "x" * 300,
    "select": {"_target_": "scripts.training.selection.CyclicCommittee", "keep": 0.75},
    "train": {"trainer": {"max_epochs": "@epochs"}, "handlers": [{"_target_": "A"}]},
    "odd#key%": Path("a") / "b",
}
Make = Callable[..., MLflowTracking]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with MLflow's tables: to make them anew takes two seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def make(tmp_path: Path, empty_store: Path) -> Make:
    folder = tmp_path / "a folder"  # a space must do no harm
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")

    def _make(**settings: Any) -> MLflowTracking:
        usual = {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "experiment_name": "flare21", "output_dir": folder}
        return MLflowTracking(**{**usual, **settings})

    return _make


def train(
    tracking: MLflowTracking, *others: Any, epochs: int = 2, step: Callable[..., Any] = lambda *_: None
) -> Engine:
    """Train with the handlers `others` behind the tracking."""
    trainer = Engine(step)

    @trainer.on(Events.EPOCH_COMPLETED)
    def measure(engine: Engine) -> None:
        engine.state.epoch_statistics = {"loss/member_0": 1 / engine.state.epoch, "nan": math.nan, "inf": math.inf}

    for handler in (tracking, *others):
        handler.attach(trainer)
    trainer.run([0], max_epochs=epochs)
    return trainer


def store_of(tracking: MLflowTracking) -> MlflowClient:
    return MlflowClient(tracking_uri=tracking.tracking_uri)


def runs_of(tracking: MLflowTracking) -> list[Run]:
    """Return the runs, the newest first."""
    client = store_of(tracking)
    experiment = client.get_experiment_by_name(tracking.experiment_name)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def points_of(tracking: MLflowTracking, name: str) -> list[tuple[int, float]]:
    (run,) = runs_of(tracking)
    return [(point.step, point.value) for point in store_of(tracking).get_metric_history(run.info.run_id, name)]


def artifacts_of(tracking: MLflowTracking) -> Path:
    (run,) = runs_of(tracking)
    return Path(store_of(tracking).download_artifacts(run.info.run_id, ""))


def test_a_finished_training_can_be_looked_up(make: Make, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "curves.png").write_bytes(b"png")
    (tmp_path / "selection.csv").write_text("case,slice")
    files = [str(tmp_path / name) for name in ("pictures", "selection.csv", "missing.json")]
    tracking = make(config=CONFIG, artifacts=files)
    train(tracking)

    (run,) = runs_of(tracking)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a folder"
    assert run.data.tags["output_dir"] == str(tmp_path / "a folder")
    assert run.data.tags["torch"] == torch.__version__
    assert run.data.tags["numpy"] == np.__version__
    assert points_of(tracking, "loss/member_0") == [(1, 1.0), (2, 0.5)]
    assert not {"nan", "inf", "epoch"} & run.data.metrics.keys()
    assert run.data.params == {
        "seed": "3",
        "spacing": "[1.0, 2.0]",
        "device": "$torch.device('cpu')",
        "select._target_": "scripts.training.selection.CyclicCommittee",
        "select.keep": "0.75",
        "train.trainer.max_epochs": "@epochs",
        "odd_key_": str(Path("a") / "b"),
    }
    folder = artifacts_of(tracking)
    assert folder.is_relative_to(tmp_path / "a folder" / "mlruns")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.yaml", "environment.txt", "pictures/curves.png", "selection.csv"}
    assert yaml.safe_load((folder / "config.yaml").read_text())["select"] == CONFIG["select"]
    environment = (folder / "environment.txt").read_text()
    assert f"torch=={torch.__version__}\n" in environment
    assert socket.gethostname() not in environment


def test_no_temporary_folder_outlives_a_killed_training_for_ever(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    mkdtemp = tempfile.mkdtemp

    def noted(suffix: Any = None, prefix: Any = None, dir: Any = None) -> str:
        made.append(mkdtemp(suffix, prefix, dir))
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", noted)
    train(make(config=CONFIG))
    assert made
    assert all(Path(path).name.startswith(f"{UNFINISHED}{HOST}-{os.getpid()}-") for path in made)


def test_a_child_is_one_run_however_often_it_was_killed(make: Make) -> None:
    def killed(**settings: Any) -> MLflowTracking:
        tracking = make(**settings)
        tracking.start(Engine(lambda *_: None))
        tracking.termination.end()
        atexit.unregister(tracking._end)
        return tracking

    begun = killed(parent_run_id="a parent")
    train(make(parent_run_id="a parent"))
    (run,) = runs_of(begun)
    assert (run.info.status, run.info.run_id) == ("FINISHED", begun.run_id)
    train(make(parent_run_id="a parent"))  # what had finished is done again
    killed(parent_run_id="another parent")
    for _ in range(2):  # without a parent nobody says that it is the same training
        killed()
    assert len(runs_of(begun)) == 5


def test_the_rows_of_the_history_are_what_is_logged(make: Make, tmp_path: Path) -> None:
    validator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.zeros(1, 1, 2, 2)}],
        network=torch.nn.Identity(),
        val_handlers=[],
    )
    validator.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.state.metrics.update(dsc_liver=0.9))
    validation = ValidationHandler(interval=2, validator=validator)
    with_history = make(experiment_name="with history")
    order = [validation, History(tmp_path, validator=validator), with_history]
    train(order[0], *order[1:], epochs=3)
    alone = make(experiment_name="alone", validator=validator)
    train(validation, alone, epochs=3)
    for tracking in (with_history, alone):
        assert points_of(tracking, "validation/dsc_liver") == [(2, 0.9)]
        assert len(points_of(tracking, "loss/member_0")) == 3


def test_more_than_a_hundred_settings_are_logged(make: Make) -> None:
    tracking = make(config={f"setting_{number}": number for number in range(250)} | {"long": "x" * 9000})
    train(tracking, epochs=1)
    (run,) = runs_of(tracking)
    assert len(run.data.params) == 251


def test_a_resumed_training_continues_its_newest_run(make: Make, tmp_path: Path) -> None:
    train(make(output_dir=str(tmp_path / "other"), config={"epochs": 1}), epochs=1)
    train(make(config={"epochs": 1}), epochs=1)
    train(make(config={"epochs": 2}), epochs=1)
    tracking = make(config={"epochs": 9, "new": 1}, resume=True)
    before = runs_of(tracking)
    train(tracking, epochs=3)
    after = runs_of(tracking)
    assert [run.info.run_id for run in after] == [run.info.run_id for run in before]
    assert after[0].data.params == {"epochs": "2", "new": "1"}
    assert after[0].info.status == "FINISHED"
    assert [run.data.metrics["loss/member_0"] for run in after] == [1 / 3, 1.0, 1.0]


def test_a_resumed_training_that_was_never_tracked_gets_a_run(make: Make) -> None:
    tracking = make(resume=True)
    train(tracking, epochs=1)
    assert len(runs_of(tracking)) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("no memory"), "FAILED"), (KeyboardInterrupt("stop"), "KILLED")]
)
def test_an_exception_ends_the_run_and_goes_on(make: Make, error: BaseException, status: str) -> None:
    def step(engine: Engine, batch: object) -> None:
        if engine.state.epoch == 2:
            raise error

    tracking = make()
    with pytest.raises(type(error), match=str(error)):
        train(tracking, step=step)
    assert runs_of(tracking)[0].info.status == status
    assert points_of(tracking, "loss/member_0") == [(1, 1.0)]


def test_a_training_that_is_told_to_end_is_killed_not_running(make: Make) -> None:
    def step(engine: Engine, batch: object) -> None:
        if engine.state.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)  # nobody waits for it

    tracking = make()
    with pytest.raises(SystemExit) as caught:
        train(tracking, step=step)
    assert caught.value.code == 128 + signal.SIGTERM
    assert runs_of(tracking)[0].info.status == "KILLED"
    assert points_of(tracking, "loss/member_0") == [(1, 1.0)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("error", [None, RuntimeError("the connection is lost")])
def test_being_told_to_end_while_the_run_is_ended_changes_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    def set_terminated(client: MlflowClient, run_id: str, status: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        end(client, run_id, status)

    def step(engine: Engine, batch: object) -> None:
        if error is not None:
            raise error

    end = MlflowClient.set_terminated
    monkeypatch.setattr(MlflowClient, "set_terminated", set_terminated)
    tracking = make()
    with nullcontext() if error is None else pytest.raises(RuntimeError, match="the connection is lost"):
        train(tracking, step=step)
    assert runs_of(tracking)[0].info.status == ("FINISHED" if error is None else "FAILED")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_run_that_no_handler_ended_is_killed_when_python_ends(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(engine: Engine, batch: object) -> None:
        raise RuntimeError("the connection is lost")

    def told_to_end(engine: Engine, error: BaseException) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    at_exit: list[Callable[[], object]] = []
    monkeypatch.setattr(atexit, "register", lambda function, *given: at_exit.append(partial(function, *given)))
    tracking, trainer = make(), Engine(step)
    trainer.add_event_handler(Events.EXCEPTION_RAISED, told_to_end)  # before `fail`
    tracking.attach(trainer)
    with pytest.raises(SystemExit):
        trainer.run([0])
    assert runs_of(tracking)[0].info.status == "RUNNING"
    for function in reversed(at_exit):
        function()
    assert runs_of(tracking)[0].info.status == "KILLED"


def test_who_handles_sigterm_already_goes_on_doing_so(make: Make) -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        train(make(), step=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [signal.SIGTERM] * 2


def test_other_handlers_of_an_exception_are_still_called(make: Make, tmp_path: Path) -> None:
    def step(engine: Engine, batch: object) -> None:
        raise RuntimeError("no memory")

    saver = CheckpointSaver(str(tmp_path), {"net": torch.nn.Linear(1, 1)}, save_final=True, final_filename="final.pt")
    tracking = make()
    with pytest.raises(RuntimeError, match="no memory"):
        train(tracking, saver, step=step)
    assert (tmp_path / "final.pt").exists()
    assert runs_of(tracking)[0].info.status == "FAILED"
    with pytest.raises(RuntimeError, match="no memory"):
        train(make(), StatsHandler(name="test"), step=step)


def test_an_exception_before_the_run_began_goes_on(make: Make) -> None:
    trainer = Engine(lambda engine, batch: None)

    @trainer.on(Events.STARTED)
    def stumble(engine: Engine) -> None:
        raise RuntimeError("no data")

    tracking = make()
    tracking.attach(trainer)
    with pytest.raises(RuntimeError, match="no data"):
        trainer.run([0], max_epochs=1)
    assert runs_of(tracking) == []


def test_a_training_that_is_terminated_early_is_finished(make: Make) -> None:
    tracking = make()
    train(tracking, epochs=9, step=lambda engine, batch: engine.terminate())
    assert runs_of(tracking)[0].info.status == "FINISHED"


def test_an_epoch_that_the_store_did_not_take_is_sent_with_the_next(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, refused = MlflowClient.log_batch, []

    def log_batch(self: MlflowClient, run_id: str, metrics: Any = (), **rest: Any) -> None:
        if metrics and not refused:
            refused.append(metrics)
            raise MlflowException("the server is on holiday")
        real(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    tracking = make()
    with caplog.at_level(logging.WARNING):
        train(tracking)
    assert "didn't take epoch 1: the server is on holiday" in caplog.text
    assert points_of(tracking, "loss/member_0") == [(1, 1.0), (2, 0.5)]
    assert runs_of(tracking)[0].info.status == "FINISHED"


def test_a_store_that_does_not_answer_holds_no_epoch_up_and_gets_all_when_it_does(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, answers, answered = MlflowClient.log_batch, threading.Event(), []

    def log_batch(self: MlflowClient, run_id: str, metrics: Any = (), **rest: Any) -> None:
        if metrics:
            answered.append(answers.wait(60))
        real(self, run_id, metrics=metrics, **rest)

    def step(engine: Engine, batch: object) -> None:
        if engine.state.epoch == 5:  # all epochs before it have ended, though nothing of them was taken
            answers.set()

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    tracking = make()
    train(tracking, epochs=5, step=step)
    assert all(answered)
    assert points_of(tracking, "loss/member_0") == [(epoch, 1 / epoch) for epoch in range(1, 6)]
    assert runs_of(tracking)[0].info.status == "FINISHED"


def test_a_run_that_was_killed_on_the_spot_is_ended_by_the_next_training_there(make: Make, tmp_path: Path) -> None:
    def killed(**settings: Any) -> None:
        tracking = make(**settings)
        tracking.start(Engine(lambda *_: None))
        tracking.termination.end()
        atexit.unregister(tracking._end)

    killed()
    killed(output_dir=str(tmp_path / "other"))  # may be going on
    tracking = make()
    train(tracking, epochs=1)
    status = {run.info.status: run.data.tags["output_dir"] for run in runs_of(tracking)}
    assert status == {
        "FINISHED": str(tmp_path / "a folder"),
        "KILLED": str(tmp_path / "a folder"),
        "RUNNING": str(tmp_path / "other"),
    }
    assert not (tmp_path / "a folder" / ".mlflow_run").exists()


def test_a_deleted_experiment_is_refused_by_name(make: Make) -> None:
    tracking = make()
    client = store_of(tracking)
    client.delete_experiment(client.create_experiment("flare21"))
    with pytest.raises(BadInput, match="experiment_name 'flare21' is deleted"):
        train(tracking)


def test_the_terminal_stays_quiet_while_a_database_is_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path}/new/folder/mlflow.db"
    train(MLflowTracking(tracking_uri=uri, experiment_name="a", output_dir=str(tmp_path)), epochs=1)
    assert (tmp_path / "new" / "folder" / "mlflow.db").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "uri",
    ["", "runs", "/data/runs", "file:///data/runs", "sqlite://runs.db", "sqlite:///", "sqlite:///:memory:", "http://"],
)
def test_an_address_that_mlflow_cannot_use_is_refused_with_what_to_write(make: Make, uri: str) -> None:
    with pytest.raises(BadInput, match=r"tracking_uri must be sqlite:///path/to/mlflow.db or http\(s\)"):
        make(tracking_uri=uri)


def test_a_database_that_cannot_be_written_is_refused_at_once(make: Make, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database " * 100)
    (tmp_path / "folder.db").mkdir()
    for name in ("text.db", "folder.db", "text.db/below.db"):
        with pytest.raises(BadInput, match=r"tracking_uri sqlite:.*db can't be used .*--track false"):
            train(make(tracking_uri=f"sqlite:///{tmp_path}/{name}"))


@pytest.fixture
def not_mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve something else than MLflow."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_that_is_not_mlflow_is_refused_before_the_training(make: Make, not_mlflow: str) -> None:
    tracking = make(tracking_uri=not_mlflow)
    with pytest.raises(BadInput, match=rf"tracking_uri {not_mlflow} can't be used .*--track false"):
        train(tracking)


def test_a_server_that_cannot_be_reached_is_refused_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(BadInput, match=rf"tracking_uri http://{address} can't be used .*--track false") as caught:
            train(make(tracking_uri=f"http://me:secret@{address}"))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_refused_in_seconds(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("cyclic_committee.scripts.handlers.mlflow_store.PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BadInput, match=rf"tracking_uri {address} can't be used .*imed out.*--track false"):
            train(make(tracking_uri=address))


def test_a_config_becomes_plain_whatever_is_in_it() -> None:
    odd = {1: (np.float32(0.5), torch.tensor(2), np.int64(3)), "path": Path("x"), "dtype": torch.float16, "none": None}
    assert plain(odd) == {"1": [0.5, 2, 3], "path": "x", "dtype": "torch.float16", "none": None}
    assert yaml.safe_load(yaml.safe_dump(plain(odd))) == plain(odd)


def test_passwords_in_addresses_are_neither_settings_nor_kept() -> None:
    assert plain({"uri": "https://me:secret@host/x"}) == {"uri": "https://host/x"}
    assert without_password("sqlite:///a@b.db") == "sqlite:///a@b.db"


def test_long_lists_and_deep_levels_are_not_settings() -> None:
    config = {"a": {"b": {"c": {"d": 1}, "e": 2}}, "many": list(range(21)), "few": [1], "nested": [[1]], "on": True}
    assert hyper_parameters(config) == {"a.b.e": "2", "few": "[1]", "on": "True"}
