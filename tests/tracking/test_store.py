"""A store that fails, was moved, was tampered with, or is large."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from cvexp.errors import UserError
from cvexp.tracking.run import Run as OpenRun
from cvexp.tracking.store import connect
from cvexp.training.module import TrainingModule
from tests.helpers import TINY, TINY_SEGMENTATION, TRACKING, Outcome, finish, mlflow_server, runs, start, store

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


def fails_at(monkeypatch: pytest.MonkeyPatch, method: str, step: int) -> None:
    """Let a method of MLflow's client fail from its `step`-th call of training on."""
    original = getattr(MlflowClient, method)
    calls = 0

    def failing(self: MlflowClient, run_id: str, *arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += method != "log_batch" or "metrics" in keywords
        if calls >= step:
            raise MlflowException("(sqlite3.OperationalError) database or disk is full")
        return original(self, run_id, *arguments, **keywords)

    monkeypatch.setattr(MlflowClient, method, failing)


@pytest.mark.parametrize("method", ["log_batch", "log_artifact", "set_terminated"])
def test_a_store_that_fails_gets_later_what_it_lacks(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    with monkeypatch.context() as patch:
        fails_at(patch, method, step=1 if method == "set_terminated" else 2)
        outcome = cvexp(*TINY, "dataset.root=data")
    assert outcome.code == 0, outcome.message
    assert "database or disk is full" in outcome.message
    assert "task=sync" in outcome.message
    (run,) = runs()
    assert run.info.status == "RUNNING"
    assert cvexp("task=sync").code == 0
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in store().get_metric_history(run.info.run_id, "train/loss")] == list(range(8))
    assert "error" not in run.data.tags


def test_a_folder_that_was_deleted_is_made_again_in_the_same_process() -> None:
    for _ in range(3):
        opened = connect(TRACKING)
        experiment = opened.client.get_experiment_by_name("cvexp")
        assert experiment is not None
        run_id = opened.client.create_run(experiment.experiment_id).info.run_id
        with contextlib.closing(sqlite3.connect("outputs/mlflow.db")) as database:
            assert database.execute("SELECT run_uuid FROM runs").fetchall() == [(run_id,)]
        shutil.rmtree("outputs")


@pytest.mark.parametrize(("task", "comes_back"), [("dino", False), ("attention", True)])
def test_a_server_that_goes_away_in_mid_run(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, task: str, comes_back: bool
) -> None:
    """A real one. The training goes on, and in the end the record is that of an undisturbed run."""
    arguments = ["--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", "artifacts"]
    settings = [f"task={task}", *(TINY if task == "dino" else TINY_SEGMENTATION), "dataset.root=data"]
    original = TrainingModule.on_train_batch_start
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second, monkeypatch.context() as patch:
        address = first.enter_context(mlflow_server(*arguments))
        port = address.rpartition(":")[2]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert cvexp(*settings).code == 0

        def on_train_batch_start(self: TrainingModule, *arguments_: Any) -> Any:
            if self.global_step == 2:
                first.close()
            if self.global_step == 4 and comes_back:
                second.enter_context(mlflow_server(*arguments, port=port))
            return original(self, *arguments_)

        patch.setattr(TrainingModule, "on_train_batch_start", on_train_batch_start)
        outcome = cvexp(*settings)
        assert outcome.code == 0, outcome.message
        if not comes_back:
            assert "task=sync" in outcome.message
            second.enter_context(mlflow_server(*arguments, port=port))
            assert cvexp("task=sync").code == 0
        client = MlflowClient(address)
        experiment = client.get_experiment_by_name("cvexp")
        assert experiment is not None
        other, undisturbed = client.search_runs([experiment.experiment_id])
        assert (other.info.status, undisturbed.info.status) == ("FINISHED", "FINISHED")
        assert content(client, other) == content(client, undisturbed)


def content(client: MlflowClient, run: Run) -> dict[str, Any]:
    """Return all that a server has of a run, but what measures the machine or names the run."""

    def files(folder: str | None) -> list[str]:
        items = client.list_artifacts(run.info.run_id, folder)
        inner = [file for item in items if item.is_dir for file in files(item.path)]
        return inner + [item.path.partition("+timestamp")[0] for item in items if not item.is_dir]

    names = [name for name in run.data.metrics if not name.startswith(("speed/", "system/"))]
    assert run.inputs is not None
    return {
        "metrics": {
            name: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))
            for name in names
        },
        "params": run.data.params,
        "tags": sorted(run.data.tags),
        "inputs": sorted(each.dataset.digest for each in run.inputs.dataset_inputs),
        "files": sorted(files(None)),
    }


