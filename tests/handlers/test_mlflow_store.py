"""MLflow's database."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cyclic_committee.scripts.handlers.mlflow_store import reach
from cyclic_committee.scripts.runtime.atomic_files import UNFINISHED

REACH = "import sys; from cyclic_committee.scripts.handlers.mlflow_store import reach; reach(sys.argv[1])"


@pytest.mark.parametrize("after_s", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_a_database_whose_making_was_killed_is_made_by_the_next_training(tmp_path: Path, after_s: float) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    making = subprocess.Popen([sys.executable, "-c", REACH, uri], stderr=subprocess.DEVNULL)
    while making.poll() is None and not any(path.stat().st_size for path in tmp_path.glob("*mlflow.db")):
        time.sleep(0.01)
    time.sleep(after_s)
    making.send_signal(signal.SIGKILL)
    making.wait()
    reach(uri)
    assert MlflowClient(tracking_uri=uri).search_experiments()
    assert not list(tmp_path.glob(f"{UNFINISHED}*"))


def test_trainings_that_begin_at_once_make_one_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    threads = [threading.Thread(target=reach, args=(uri,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client = MlflowClient(tracking_uri=uri)
    client.create_experiment("one")
    reach(uri)
    assert client.get_experiment_by_name("one")
