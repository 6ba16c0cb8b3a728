"""MLflow tracking of a training."""

from __future__ import annotations

import atexit
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import ignite
import monai
import numpy as np
import torch
import yaml
from ignite.engine import Engine, Events
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from ..runtime.atomic_files import temporary_folder, write_whole
from ..runtime.errors import BadInput
from ..runtime.sigterm import Termination
from .history import epoch_row
from .mlflow_settings import environment, hyper_parameters, plain, valid_key, without_password
from .mlflow_store import LOST, PATIENCE_S, SQLITE, brief, check_address, close, database_of, reach, unusable

PARAMETERS, METRICS = 100, 1000  # MLflow's limits for one request
MOST_AT_END_S = 60
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # MLflow would tell its makers about every run
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(PATIENCE_S),  # 120 by default
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # 7 by default, which take four minutes
}

logger = logging.getLogger(__name__)


class MLflowTracking:
    """Records a training in MLflow: settings, versions, the numbers of every epoch, and files at the end.

    tracking_uri: `sqlite:///path/mlflow.db`, whose files go into `mlruns` beside it, or a server's http(s) address.
    config: the merged config before it is resolved; kept whole as config.yaml, its settings as parameters.
    artifacts: files and folders that are added when the training ends; those that don't exist are passed over.
    parent_run_id: of the run that this one stands under, such as a cross-validation's. It is one run however often it
        is begun: the newest of this parent and `output_dir` that hasn't finished is continued.
    resume: continue the newest run of this experiment and `output_dir`; parameters keep their first values.

    It stands behind History, whose rows it logs, and before StatsHandler and CheckpointSaver: MONAI's handlers of an
    exception raise it again, so ignite never calls those behind them.
    Raises BadInput if the store can't be used, before the training starts. Epochs are sent in the background, one
    request at a time, so that a store which is slow or gone doesn't hold the training up: that costs a warning, and
    what it didn't take is sent with the next epoch. At the end it has a minute. A request waits 10 s for an answer and
    is tried three times, unless MLFLOW_HTTP_REQUEST_TIMEOUT and MLFLOW_HTTP_REQUEST_MAX_RETRIES say otherwise.

    While a run is open, its id lies in the file `.mlflow_run` of `output_dir`: what was killed on the spot is ended as
    KILLED by the next training there.
    """

    def __init__(
        self,
        *,
        tracking_uri: str,
        experiment_name: str,
        output_dir: str,
        run_name: str | None = None,
        parent_run_id: str | None = None,
        config: dict | None = None,
        validator: Engine | None = None,
        resume: bool = False,
        artifacts: Sequence[str] = (),
    ) -> None:
        check_address(tracking_uri)
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.output_dir = str(Path(output_dir).resolve())
        self.run_name = run_name or Path(self.output_dir).name
        self.parent_run_id = parent_run_id
        self.config = plain(config or {})
        self.validator = validator
        self.resume = resume
        self.artifacts = artifacts
        self.client: MlflowClient  # from `start` on
        self.run_id = ""  # none is open
        self.unsent: list[Metric] = []
        self.sending: Future[bool] | None = None
        self.open_run = Path(self.output_dir, ".mlflow_run")
        self.termination = Termination()

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.log_epoch)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def start(self, engine: Engine) -> None:
        """Begin or continue the run, and log what is known before the first epoch."""
        if not engine.has_event_handler(self.reraise, Events.EXCEPTION_RAISED):
            engine.add_event_handler(Events.EXCEPTION_RAISED, self.reraise)  # now, so that it stands behind all others
        for name in ("mlflow", "alembic"):  # they tell on stderr how a database is made
            noisy = logging.getLogger(name)
            noisy.setLevel(max(noisy.level, logging.WARNING))
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            reach(self.tracking_uri)
            self.thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")  # before a run is open that is to be ended
            self.client, self.unsent = MlflowClient(tracking_uri=self.tracking_uri), []
            device = getattr(engine.state, "device", None) or torch.device("cpu")
            self.run_id = self._open_run(self._find_experiment(), device=device)
            self._end_what_was_killed()
            write_whole(self.open_run, self.run_id)
            atexit.register(self._end, "KILLED")  # an exception on the way to `fail` would leave the run open
            self.termination.begin()
            self._log_settings(self.run_id)
        except LOST as error:
            raise unusable(self.tracking_uri, error) from error
        where = without_password(self.tracking_uri)
        how = f": mlflow ui --backend-store-uri {where}" if where.startswith(SQLITE) else f" at {where}"
        logger.info(f"this training is run {self.run_name!r} of experiment {self.experiment_name!r}{how}")

    def log_epoch(self, engine: Engine) -> None:
        """Send the row of the epoch that ended; numbers that aren't finite are left out."""
        epoch, rows = engine.state.epoch, getattr(engine.state, "history", [])
        row = rows[-1] if rows and rows[-1]["epoch"] == epoch else epoch_row(engine, self.validator)
        now_ms = int(time.time() * 1000)
        numbers = {valid_key(name): value for name, value in row.items() if name != "epoch" and math.isfinite(value)}
        self.unsent += [Metric(name, value, now_ms, epoch) for name, value in numbers.items()]
        if self.sending is None or self.sending.done():
            self.sending = self.thread.submit(self._attempt, f"epoch {epoch}", self._send)

    def finish(self, engine: Engine) -> None:
        """Add the files and end the run."""
        self._end("FINISHED", artifacts=[path for path in self.artifacts if os.path.exists(path)])

    def fail(self, engine: Engine, error: BaseException) -> None:
        """End the run as failed, or as killed for KeyboardInterrupt, SIGTERM and SystemExit; the exception goes on."""
        if self.run_id:
            self._end("FAILED" if isinstance(error, Exception) else "KILLED")
        if not engine.has_event_handler(self.reraise, Events.EXCEPTION_RAISED):
            raise error  # by a handler that started before this one

    def reraise(self, engine: Engine, error: BaseException) -> None:
        """Raise the exception once all handlers have seen it: ignite drops what a handler doesn't raise again."""
        raise error

    def _find_experiment(self) -> str:
        name, location = self.experiment_name, None
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            if self.tracking_uri.startswith(SQLITE):
                location = (database_of(self.tracking_uri).parent / "mlruns").resolve().as_uri()
            try:
                return self.client.create_experiment(name, artifact_location=location)
            except MlflowException:
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:  # no other training made it at the same moment
                    raise
        if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            raise BadInput(
                f"experiment_name {name!r} is deleted in {without_password(self.tracking_uri)}: take another name, "
                f"or bring it back with: mlflow experiments restore --experiment-id {experiment.experiment_id}"
            )
        return experiment.experiment_id

    def _open_run(self, experiment_id: str, *, device: torch.device) -> str:
        tags = {"output_dir": self.output_dir, "device": str(device), "python": platform.python_version()}
        tags |= {module.__name__: str(module.__version__) for module in (torch, monai, ignite, np)}
        if self.parent_run_id:
            tags[MLFLOW_PARENT_RUN_ID] = self.parent_run_id
        known = self._runs(experiment_id) if self.resume or self.parent_run_id else ()
        run_id: str | None = next((run.info.run_id for run in known if self._goes_on(run)), None)
        if run_id is None:
            return str(self.client.create_run(experiment_id, tags=tags, run_name=self.run_name).info.run_id)
        self.client.update_run(run_id, status="RUNNING")
        for name, value in tags.items():
            self.client.set_tag(run_id, name, value)
        return run_id

    def _end_what_was_killed(self) -> None:
        """End the run that was open when a training in this folder was killed; `claim` says that none goes on."""
        try:
            killed = self.open_run.read_text(encoding="utf-8")
            if killed != self.run_id and self.client.get_run(killed).info.status == "RUNNING":
                self.client.set_terminated(killed, "KILLED")
        except LOST:  # none, or of another store
            return

    def _goes_on(self, run: Run) -> bool:
        tags = run.data.tags
        interrupted = tags.get(MLFLOW_PARENT_RUN_ID) == self.parent_run_id and run.info.status != "FINISHED"
        return tags.get("output_dir") == self.output_dir and (self.resume or interrupted)

    def _runs(self, experiment_id: str) -> Iterator[Run]:
        """Yield an experiment's runs, the newest first."""
        token: str | None = None
        while True:
            page = self.client.search_runs([experiment_id], order_by=["attributes.start_time DESC"], page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _log_settings(self, run_id: str) -> None:
        known = self.client.get_run(run_id).data.params  # MLflow refuses another value for the same name
        settings = [Param(name, value) for name, value in hyper_parameters(self.config).items() if name not in known]
        for first in range(0, len(settings), PARAMETERS):
            self.client.log_batch(run_id, params=settings[first : first + PARAMETERS], synchronous=True)
        texts = {
            "config.yaml": yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True),
            "environment.txt": environment(),
        }
        with temporary_folder() as folder:  # MLflow's own, of log_text, would outlive a killed training
            for name, text in texts.items():
                Path(folder, name).write_text(text, encoding="utf-8")
            self.client.log_artifacts(run_id, folder)

    def _send(self) -> None:
        while self.unsent:
            some = self.unsent[:METRICS]
            self.client.log_batch(self.run_id, metrics=some, synchronous=True)
            del self.unsent[: len(some)]  # the training may have added others meanwhile

    def _add(self, path: str) -> None:
        if os.path.isdir(path):
            self.client.log_artifacts(self.run_id, path, artifact_path=Path(path).resolve().name)
        else:
            self.client.log_artifact(self.run_id, path)

    def _end(self, status: str, artifacts: Sequence[str] = ()) -> None:
        self.termination.ignore()  # a lost connection and torchrun's SIGTERM come at about the same time
        atexit.unregister(self._end)
        until = time.monotonic() + MOST_AT_END_S
        if self.sending is not None:
            wait([self.sending], timeout=MOST_AT_END_S)
        self.thread.shutdown(wait=False)
        last = {"the last epochs": self._send} if self.unsent else {}
        for what, action in (last | {str(path): partial(self._add, path) for path in artifacts}).items():
            if time.monotonic() < until:
                self._attempt(what, action)
        if self._attempt("the end of the run", partial(self.client.set_terminated, self.run_id, status)):
            self.open_run.unlink(missing_ok=True)
        if self.unsent:
            logger.warning(f"MLflow has {len(self.unsent)} numbers less than {self.output_dir}/history.json.")
        self.run_id = ""
        close(self.client)
        self.termination.end()

    def _attempt(self, what: str, action: Callable[[], None]) -> bool:
        """Return whether it went well; a training of days doesn't end because its records can't be written."""
        try:
            reach(self.tracking_uri)
            action()
            return True
        except LOST as error:
            logger.warning(f"MLflow at {without_password(self.tracking_uri)} didn't take {what}: {brief(error)}")
            return False
