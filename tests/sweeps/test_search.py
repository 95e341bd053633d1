"""Searching settings with Optuna, in a study that goes on."""

from __future__ import annotations

import inspect
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from cvexp.errors import UserError
from cvexp.sweeps.search import Search
from cvexp.sweeps.space import as_override, split
from cvexp.tracking.study import PRUNERS, SAMPLERS, make_pruner, make_sampler
from tests.helpers import TINY, Outcome, start
from tests.sweeps.test_grid import jobs, parents, summary

SEARCH = ["-m", "hydra/sweeper=optuna", *TINY, "trainer.max_epochs=2", "optimizer.lr=tag(log,interval(1e-4,1e-2))"]


def study() -> optuna.Study:
    storage = "sqlite:///outputs/optuna.db"
    (name,) = optuna.study.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


@pytest.mark.parametrize(
    ("word", "distribution"),
    [
        ("interval(0.1,1)", FloatDistribution(0.1, 1.0)),
        ("interval(1,2)", FloatDistribution(1.0, 2.0)),
        ("tag(log,interval(1e-4,1))", FloatDistribution(1e-4, 1.0, log=True)),
        ("int(interval(1,9))", IntDistribution(1, 9)),
        ("tag(log,int(interval(1,9)))", IntDistribution(1, 9, log=True)),
        ("range(1,10)", IntDistribution(1, 9)),
        ("range(0,10,3)", IntDistribution(0, 9, step=3)),
        ("range(0.5,1.5,0.25)", FloatDistribution(0.5, 1.25, step=0.25)),
        ("choice(a,b)", CategoricalDistribution(["a", "b"])),
        ("1,2", CategoricalDistribution(["1", "2"])),
        ("[1,2],[3]", CategoricalDistribution(["[1,2]", "[3]"])),
    ],
)
def test_search_spaces_are_written_as_hydra_writes_sweeps(word: str, distribution: object) -> None:
    fixed, space = split(["task=dino", f"a.b={word}"])
    assert fixed == {"task": "task=dino"}
    assert space == {"a.b": distribution}


def test_the_command_line_replaces_the_space_of_a_file() -> None:
    assert split(["a=1,2", "b=1,2", "a=3"]) == ({"a": "a=3"}, {"b": CategoricalDistribution(["1", "2"])})
    with pytest.raises(UserError, match="nothing to search"):
        split(["a=3"])


def test_values_survive_the_command_line() -> None:
    assert as_override("lr", 1e-05) == "lr=1e-05"
    assert float(as_override("lr", 0.1 + 0.2).partition("=")[2]) == 0.1 + 0.2
    assert as_override("n", 3) == "n=3"


@pytest.mark.slow
def test_a_killed_search_goes_on_without_repeating_or_renumbering(cvexp: Callable[..., Outcome]) -> None:
    search = [*SEARCH, "hydra.sweeper.n_trials=5", "hydra.sweeper.sampler=random"]
    process = start(*search)
    while process.poll() is None and len(list(Path("outputs/artifacts").glob("*/artifacts/checkpoints/last.ckpt"))) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = study().trials
    assert [trial.state for trial in before] == [TrialState.COMPLETE] * 2 + [TrialState.RUNNING]
    assert cvexp(*search).code == 0
    trials = study().trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5
    assert [trial.params for trial in trials[:3]] == [trial.params for trial in before]
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 5
    assert len(jobs()) == 5
    assert [row["number"] for row in summary()] == list(range(5))
    assert [row["value"] for row in summary()] == [trial.value for trial in trials]
    assert {run.data.params["optimizer.lr"] for run in jobs()} == {str(t.params["optimizer.lr"]) for t in trials}
    assert cvexp(*search).code == 0  # there is nothing left to do
    assert len(jobs()) == 5
    assert cvexp(*search[:-2], "hydra.sweeper.n_trials=6", search[-1]).code == 0  # one more
    assert len(study().trials) == len(jobs()) == 6
    assert len(parents()) == 1
    best = study().best_trial
    assert parents()[0].data.tags["best"].startswith(f"job {best.number}, {best.value:.4f}, with optimizer.lr=")


