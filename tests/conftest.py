"""Fixtures that all tests may use."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import DATA, Outcome, write_coco
from tests.postgres import postgres_cluster
from tests.slurm import slurm_cluster


def _photographs(name: str) -> Path:
    path = DATA / name
    if not path.is_dir():
        pytest.skip(f"needs the photographs in {path}; name their folder with CVEXP_DATA")
    return path


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    return _photographs("coco-mini")


@pytest.fixture(scope="session")
def voc_animals() -> Path:
    return _photographs("voc-animals")


@pytest.fixture(scope="session")
def course() -> Path:
    return _photographs("course")


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # so that it is unset afterwards, even if a test has set it
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    # Commands of the documents find the programs of this environment, even if it is not activated.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)


@pytest.fixture(autouse=True)
def _keeps_what_stays_out_of_collections() -> Iterator[None]:
    """Exempt what is left after each test, above all modules, from garbage collection.

    Each run of Lightning collects, and looking through a million objects would take a second each time.
    """
    yield
    if "pytorch_lightning" in sys.modules:
        gc.collect()
        gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or else C extensions report what they could not free


@pytest.fixture(autouse=True)
def _heeds_ctrl_c() -> Iterator[None]:
    """Let SIGINT interrupt, even if the tests were started in the background, where shells ignore it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.fixture(scope="session")
def _tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of MLflow with all tables, but without any runs."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _copies_tables(_tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the tables of each new store, because MLflow takes a second to create them."""

    def copy(engine: Any) -> None:
        with sqlite3.connect(_tables) as source, sqlite3.connect(engine.url.database) as target:
            source.backup(target)

    monkeypatch.setattr("mlflow.store.db.utils._initialize_tables", copy)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables for sbatch and the like, while Slurm runs on this machine."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster.variables


@pytest.fixture(scope="session")
def postgres() -> Iterator[dict[str, str]]:
    """The environment variables for psql and the like, while PostgreSQL runs on this machine."""
    with postgres_cluster() as variables:
        yield variables


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


@pytest.fixture
def cvexp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `python -m cvexp` in this process, which spares the imports."""
    from cvexp.app import main

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cvexp", *arguments])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
            return Outcome(code, str(error.code) + capsys.readouterr().err)
        finally:
            signal.signal(signal.SIGTERM, handler)
            os.environ.pop("HYDRA_FULL_ERROR", None)  # which main sets for its process
        return Outcome(0, capsys.readouterr().out)

    return run
