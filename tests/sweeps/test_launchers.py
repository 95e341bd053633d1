"""Sweeps on real launchers: processes of this machine, Slurm and Ray."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.plugins import Plugins

from tests.helpers import TINY, Outcome, checkpoint, finish, histories, runs, start, store
from tests.slurm import slurm_cluster, wait_until
from tests.sweeps.test_grid import jobs, parents, summary
from tests.test_method_pages import commands

QUICK = [*TINY, "trainer.max_steps=1"]
SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=1"]
SLURM += ["hydra.launcher.timeout_min=60"]


def assert_complete(num_jobs: int) -> None:
    """Fail unless the only sweep has this many finished jobs, each with everything that a run records."""
    (parent,) = parents()
    assert parent.info.status == "FINISHED"
    assert [row["status"] for row in summary()] == ["finished"] * num_jobs
    assert len(jobs()) == num_jobs
    for run in jobs():
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["command"].startswith("python -m cvexp ")
        assert "hydra" not in run.data.tags["command"]
        assert "-m cvexp -m" not in run.data.tags["command"]
        assert {"best/loss", "val/knn_top1", "train/loss"} <= run.data.metrics.keys()
        assert checkpoint(run, "best").keys() == checkpoint(run).keys()
    assert len({run.data.tags["cvexp.folder"] for run in jobs()}) == num_jobs


@pytest.mark.slow
def test_jobs_in_several_processes_are_like_jobs_in_one(cvexp: Callable[..., Outcome]) -> None:
    (of_page,) = commands("joblib.md")
    fewer = {"hydra.launcher.n_jobs=4": "hydra.launcher.n_jobs=2", "seed=0,1,2,3,4,5,6,7": "seed=0,1"}
    finish(start(*(fewer.get(word, word) for word in of_page), *QUICK, "loader.num_workers=1"))
    assert_complete(2)
    by_seed = {run.data.params["seed"]: run.data.metrics["val/loss"] for run in jobs()}
    assert cvexp(*QUICK, "seed=1", "tracking.folder=alone").code == 0
    assert runs(Path("alone"))[0].data.metrics["val/loss"] == by_seed["1"]


@pytest.mark.slow
def test_the_error_of_a_job_in_another_process_is_in_the_summary() -> None:
    process = start(
        "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *QUICK, "optimizer.args.betas=[2,1],[0.5,0.9]"
    )
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    assert [row["status"] for row in summary()] == ["failed", "finished"]
    assert "AdamW refuses" in summary()[0]["error"]
    assert "1 of 2 jobs did not finish" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_ctrl_c_stops_all_jobs_where_they_can_go_on(cvexp: Callable[..., Outcome]) -> None:
    settings = [*TINY, "trainer.max_epochs=12", "task.embed_every_n_epochs=12"]
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = start("-m", *joblib, *settings, "seed=0,1,2", is_group=True)
    wait_until(lambda: len(list(Path().glob("outputs/artifacts/*/artifacts/checkpoints/last.ckpt"))) == 2, seconds=120)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, output
    assert [row["status"] for row in summary()] == ["stopped", "stopped", "not run"]
    assert [run.info.status for run in jobs()] == ["KILLED"] * 2
    assert parents()[0].info.status == "KILLED"
    assert "job 0: stopped; resume with" in output
    steps = [max(m.step for m in store().get_metric_history(run.info.run_id, "train/loss")) for run in jobs()]
    outcome = cvexp("-m", *settings, "seed=0,1")  # a smaller sweep, in this process, goes on with them
    assert outcome.message.count("going on with the interrupted run") == 2
    assert [row["status"] for row in summary()] == ["finished"] * 2
    assert len(jobs()) == 2
    for run, step in zip(jobs(), steps, strict=True):
        assert run.data.tags["mlflow.parentRunId"] == parents()[0].info.run_id
        logged = [m.step for m in store().get_metric_history(run.info.run_id, "train/loss")]
        assert sorted(logged) == list(range(len(logged)))
        assert len(logged) > step


@pytest.mark.slow
def test_jobs_run_on_ray() -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'cvexp[ray]'")
    finish(start("-m", "hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=1", *QUICK, "seed=0,1"))
    assert_complete(2)


def steps_saved() -> list[int]:
    """Return the steps in the last checkpoint of each job on Slurm."""
    paths = Path("slurm/artifacts").glob("*/artifacts/checkpoints/last.ckpt")
    return sorted(torch.load(path, weights_only=True)["global_step"] for path in paths)


def are_training(since: list[int]) -> bool:
    """Return whether both jobs have saved steps since they had saved these."""
    now = steps_saved()
    return len(now) == 2 and all(step > before for step, before in zip(now, since, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("signals_first", [True, False])
def test_jobs_that_slurm_preempts_or_loses_go_on_and_end_like_undisturbed_ones(
    signals_first: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, cvexp: Callable[..., Outcome]
) -> None:
    """The first time, their node is also taken away, without a signal."""
    long = [*TINY, "trainer.max_epochs=20", "task.embed_every_n_epochs=20"]
    (tmp_path / "cluster").mkdir()
    with slurm_cluster(tmp_path / "cluster", signals_first) as slurm:
        sweep = start("-m", *SLURM, *long, "seed=0,1", "tracking.folder=slurm", environment=slurm.variables)
        wait_until(lambda: are_training(since=[0, 0]), seconds=120)
        if signals_first:
            slurm.lose_node()
            saved = steps_saved()
            assert [run.info.status for run in runs(Path("slurm"))] == ["RUNNING"] * 3  # nobody was left to change it
            wait_until(lambda: are_training(since=saved), seconds=120)
        slurm.output("sbatch", "--partition=high", "--cpus-per-task=3", "--output=/dev/null", "--wrap", "true")
        finish(sweep)
    output = "".join(path.read_text() for path in Path("slurm/sweeps").rglob("*.out"))
    assert output.count("going on with the interrupted run") >= (3 if signals_first else 1)  # one is preempted
    by_seed = {run.data.params["seed"]: run for run in runs(Path("slurm")) if run.data.tags["role"] != "sweep"}
    assert len(by_seed) == len(runs(Path("slurm"))) - 1 == 2
    for seed in ("0", "1"):
        folder = tmp_path_factory.getbasetemp() / f"undisturbed-{seed}"
        assert folder.exists() or cvexp(*long, f"seed={seed}", f"tracking.folder={folder}").code == 0
        (alone,) = runs(folder)
        assert by_seed[seed].info.status == "FINISHED"
        assert histories(Path("slurm"), by_seed[seed]) == histories(folder, alone)
        expected, got = checkpoint(alone), checkpoint(by_seed[seed])
        assert all(expected[key].equal(got[key]) for key in expected)


@pytest.mark.parametrize(("name", "extra"), [("joblib", "joblib"), ("submitit_local", "slurm"), ("ray", "ray")])
def test_a_launcher_that_is_not_installed_is_named(
    name: str, extra: str, cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Plugins.instance().class_name_to_class
    installed = {key: value for key, value in known.items() if "hydra_plugins" not in key}
    monkeypatch.setattr(Plugins.instance(), "class_name_to_class", installed)
    outcome = cvexp("-m", f"hydra/launcher={name}", "seed=0,1")
    assert outcome.code == 1
    assert f"pip install 'cvexp[{extra}]'" in outcome.message