@pytest.mark.slow
def test_trials_that_fall_behind_are_pruned_and_do_not_count_as_finished(cvexp: Callable[..., Outcome]) -> None:
    pruner = ["hydra.sweeper.pruner=median", "hydra.sweeper.pruner_args={n_startup_trials: 1}"]
    values = ["optimizer.lr=choice(1e-3,0.3)", "hydra.sweeper.sampler=qmc", "hydra.sweeper.direction=minimize"]
    outcome = cvexp(*SEARCH, *values, *pruner, "hydra.sweeper.n_trials=6", "trainer.max_epochs=3")
    assert outcome.code == 0, outcome.message
    states = {trial.number: trial.state for trial in study().trials}
    pruned = [run for run in jobs() if "pruned" in run.data.tags]
    assert {int(run.data.tags["sweep.job"]) for run in pruned} == {
        number for number, state in states.items() if state == TrialState.PRUNED
    }
    assert pruned
    assert {run.info.status for run in pruned} == {"KILLED"}
    assert {row["status"] for row in summary()} >= {"finished", "pruned"}


@pytest.mark.slow
def test_a_failed_trial_is_told_and_the_search_goes_on(cvexp: Callable[..., Outcome]) -> None:
    space = ["optimizer.args.betas=choice([2,0.9],[0.9,0.99])", "optimizer.lr=1e-3,2e-3"]
    search = [*SEARCH[:-1], *space, "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler=random", "trainer.max_steps=1"]
    outcome = cvexp(*search)
    states = [trial.state for trial in study().trials]
    assert len(states) == 4
    assert TrialState.FAIL in states
    assert outcome.code == 1
    assert "AdamW refuses" in outcome.message
    assert cvexp(*search).code == 0  # nothing is left to do
    assert [trial.state for trial in study().trials] == states


def test_no_sampler_or_pruner_unpickles_what_is_in_the_study() -> None:
    for name in ("tpe", "random", "qmc"):
        assert "pickle" not in inspect.getsource(sys.modules[type(make_sampler(name, {})).__module__])
    assert {"tpe", "random", "qmc"} == set(SAMPLERS)
    for name in PRUNERS:
        assert "pickle" not in inspect.getsource(sys.modules[type(make_pruner(name, {})).__module__])
    with pytest.raises(UserError, match=r"hydra\.sweeper\.sampler: there is no 'cmaes'"):
        make_sampler("cmaes", {})


@pytest.mark.parametrize(
    "address", ["postgresql://me:hunter2@host/db", "postgresql://host/db?user=me&password=hunter2"]
)
def test_an_address_with_a_password_must_come_from_the_environment(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    outcome = cvexp(*SEARCH, f"hydra.sweeper.storage='{address}'")
    assert outcome.code == 1
    assert "give 'hydra.sweeper.storage=${oc.env:STUDY_STORAGE}'" in outcome.message
    assert "hunter2" not in outcome.message
    assert not Path("outputs/mlflow.db").exists()


@pytest.mark.slow
def test_the_address_of_the_study_is_in_no_file_of_a_launcher(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launchers write what they give to jobs, and what they get back, into files, as pickles."""
    monkeypatch.setenv("STUDY_STORAGE", "sqlite:///file:study.db?uri=true&password=hunter2")
    returned: list[Any] = []
    launch = Search._launch

    def keep(self: Search, jobs: Sequence[Sequence[str]]) -> Any:
        returned.append((self.master, jobs, results := launch(self, jobs)))
        return results

    monkeypatch.setattr(Search, "_launch", keep)
    address = "hydra.sweeper.storage=${oc.env:STUDY_STORAGE}"
    pruned = ["hydra.sweeper.pruner=median", "hydra.sweeper.n_trials=1"]
    outcome = cvexp(*SEARCH, address, *pruned, "trainer.max_steps=1")
    assert outcome.code == 0, outcome.message
    assert optuna.study.get_all_study_names("sqlite:///study.db")
    content = cloudpickle.dumps(returned)
    assert b"STUDY_STORAGE" in content
    assert b"hunter2" not in content
    left = b"".join(path.read_bytes() for path in Path("outputs").rglob("*") if path.is_file())
    assert b"STUDY_STORAGE" in left
    assert b"hunter2" not in left


def test_the_storage_has_a_clear_error(cvexp: Callable[..., Outcome]) -> None:
    outcome = cvexp(*SEARCH, "hydra.sweeper.storage=nowhere://x")
    assert outcome.code == 1
    assert "hydra.sweeper.storage: it can't be used" in outcome.message
