"""Which jobs a sweep has, and which of them it runs when it is started again."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cvexp.arguments import quoted
from cvexp.sweeps.grid import combinations
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs, start, store

QUICK = [*TINY, "trainer.max_steps=1"]


def jobs() -> list[Any]:
    return [run for run in runs() if run.data.tags["role"] != "sweep"]


def parents() -> list[Any]:
    return [run for run in runs() if run.data.tags["role"] == "sweep"]


def summary() -> list[dict[str, Any]]:
    """Return the recorded summary of the newest sweep."""
    path = store().download_artifacts(parents()[0].info.run_id, "sweep/summary.json")
    content: list[dict[str, Any]] = json.loads(Path(path).read_text())["jobs"]
    return content


def test_combinations_are_those_of_hydra_without_repetitions() -> None:
    assert combinations(["seed=0,1", "task=dino", "optimizer.lr=range(1,3)"]) == [
        ("seed=0", "task=dino", "optimizer.lr=1"),
        ("seed=0", "task=dino", "optimizer.lr=2"),
        ("seed=1", "task=dino", "optimizer.lr=1"),
        ("seed=1", "task=dino", "optimizer.lr=2"),
    ]
    assert combinations(["seed=0,0,1"]) == [("seed=0",), ("seed=1",)]
    assert combinations(["dataset.classes=['a b','c&d'],[e]"]) == [
        ("dataset.classes=['a b','c&d']",),
        ("dataset.classes=[e]",),
    ]
    with pytest.raises(HydraException, match="optuna"):
        combinations(["optimizer.lr=interval(0,1)"])


@pytest.mark.slow
def test_a_sweep_started_again_runs_none_of_its_finished_jobs(cvexp: Callable[..., Outcome]) -> None:
    sweep = ["-m", *QUICK, "seed=0,1"]
    assert cvexp(*sweep).code == 0
    first = {run.info.run_id for run in jobs()}
    outcome = cvexp(*sweep)
    assert outcome.code == 0
    assert "finished before" in outcome.message
    assert {run.info.run_id for run in jobs()} == first
    assert len(parents()) == 1
    assert parents()[0].info.status == "FINISHED"
    assert [row["status"] for row in summary()] == ["finished before"] * 2
    assert {row["run_id"] for row in summary()} == first
    assert cvexp(*sweep, "hydra.sweeper.skip_finished=false").code == 0
    assert len(jobs()) == 4
    assert len(parents()) == 2


@pytest.mark.slow
def test_a_larger_sweep_runs_only_what_is_new_and_changed_data_are_used_again(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp("-m", *QUICK, "seed=0,1").code == 0
    assert cvexp("-m", *QUICK, "seed=0,1,2").code == 0
    assert [row["status"] for row in summary()] == ["finished before", "finished before", "finished"]
    path = next(Path("outputs/data/shapes").glob("*/train/*"))
    path.write_bytes(path.read_bytes() + b"\0")  # the same picture in another file
    assert cvexp("-m", *QUICK, "seed=0,1,2").code == 0
    assert [row["status"] for row in summary()] == ["finished"] * 3


@pytest.mark.slow
def test_one_failed_job_is_the_only_one_that_runs_again(cvexp: Callable[..., Outcome]) -> None:
    sweep = ["-m", *TINY_SEGMENTATION, "trainer.max_steps=1", "task=multiclass,attention"]
    sweep += ["backbone.weights=null,start.ckpt"]
    outcome = cvexp(*sweep)
    assert outcome.code == 1
    assert "2 of 4 jobs did not finish" in outcome.message
    assert "start.ckpt" in outcome.message
    statuses = {row["settings"]: row["status"] for row in summary()}
    assert [statuses[f"task={task} backbone.weights=null"] for task in ("multiclass", "attention")] == ["finished"] * 2
    failed = [row for row in summary() if row["status"] == "failed"]
    assert all("there is no file 'start.ckpt'" in row["error"] for row in failed)
    assert parents()[0].info.status == "FAILED"
    (finished,) = [run for run in jobs() if run.data.tags["task"] == "multiclass" and run.info.status == "FINISHED"]
    source = store().download_artifacts(finished.info.run_id, "checkpoints/best.ckpt")
    Path("start.ckpt").write_bytes(Path(source).read_bytes())
    assert cvexp(*sweep).code == 0
    assert [row["status"] for row in summary()] == ["finished before", "finished"] * 2
    assert len(jobs()) == 4  # those that failed have gone on
    assert parents()[0].info.status == "FINISHED"


@pytest.mark.slow
def test_weights_that_have_changed_start_jobs_again(cvexp: Callable[..., Outcome]) -> None:
    segment = ["-m", *TINY_SEGMENTATION, "task=multiclass", "trainer.max_steps=1", "backbone.weights=latest:dino"]
    assert cvexp(*QUICK).code == 0
    assert cvexp(*segment).code == 0
    assert cvexp(*segment).code == 0
    assert [row["status"] for row in summary()] == ["finished before"]
    assert cvexp(*QUICK, "optimizer.lr=0.1").code == 0  # a newer pretraining
    assert cvexp(*segment).code == 0
    assert [row["status"] for row in summary()] == ["finished"]


@pytest.mark.slow
def test_jobs_on_finished_runs_are_repeated(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp(*QUICK).code == 0
    for _ in range(2):
        assert cvexp("-m", "task=neighbors", "task.k=2,3", "tracking.system_metrics=false").code == 0
        assert [row["status"] for row in summary()] == ["finished"] * 2


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_like_an_undisturbed_one(cvexp: Callable[..., Outcome]) -> None:
    sweep = ["-m", *TINY, "trainer.max_epochs=8", "task.embed_every_n_epochs=8", "seed=0,1"]
    process = start(*sweep)
    while process.poll() is None and len(list(Path("outputs/artifacts").glob("*/artifacts/checkpoints/last.ckpt"))) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sorted(run.info.status for run in jobs()) == ["FINISHED", "RUNNING"]
    interrupted = next(run for run in jobs() if run.info.status == "RUNNING")
    assert cvexp(*sweep).code == 0
    assert [row["status"] for row in summary()] == ["finished before", "finished"]
    assert summary()[1]["run_id"] == interrupted.info.run_id
    assert len(jobs()) == 2
    losses = [store().get_metric_history(run.info.run_id, "train/loss") for run in jobs()]
    assert cvexp(*sweep, "hydra.sweeper.skip_finished=false").code == 0
    again = [store().get_metric_history(run.info.run_id, "train/loss") for run in jobs()[:2]]
    for first, second in zip(losses, again, strict=True):
        assert [(m.step, m.value) for m in first] == [(m.step, m.value) for m in second]


@pytest.mark.slow
def test_a_job_that_is_still_running_elsewhere_is_not_started_twice(cvexp: Callable[..., Outcome]) -> None:
    sweep = ["-m", *QUICK, "optimizer.args.betas=[2,0.9],[0.9,0.99]"]
    assert cvexp(*sweep).code == 1
    failed = next(run for run in jobs() if run.info.status == "FAILED")
    with FileLock(Path(failed.data.tags["cvexp.folder"]) / "run.lock"):
        outcome = cvexp(*sweep)
    assert outcome.code == 1
    assert "1 of 2 jobs are still running in other processes" in outcome.message
    assert {row["status"]: row["run_id"] for row in summary()}["running"] == failed.info.run_id
    assert len(jobs()) == 2
    assert parents()[0].info.status == "RUNNING"
    assert cvexp(*sweep).code == 1  # now it runs again, and fails again
    assert sorted(row["status"] for row in summary()) == ["failed", "finished before"]
    assert len(jobs()) == 2
    assert cvexp(*sweep, "hydra.sweeper.skip_finished=false").code == 1
    assert len(jobs()) == 4  # neither of them is an earlier one


@pytest.mark.slow
def test_the_same_sweep_cannot_run_twice_at_the_same_time(cvexp: Callable[..., Outcome]) -> None:
    sweep = ["-m", *QUICK, "seed=0"]
    assert cvexp(*sweep).code == 0
    key = parents()[0].data.tags["sweep.key"]
    with FileLock(f"outputs/sweeps/{key}.lock"):
        outcome = cvexp(*sweep)
    assert outcome.code == 1
    assert "the same sweep is running in another process" in outcome.message


PLAIN = ["a", "/data/a-1", "attention-dino-5%-seed1", "runs:/0a/best.ckpt"]
ODD = ["it's", "a\\b", "a\\", "a\\'b", 'say "\\"', "a b,c=d", "[x]", "", "1e3", "null", "True", "a%", "a/", "a."]


@pytest.mark.parametrize("value", [*PLAIN, *ODD])
def test_values_are_quoted_for_hydra_if_they_need_it(value: str) -> None:
    override = OverridesParser.create().parse_override(f"a={quoted(value)}")
    assert override.value() == value
    assert isinstance(override.value(), str)
    assert quoted(value) == value or value in ODD
