"""MLflow's store: connecting to it, finding it after it was moved, reading from it, and what to say when it fails."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlparse

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

from cvexp.config import Tracking
from cvexp.errors import UserError
from cvexp.redaction import hide_secrets

log = logging.getLogger("cvexp")

FAILURES = (MlflowException, SQLAlchemyError, RequestException)

# Where MLflow's tables hold the address of an artifact folder.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)

Content = TypeVar("Content")


def connect(tracking: Tracking) -> mlflow.MlflowClient:
    """A client of the server that MLFLOW_TRACKING_URI names, else of SQLite in `tracking.folder`.

    It is passed on to whatever needs it: `mlflow.set_tracking_uri` would set the variable for the next job of a sweep.

    Raises:
        UserError: when the server doesn't answer, or the store can't be used.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "mlflow"):  # they log each table and migration
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.pop("MLFLOW_RUN_ID", None)  # it would override the parent of a new run
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        client = mlflow.MlflowClient(uri)
        try:
            client.get_experiment_by_name(tracking.experiment)
        except MlflowException as error:
            raise UserError(
                f"MLFLOW_TRACKING_URI: {uri} doesn't answer ({first_line(error)}); start it, correct the address, or "
                "unset the variable to record in tracking.folder="
            ) from error
        return client
    folder = Path(tracking.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # SQLite waits this many seconds for other writers; several runs may start, and log, at the same time.
    uri = f"sqlite:///{folder / 'mlflow.db'}?timeout=120"
    with FileLock(folder / "mlflow.lock"):  # processes that create the tables at the same time break the file
        try:
            client = mlflow.MlflowClient(uri)
            experiment = client.get_experiment_by_name(tracking.experiment)
            if experiment is None:
                client.create_experiment(tracking.experiment, (folder / "artifacts").as_uri())
            elif _was_moved(experiment.artifact_location, folder):
                _correct_addresses(folder, experiment.artifact_location)
        except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
            raise UserError(
                f"{folder / 'mlflow.db'}: MLflow can't use this store ({first_line(error)}); repair it, or choose "
                "another with tracking.folder=PATH"
            ) from error
    return client


def _was_moved(artifacts: str, folder: Path) -> bool:
    """Whether a store that lies in `folder` records another place for its artifacts, and they are here."""
    address = urlparse(artifacts)
    recorded, here = Path(unquote(address.path)), folder / "artifacts"
    if address.scheme != "file" or recorded.name != "artifacts" or not here.is_dir():
        return False
    return not (recorded.exists() and recorded.samefile(here))


def _correct_addresses(folder: Path, artifacts: str) -> None:
    """Replace the former place of a moved store in all addresses that it records."""
    former = Path(unquote(urlparse(artifacts).path)).parent
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db", timeout=120)) as database, database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        changes = [(table, column, former.as_uri(), folder.as_uri(), "1") for table, column in ADDRESSES]
        changes.append(("tags", "value", str(former), str(folder), "key = 'cvexp.folder'"))
        for table, column, old, new, condition in changes:
            if table in tables:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {condition} AND substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )
    log.info("%s was moved here from %s; the addresses in it were corrected", folder, former)


def experiment_id(client: mlflow.MlflowClient, tracking: Tracking) -> str:
    """The id of the configured experiment, which is created on a server that doesn't have it."""
    experiment = client.get_experiment_by_name(tracking.experiment)
    if experiment is None:
        with contextlib.suppress(MlflowException):  # another run may just have created it
            client.create_experiment(tracking.experiment)
        experiment = client.get_experiment_by_name(tracking.experiment)
        assert experiment is not None
    return str(experiment.experiment_id)


def read_artifact(client: mlflow.MlflowClient, run_id: str, path: str, parse: Callable[[Path], Content]) -> Content:
    """Fetch an artifact of a run and read it.

    Args:
        client: Of the store.
        run_id: MLflow's id of the run.
        path: The artifact's.
        parse: Reads the file; whatever it raises means that the file is damaged.

    Raises:
        UserError: naming the run and the artifact, when there is none, it can't be fetched, or it is damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            fetched = Path(client.download_artifacts(run_id, path, folder))
        except (*FAILURES, OSError) as error:
            raise UserError(f"run {run_id}: its artifact {path} can't be fetched ({first_line(error)})") from error
        try:
            return parse(fetched)
        except UserError:
            raise
        except Exception as error:  # what a damaged file makes NumPy, JSON or YAML raise is not limited
            raise UserError(
                f"run {run_id}: its artifact {path} is damaged ({type(error).__name__}: {first_line(error)}); restore "
                "it, or run that task again"
            ) from error


@contextlib.contextmanager
def failures_explained(remedy: str) -> Iterator[None]:
    """Turn a failure of the store into a message.

    A request that MLflow calls invalid keeps its traceback: the mistake is ours.

    Args:
        remedy: Ends the message.

    Raises:
        UserError: in place of what MLflow, its database or the connection to a server raised.
    """
    try:
        yield
    except FAILURES as error:
        if isinstance(error, MlflowException) and error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise
        raise UserError(f"MLflow's store failed ({first_line(error)}); {remedy}") from error


@contextlib.contextmanager
def few_retries() -> Iterator[None]:
    """Let MLflow's client ask a server that does not answer only twice, instead of for minutes."""
    variable = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    former = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        os.environ.pop(variable)
        if former is not None:
            os.environ[variable] = former


def first_line(error: Exception) -> str:
    """The first line of an error's text, without secrets, and not too long for a message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return hide_secrets(lines[0])[:300]
