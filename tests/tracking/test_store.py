"""A store that fails, was moved, was tampered with, or is large."""

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from cvexp.config import TrackingConfig
from cvexp.errors import UserError
from cvexp.tracking.run import Run
from cvexp.tracking.store import connect
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, finish, mlflow_server, runs, start, store

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


SETTINGS = TrackingConfig(folder="outputs", experiment="cvexp", log_every_n_steps=1, system_metrics=False)


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


@pytest.mark.parametrize("method", ["log_batch", "log_image", "log_artifact", "set_terminated"])
def test_a_store_that_fails_ends_the_run_with_one_message(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    with monkeypatch.context() as patch:
        fails_at(patch, method, step=1 if method == "set_terminated" else 2)
        outcome = cvexp(*TINY, "dataset.root=data")
    assert outcome.code == 1, outcome.message
    assert "MLflow's store failed" in outcome.message
    (run,) = runs()
    assert len(outcome.message.strip().splitlines()) == 1
    assert "database or disk is full" in outcome.message
    assert f"resume={run.info.run_id}" in outcome.message
    if method != "set_terminated":
        assert run.info.status == "FAILED"
    resumed = cvexp(f"resume={run.info.run_id}")
    assert resumed.code == 0, resumed.message
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in store().get_metric_history(run.info.run_id, "train/loss")] == list(range(8))
    assert "error" not in run.data.tags


def test_a_server_that_goes_away_in_mid_run(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one; when it is there again, the run goes on."""
    from cvexp.tasks.dino import DINO

    arguments = ["--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", "artifacts"]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    original = DINO.training_step
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        address = stack.enter_context(mlflow_server(*arguments))
        patch.setenv("MLFLOW_TRACKING_URI", address)

        def training_step(self: DINO, *arguments: Any) -> Any:
            if self.global_step == 5:
                stack.close()
            return original(self, *arguments)

        patch.setattr(DINO, "training_step", training_step)
        outcome = cvexp(*TINY)
    assert outcome.code == 1
    assert len(outcome.message.strip().splitlines()) == 1, outcome.message
    (run_id,) = re.findall(r"resume=(\w+)", outcome.message)
    with mlflow_server(*arguments, port=address.rpartition(":")[2]):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        resumed = cvexp(f"resume={run_id}")
        assert resumed.code == 0, resumed.message
        client = MlflowClient(address)
        assert client.get_run(run_id).info.status == "FINISHED"
        assert [metric.step for metric in client.get_metric_history(run_id, "train/loss")] == list(range(8))


def test_what_the_store_does_not_take_stays_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = connect(SETTINGS)
    run_id = str(opened.client.create_run(opened.experiment_id()).info.run_id)
    run = Run(opened, run_id, Path("outputs"), SETTINGS)
    original, sizes = MlflowClient.log_batch, []

    def failing_second(self: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
        sizes.append(len(metrics))
        if len(sizes) == 2:
            raise MlflowException("away")
        original(self, run_id, metrics=metrics)

    monkeypatch.setattr(MlflowClient, "log_batch", failing_second)
    for step in range(2500):
        run.log_metrics({"a": step}, step)
    with pytest.raises(MlflowException):
        run.flush()
    run.flush()
    assert sizes == [1000, 1000, 1000, 500]
    assert [step for step, _ in run.history("a")] == list(range(2500))


def test_closing_tries_each_step_whatever_the_others_do(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the store takes no metrics: the checkpoints go to it, and the run is KILLED."""
    uploaded = []

    def interrupted(*_: object, **__: object) -> None:
        def fail(*_: object, **__: object) -> None:
            raise MlflowException("away")

        monkeypatch.setattr(Run, "flush", fail)
        monkeypatch.setattr(Run, "upload_checkpoints", lambda self: uploaded.append(self.id))
        raise KeyboardInterrupt

    monkeypatch.setattr("cvexp.training.pretraining.fit", interrupted)
    assert cvexp(*TINY).code == 130
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
        connect(SETTINGS)