def test_closing_tries_each_step_whatever_the_others_do(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while metrics can't be written: the run is KILLED nevertheless."""
    uploaded = []

    def interrupted(*_: object, **__: object) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError("full")

        monkeypatch.setattr(OpenRun, "drain", fail)
        monkeypatch.setattr(OpenRun, "upload_checkpoints", lambda self: uploaded.append(self.id))
        raise KeyboardInterrupt

    monkeypatch.setattr("cvexp.training.pretraining.fit", interrupted)
    assert cvexp(*TINY).code == 130
    assert cvexp("task=sync").code == 0
    (run,) = runs()
    assert run.info.status == "KILLED"
    assert uploaded == [run.info.run_id]


def test_an_invalid_request_is_a_bug_and_shows_its_traceback(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(module: Any, *_: object) -> None:
        module.sink.log_metrics({"a&b": 1.0}, 0)
        module.sink.flush()

    monkeypatch.setattr("cvexp.training.pretraining.fit", fit)
    monkeypatch.setattr("cvexp.report.explorer.log_explorer", lambda *_: None)
    with pytest.raises(MlflowException, match="a&b"):
        cvexp(*TINY)
    assert runs()[0].info.status == "FAILED"


def test_a_killed_loader_worker_is_one_message(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    from cvexp.data.crops import CropBatches

    original = CropBatches.__getitem__

    def killed(self: CropBatches, keys: list[tuple[int, int]]) -> Any:
        if torch.utils.data.get_worker_info() is not None and keys[0][0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, keys)

    with monkeypatch.context() as patch:
        patch.setattr(CropBatches, "__getitem__", killed)
        outcome = cvexp(*TINY, "loader.num_workers=1")
    assert outcome.code == 1
    assert len(outcome.message.strip().splitlines()) == 1, outcome.message
    assert "loader.num_workers" in outcome.message
    assert runs()[0].info.status == "FAILED"
    assert cvexp(f"resume={runs()[0].info.run_id}").code == 0


@pytest.mark.parametrize("copied", [False, True])
def test_a_moved_outputs_folder_goes_on(cvexp: Callable[..., Outcome], copied: bool) -> None:
    """Runs are resumed and used from there, and nothing is written to the former place."""
    finish(start("-m", *TINY, "tracking.folder=first", "seed=1", "trainer.max_steps=1,2"))  # MLflow caches places
    newest = runs(Path("first"))[0]
    store(Path("first")).set_terminated(newest.info.run_id, "KILLED")
    before = sorted(Path("first").rglob("*"))
    if copied:
        shutil.copytree("first", "second")
    else:
        Path("first").rename("second")
    resumed = cvexp("tracking.folder=second", f"resume={newest.info.run_id}")
    assert resumed.code == 0, resumed.message
    neighbors = cvexp("tracking.folder=second", "task=neighbors", "trainer.accelerator=cpu")
    assert neighbors.code == 0, neighbors.message
    assert all("/second/" in run.info.artifact_uri for run in runs(Path("second")))
    assert sorted(Path("first").rglob("*")) == (before if copied else [])


def damage_yaml(folder: Path) -> None:
    (folder / "config.yaml").write_text("seed: [1, 2\n  : }")


def text_for_yaml(folder: Path) -> None:
    (folder / "config.yaml").write_text("just text")


def truncate_embedding(folder: Path) -> None:
    for path in (folder / "embeddings").iterdir():
        path.write_bytes(path.read_bytes()[:500])


def mismatch_embedding(folder: Path) -> None:
    for path in (folder / "embeddings").iterdir():
        with np.load(path) as content:
            arrays = dict(content)
        np.savez(path, **{**arrays, "labels": arrays["labels"][:-1]})


def remove_embedding(folder: Path) -> None:
    for path in (folder / "embeddings").iterdir():
        path.write_text("")


@pytest.mark.parametrize(
    "damage", [damage_yaml, text_for_yaml, truncate_embedding, mismatch_embedding, remove_embedding]
)
def test_damaged_artifacts_are_named(cvexp: Callable[..., Outcome], damage: Callable[[Path], None]) -> None:
    assert cvexp(*TINY, "trainer.max_epochs=1").code == 0
    (run,) = runs()
    damage(Path("outputs/artifacts") / run.info.run_id / "artifacts")
    outcome = cvexp("task=neighbors", f"run={run.info.run_id}")
    assert outcome.code == 1
    assert len(outcome.message.strip().splitlines()) == 1, outcome.message
    assert run.info.run_id in outcome.message
    assert "config.yaml" in outcome.message or "embeddings/" in outcome.message
    assert "damaged" in outcome.message


def test_a_run_that_cannot_be_read_is_left_out_unless_it_is_named(
    cvexp: Callable[..., Outcome],
) -> None:
    quick = [*TINY_SEGMENTATION, "trainer.max_steps=1"]
    for task, seed in (("multiclass", 0), ("attention", 0), ("multiclass", 1)):
        assert cvexp(f"task={task}", f"seed={seed}", *quick).code == 0
    damage_yaml(Path("outputs/artifacts") / runs()[0].info.run_id / "artifacts")
    compared = cvexp("task=compare", "task.samples=100", "task.timed_images=1", "trainer.accelerator=cpu")
    assert compared.code == 0, compared.message
    assert f"left out: the run {runs()[1].info.run_id} can't be used" in compared.message
    named = cvexp("task=compare", f"runs=[{','.join(run.info.run_id for run in runs()[1:])}]")
    assert named.code == 1
    assert "config.yaml is damaged" in named.message


def test_a_store_that_cannot_be_used_is_named() -> None:
    Path("outputs").mkdir()
    Path("outputs/mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"mlflow\.db: MLflow can't use this store"):
        connect(TRACKING)
