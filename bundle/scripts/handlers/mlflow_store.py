"""MLflow's tracking store: reaching it, and making its database whole."""

from __future__ import annotations

import re
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ..runtime.atomic_files import put_in_place, unfinished_path
from ..runtime.errors import BadInput
from .mlflow_settings import without_password

SQLITE = "sqlite:///"
PATIENCE_S = 10  # for an answer
# what a failing store raises; the errors of requests are OSErrors
LOST = (MlflowException, OSError, ValueError, sqlite3.Error)


def check_address(tracking_uri: str) -> None:
    """Raise BadInput unless `tracking_uri` is that of a database or a server."""
    if not re.match(r"sqlite:///[^:]|https?://[^/:]", tracking_uri):
        raise BadInput(
            f"tracking_uri must be sqlite:///path/to/mlflow.db or http(s)://server:port, "
            f"got {without_password(tracking_uri)!r}: MLflow can't use plain files and folders any more"
        )


def unusable(tracking_uri: str, error: Exception) -> BadInput:
    """Return the error that tells why the store can't be used."""
    return BadInput(
        f"tracking_uri {without_password(tracking_uri)} can't be used ({brief(error)}): correct it, "
        f"or switch tracking off with --track false"
    )


def reach(tracking_uri: str) -> None:
    """Find out in seconds what MLflow would retry for minutes: whether the store is there, and answers."""
    if tracking_uri.startswith(SQLITE):
        database = database_of(tracking_uri)
        database.parent.mkdir(parents=True, exist_ok=True)
        make_database(database)
        with closing(sqlite3.connect(database, timeout=10)) as connection:
            connection.execute("BEGIN IMMEDIATE")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no secret is sent, so a certificate that isn't known does no harm here
        address = f"{without_password(tracking_uri).rstrip('/')}/health"
        requests.get(address, timeout=PATIENCE_S, verify=False, allow_redirects=False)  # any answer will do


def make_database(database: Path) -> None:
    """Make a store's database unless it is there: whole, as MLflow can't use one whose making was interrupted."""
    if database.exists():
        return
    with FileLock(database.with_name(f".{database.name}.lock")):
        if database.exists():  # by another training, meanwhile
            return
        unfinished = unfinished_path(database)
        client = MlflowClient(tracking_uri=f"{SQLITE}{unfinished}")
        client.search_experiments()
        close(client)
        put_in_place(unfinished, database)


def close(client: MlflowClient) -> None:
    """Close a store's database: MLflow keeps it open, and can't be asked to close it."""
    store = getattr(getattr(client, "_tracking_client", None), "store", None)
    for engine in (getattr(store, "engine", None), getattr(store, "read_engine", None)):
        if engine is not None:
            engine.dispose()


def database_of(tracking_uri: str) -> Path:
    """Return the file of a sqlite store."""
    return Path(tracking_uri.removeprefix(SQLITE).split("?")[0])


def brief(error: Exception) -> str:
    """Return an error's text in one line, without passwords."""
    return without_password(" ".join(str(error).split()))[:300]
