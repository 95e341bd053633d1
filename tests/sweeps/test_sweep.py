"""A sweep is one parent run with its jobs as children."""

import gc
import shlex
import signal
import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from omegaconf import DictConfig

from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


def test_a_failing_job_of_a_sweep_is_told_and_does_not_disturb_the_next(
    cvexp: Callable[..., Outcome], caplog: pytest.LogCaptureFixture
) -> None:
    outcome = cvexp("-m", *TINY, "trainer.max_steps=1", "optimizer.args.betas=[2,0.9],[0.9,0.99]")
    assert outcome.code == 1
    assert "optimizer.args: AdamW refuses" in outcome.message
    by_status = {run.info.status: run for run in runs() if run.data.tags["task"] != "sweep"}
    assert set(by_status) == {"FAILED", "FINISHED"}
    assert "AdamW refuses" in by_status["FAILED"].data.tags["error"]


def test_a_sweep_is_one_parent_run_with_its_jobs_as_children(cvexp: Callable[..., Outcome]) -> None:
    quick = [*TINY_SEGMENTATION, "trainer.max_steps=1"]
    assert cvexp("-m", *quick, "task=multiclass,attention", "seed=0,1").code == 0
    *children, parent = runs()
    assert parent.data.tags["task"] == "sweep"
    assert parent.info.status == "FINISHED"
    assert parent.data.params["sweep.task"] == "multiclass,attention"
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    kinds = {(run.data.params["task.name"], run.data.tags["start"], run.data.params["seed"]) for run in children}
    assert kinds == {(task, "random", seed) for task in ("multiclass", "attention") for seed in ("0", "1")}
    assert cvexp(*quick, "task=multiclass").code == 0  # the next one is alone again
    assert "mlflow.parentRunId" not in runs()[0].data.tags


def test_the_parent_of_a_sweep_with_a_failure_has_failed(cvexp: Callable[..., Outcome]) -> None:
    outcome = cvexp("-m", *TINY_SEGMENTATION, "trainer.max_steps=1", "task=multiclass,attention", "task.heads=3")
    assert outcome.code == 1
    by_task = {run.data.tags["task"]: run for run in runs()}
    assert by_task["sweep"].info.status == "FAILED"
    assert "divisor" in by_task["attention"].data.tags["error"]


def test_a_job_that_never_had_a_run_fails_the_sweep_too(cvexp: Callable[..., Outcome]) -> None:
    outcome = cvexp("-m", *TINY_SEGMENTATION, "trainer.max_steps=1", "task=multiclass", "task.dropout=0,2")
    assert outcome.code == 1
    assert {run.data.tags["task"]: run.info.status for run in runs()} == {"sweep": "FAILED", "multiclass": "FINISHED"}


def test_a_sweep_over_tasks_takes_keys_that_only_they_have_and_refuses_misspelt_ones(
    cvexp: Callable[..., Outcome], caplog: pytest.LogCaptureFixture
) -> None:
    outcome = cvexp("-m", *TINY_SEGMENTATION, "task=multiclass,attention", "task.decoder_chanels=4")
    assert outcome.code == 1
    assert "did you mean task.decoder_channels" in outcome.message + caplog.text


def test_a_sweep_makes_a_run_and_a_folder_for_each_job(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp("-m", *TINY, "trainer.max_steps=1", "seed=3,4").code == 0
    jobs = [run for run in runs() if run.data.tags["task"] != "sweep"]
    assert sorted(run.data.params["seed"] for run in jobs) == ["3", "4"]
    assert len({run.data.tags["cvexp.folder"] for run in jobs}) == 2


def test_a_sweep_names_its_jobs_by_what_they_differ_in(cvexp: Callable[..., Outcome]) -> None:
    sweep = ["optimizer.lr=0.001,0.002", "optimizer.args.eps=1e-8,1e-7", "seed=3"]
    assert cvexp("-m", *TINY, "trainer.max_steps=1", *sweep).code == 0
    names = sorted(run.info.run_name for run in runs() if run.data.tags["task"] != "sweep")
    start = "dino-test_resnet-shapes-seed3"
    assert names == [f"{start}-lr={lr}-eps={eps}" for lr in ("0.001", "0.002") for eps in ("1e-07", "1e-08")]
    assert cvexp(*TINY, "trainer.max_steps=1").code == 0
    assert runs()[0].info.run_name == "dino-test_resnet-shapes-seed0"  # the next one is alone again


def test_a_job_records_its_own_command_and_the_sweep_the_whole_one(cvexp: Callable[..., Outcome]) -> None:
    quick = [*TINY_SEGMENTATION, "task=multiclass", "trainer.max_steps=1"]
    assert cvexp("-m", *quick, "seed=0,1").code == 0
    commands = {run.data.tags["task"] + run.data.tags.get("seed", ""): run.data.tags["command"] for run in runs()}
    assert commands["sweep"].startswith("python -m cvexp -m ")
    assert commands["sweep"].endswith(" seed=0,1")
    for seed in (0, 1):
        assert commands[f"multiclass{seed}"].endswith(f" seed={seed}")
        assert " -m cvexp -m" not in commands[f"multiclass{seed}"]
    repeated = shlex.split(commands["multiclass1"])[3:]  # without python -m cvexp
    assert cvexp(*repeated).code == 0
    again, first = runs()[0], next(run for run in runs()[1:] if run.data.params["seed"] == "1")
    assert again.data.params == first.data.params
    assert again.data.metrics["val/loss"] == first.data.metrics["val/loss"]


def test_jobs_leave_nothing_in_the_process(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    import cvexp.command as command
    from cvexp.training.module import TrainingModule

    original: Callable[..., float | None] = command._run
    left: list[Any] = []

    def observed(composed: DictConfig, step: object) -> float | None:
        modules = sum(isinstance(each, TrainingModule) for each in gc.get_objects())
        left.append((modules, psutil.Process().num_fds(), threading.active_count(), signal.getsignal(signal.SIGTERM)))
        return original(composed, step)

    monkeypatch.setattr(command, "_run", observed)
    assert cvexp("-m", *TINY, "trainer.max_steps=1", "loader.num_workers=1", "seed=0,1,2").code == 0
    assert left[1] == left[2]  # of the first job and of both
    assert left[2][0] == 0
