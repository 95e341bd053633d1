"""MLflow's store: connecting to it, searching it, and reading from it."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import mlflow
from filelock import FileLock
from mlflow.entities import Run as MLflowRun
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

from cvexp.config import TrackingConfig
from cvexp.errors import UserError, opening
from cvexp.redaction import hide_secrets
from cvexp.tracking import moved

FAILURES = (MlflowException, SQLAlchemyError, RequestException)

Content = TypeVar("Content")


class Store:
    """An MLflow store, and the experiment in it that contains the runs.

    Attributes:
        client: MLflow's client. It is passed on to whatever needs it, because `mlflow.set_tracking_uri` would set an
            environment variable for the next job of a sweep.
        experiment: Name of the experiment.
        address: Where the store is, without secrets.
    """

    def __init__(self, client: mlflow.MlflowClient, experiment: str) -> None:
        self.client = client
        self.experiment = experiment

    @property
    def address(self) -> str:
        return hide_secrets(self.client.tracking_uri.partition("?")[0])

    @property
    def ui_command(self) -> str:
        """The command that shows the store in a browser."""
        uri = self.address
        return f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite") else f"open {uri} in a browser"

    def experiment_id(self) -> str:
        """Return the id of the experiment, creating it if the server does not have it."""
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is None:
            with contextlib.suppress(MlflowException):  # another run may just have created it
                self.client.create_experiment(self.experiment)
            experiment = self.client.get_experiment_by_name(self.experiment)
            assert experiment is not None
        return str(experiment.experiment_id)

    def run(self, run_id: str, key: str) -> MLflowRun:
        """Return a run of MLflow.

        Raises:
            UserError: naming the configuration key that asked for the run, if there is no such run.
        """
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            raise UserError(
                f"{key}: there is no run {run_id!r} in {self.address}; `make ui` shows the runs, and "
                "MLFLOW_TRACKING_URI or tracking.folder= selects another store"
            ) from error

    def search(self, query: str) -> Iterator[MLflowRun]:
        """Yield the runs of the experiment that match an MLflow query, newest first.

        The runs are fetched page by page, because most callers need only the first one.
        """
        experiments = [self.experiment_id()]
        token, size = None, 20
        while True:
            page = self.client.search_runs(experiments, query, max_results=size, page_token=token)
            yield from page
            token, size = page.token, 1000
            if not token:
                return

    def history(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """Return all (step, value) pairs of a metric, sorted by step; empty if the run has no such metric."""
        return sorted((metric.step, metric.value) for metric in self.client.get_metric_history(run_id, name))

    def files(self, run_id: str, folder: str | None = None) -> list[str]:
        """List the paths of the artifacts in a folder of a run."""
        return [item.path for item in self.client.list_artifacts(run_id, folder)]

    def read(self, run_id: str, path: str, parse: Callable[[Path], Content]) -> Content:
        """Fetch an artifact of a run and read it.

        Args:
            run_id: MLflow's id of the run.
            path: The artifact's path.
            parse: Reads the file. Any exception means that the file is damaged.

        Raises:
            UserError: naming the run and the artifact, if the artifact is missing or damaged, or can't be fetched.
        """
        with tempfile.TemporaryDirectory() as folder:
            try:
                fetched = Path(self.client.download_artifacts(run_id, path, folder))
            except (*FAILURES, OSError) as error:
                raise UserError(f"run {run_id}: its artifact {path} can't be fetched ({first_line(error)})") from error
            try:
                return parse(fetched)
            except UserError:
                raise
            except Exception as error:  # NumPy, JSON and YAML raise many types for damaged files
                raise UserError(
                    f"run {run_id}: its artifact {path} is damaged ({type(error).__name__}: {first_line(error)}); "
                    "restore it, or run that task again"
                ) from error

    def read_if_there(self, run_id: str, path: str, parse: Callable[[Path], Content]) -> Content | None:
        """Read an artifact like :meth:`read`, but return None if the run does not have it."""
        folder = path.rpartition("/")[0]
        return self.read(run_id, path, parse) if path in self.files(run_id, folder or None) else None


def connect(tracking: TrackingConfig) -> Store:
    """Connect to the server that MLFLOW_TRACKING_URI names, or else to SQLite in `tracking.folder`.

    Raises:
        UserError: if the server does not answer, or the store can't be used.
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
                refusal(error)
                or f"MLFLOW_TRACKING_URI: {uri} doesn't answer ({first_line(error)}); start it, correct the address, "
                "or unset the variable to record in tracking.folder="
            ) from error
        return Store(client, tracking.experiment)
    folder = Path(tracking.folder).absolute()
    with opening("tracking.folder"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "mlflow.lock")  # processes that create the tables at the same time break the file
        lock.acquire()
    # SQLite waits this many seconds for other writers; several runs may start, and log, at the same time.
    uri = f"sqlite:///{folder / 'mlflow.db'}?timeout=120"
    try:
        is_new = not (folder / "mlflow.db").exists()
        if is_new:
            _create_tables(folder)
        client = mlflow.MlflowClient(uri)
        if is_new:  # MLflow keeps connections by address, which are to the old file if that was deleted
            client._tracking_client.store.engine.dispose()
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is None:
            client.create_experiment(tracking.experiment, (folder / "artifacts").as_uri())
        else:
            moved.correct_addresses(folder, experiment.artifact_location)
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        raise UserError(
            f"{folder / 'mlflow.db'}: MLflow can't use this store ({first_line(error)}); repair it, or choose "
            "another with tracking.folder=PATH"
        ) from error
    finally:
        lock.release()
    return Store(client, tracking.experiment)


def _create_tables(folder: Path) -> None:
    """Create the tables in another file first, because MLflow can't use a store that was killed while it was made."""
    for leftover in folder.glob("mlflow.unfinished*"):  # SQLite would take an old journal for that of the new file
        leftover.unlink()
    # MLflow creates tables once for each address, so a name must not be used again if the folder was deleted meanwhile.
    unfinished = folder / f"mlflow.unfinished-{uuid.uuid4().hex}"
    mlflow.MlflowClient(f"sqlite:///{unfinished}").search_experiments()
    unfinished.replace(folder / "mlflow.db")


@contextlib.contextmanager
def failures_explained(remedy: str) -> Iterator[None]:
    """Turn a failure of the store into a message.

    A request that MLflow considers invalid is a bug, and keeps its traceback.

    Args:
        remedy: The end of the message, which says what to do.

    Raises:
        UserError: in place of what MLflow, its database or the connection to a server raised.
    """
    try:
        yield
    except FAILURES as error:
        if isinstance(error, MlflowException) and error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise
        raise UserError(refusal(error) or f"MLflow's store failed ({first_line(error)}); {remedy}") from error


def refusal(error: Exception) -> str | None:
    """Return what to do if a server does not know the user or forbids what was asked, or None for other errors."""
    status = error.get_http_status_code() if isinstance(error, MlflowException) else None
    name = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if status == 401:
        return (
            f"MLFLOW_TRACKING_USERNAME: got {name!r}, but the server does not accept this name with its password; set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write both into ~/.mlflow/credentials"
        )
    if status == 403:
        return (
            f"MLFLOW_TRACKING_USERNAME: the server does not allow {name or 'this user'} to do this "
            f"({first_line(error)}); ask its administrator for the permission EDIT"
        )
    return None


@contextlib.contextmanager
def few_retries() -> Iterator[None]:
    """Let MLflow's client try only twice to reach a server, instead of for minutes."""
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
    """Return the first line of an error's text, without secrets, and short enough for a message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return hide_secrets(lines[0])[:300]
