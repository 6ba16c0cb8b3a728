"""Under which run in MLflow do several trainings stand together?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from .run_settings import valid_key

EXPERIMENT = "cyclic-committee"


@dataclass(frozen=True)
class ParentRun:
    """A run whose children are trainings; its store lies beside them."""

    tracking_uri: str
    run_id: str

    @classmethod
    def begin(cls, folder: Path, *, name: str) -> ParentRun:
        """Open the run of a folder, or the one that it has already.

        Args:
            folder: of the store.
            name: of the run.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        folder.mkdir(parents=True, exist_ok=True)
        tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
        client = MlflowClient(tracking_uri=tracking_uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        location = (folder / "mlruns").as_uri()
        number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, location)
        tag = "cross_validation"
        known = client.search_runs([number], filter_string=f"tags.{tag} = 'parent'")
        run = known[0] if known else client.create_run(number, run_name=name, tags={tag: "parent"})
        client.update_run(run.info.run_id, status="RUNNING")
        return cls(tracking_uri, run.info.run_id)

    def end(self, summary: Mapping[str, Any]) -> None:
        """Log the summary of `score_report.summarise`, and end the run."""
        client = MlflowClient(tracking_uri=self.tracking_uri)
        for organ, scores in {**summary["organs"], "mean": summary["mean"]}.items():
            for score in ("dsc", "nsd"):
                client.log_metric(self.run_id, valid_key(f"{score}_{organ}"), scores[score]["mean"])
        client.set_terminated(self.run_id)
