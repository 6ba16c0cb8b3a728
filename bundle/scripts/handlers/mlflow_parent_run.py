"""The parent run in MLflow of several trainings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from .mlflow_settings import valid_key
from .mlflow_store import LOST, SQLITE, check_address, reach, unusable

EXPERIMENT = "cyclic-committee"
TAG = "cross_validation"


@dataclass(frozen=True)
class ParentRun:
    """A run whose children are trainings."""

    tracking_uri: str
    run_id: str

    @classmethod
    def begin(
        cls, folder: Path, *, name: str, tracking_uri: str | None = None, experiment_name: str = EXPERIMENT
    ) -> ParentRun:
        """Open the run of this name, or the one that the store has already.

        Args:
            folder: of the store, unless it is a server's.
            name: of the run.
            tracking_uri: see `MLflowTracking`; by default a database in the folder.
            experiment_name: that the run belongs to.

        Raises:
            BadInput: an address that is none, or a store that can't be used.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        own = tracking_uri is None
        tracking_uri = tracking_uri or f"{SQLITE}{folder / 'mlflow.db'}"
        check_address(tracking_uri)
        try:
            reach(tracking_uri)
            client = MlflowClient(tracking_uri=tracking_uri)
            experiment = client.get_experiment_by_name(experiment_name)
            location = (folder / "mlruns").as_uri() if own else None  # else the store's
            number = experiment.experiment_id if experiment else client.create_experiment(experiment_name, location)
            parents = client.search_runs([number], filter_string=f"tags.{TAG} = 'parent'")
            known = [run for run in parents if own or run.info.run_name == name]
            run = known[0] if known else client.create_run(number, run_name=name, tags={TAG: "parent"})
            client.update_run(run.info.run_id, status="RUNNING")
        except LOST as error:
            raise unusable(tracking_uri, error) from error
        return cls(tracking_uri, run.info.run_id)

    def end(self, summary: Mapping[str, Any]) -> None:
        """Log the summary of `score_table.summarise`, and end the run."""
        client = MlflowClient(tracking_uri=self.tracking_uri)
        for organ, scores in {**summary["organs"], "mean": summary["mean"]}.items():
            for score in ("dsc", "nsd"):
                client.log_metric(self.run_id, valid_key(f"{score}_{organ}"), scores[score]["mean"])
        client.set_terminated(self.run_id)
