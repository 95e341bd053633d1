"""`cvexp.run` does what the command line does, and leaves the process as it was."""

import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import cvexp as package
from cvexp.composition import CONF
from cvexp.errors import UserError
from cvexp.tasks.dino import DINO
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, assert_equal_runs, runs, store

ONE_EPOCH = [*TINY, "trainer.max_epochs=1", "dataset.root=data"]


def test_importing_cvexp_imports_nothing_slow() -> None:
    code = "import cvexp, sys; cvexp.run; cvexp.Result; print({'torch', 'hydra', 'mlflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.slow
def test_it_equals_the_command_line(cvexp: Callable[..., Outcome]) -> None:
    run_id, metrics = package.run(*ONE_EPOCH, "tracking.folder=python")
    assert cvexp(*ONE_EPOCH, "tracking.folder=command").code == 0
    assert_equal_runs(Path("python"), Path("command"))
    (run,) = runs(Path("python"))
    assert (run_id, metrics) == (run.info.run_id, run.data.metrics)
    assert metrics["best/loss"] == metrics["val/loss"]
    command = shlex.split(run.data.tags["command"])
    assert command == ["python", "-m", "cvexp", *ONE_EPOCH, "tracking.folder=python"]


@pytest.mark.slow
def test_several_runs_of_different_tasks_and_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = package.run(*ONE_EPOCH)
    with pytest.raises(UserError, match=r"optimizer\.lrr: there is no such key") as error:
        package.run("optimizer.lrr=1")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"there is no file 'absent\.pth'"):
        package.run("task=multiclass", *TINY_SEGMENTATION, "dataset.root=data", "backbone.weights=absent.pth")
    with monkeypatch.context() as patch:
        patch.setattr(DINO, "step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            package.run(*ONE_EPOCH)
    segmented = package.run(
        "task=multiclass",
        *TINY_SEGMENTATION,
        "dataset.root=data",
        "trainer.max_steps=1",
        "backbone.weights=latest:dino",
    )
    assert "best/miou" in segmented.metrics
    neighbors = package.run("task=neighbors", "task.k=2")
    recorded = {run.info.run_id: run for run in runs()}
    assert recorded[segmented.run_id].data.tags["weights_from"] == pretrained.run_id
    assert recorded[neighbors.run_id].data.tags["of_run"] == pretrained.run_id
    statuses = sorted(run.info.status for run in recorded.values())
    assert statuses == ["FAILED", "FAILED", "FINISHED", "FINISHED", "FINISHED"]


@pytest.mark.slow
@pytest.mark.parametrize("raises", [False, True])  # the signal of Ctrl-C, or the exception that Python makes of it
def test_ctrl_c_ends_a_run_that_can_be_resumed(monkeypatch: pytest.MonkeyPatch, raises: bool) -> None:
    arguments = [*TINY, "dataset.root=data"]
    original = DINO.training_step

    def interrupted(self: DINO, batch: object, batch_idx: int) -> object:
        if self.global_step == 1 and raises:
            raise KeyboardInterrupt
        if self.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DINO, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            package.run(*arguments, "tracking.folder=interrupted")
    (run,) = runs(Path("interrupted"))
    assert run.info.status == "KILLED"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert package.run(f"resume={run.info.run_id}", "tracking.folder=interrupted").run_id == run.info.run_id
    package.run(*arguments, "tracking.folder=undisturbed")
    assert_equal_runs(Path("undisturbed"), Path("interrupted"))


@pytest.mark.slow
def test_ctrl_c_in_the_last_epoch_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else a loop over several runs would go on."""
    original = DINO.log_scores

    def log_scores(self: DINO) -> None:
        if self.global_step:
            os.kill(os.getpid(), signal.SIGINT)
        original(self)

    monkeypatch.setattr(DINO, "log_scores", log_scores)
    with pytest.raises(KeyboardInterrupt):
        package.run(*ONE_EPOCH)
    assert runs()[0].info.status == "FINISHED"


@pytest.mark.slow
def test_sigterm_reaches_the_program_when_the_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str] = []
    former = signal.signal(signal.SIGTERM, lambda *_: received.append(runs()[0].info.status))
    monkeypatch.setattr(DINO, "log_scores", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(KeyboardInterrupt):
            package.run(*ONE_EPOCH)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert received == ["KILLED"]


def state() -> list[object]:
    """What a run changes in its process, and must restore."""
    names = (None, "mlflow", "alembic", "pytorch_lightning", "cvexp")
    loggers = [logging.getLogger(name) for name in names]
    return [
        dict(os.environ),
        list(sys.argv),
        sys.excepthook,
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers],
        list(warnings.filters),
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_the_process_is_as_before(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Also in a program that uses Hydra, and that writes a log file of its own."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "1")
    handler = logging.FileHandler("own.log", mode="w")
    logging.getLogger().addHandler(handler)
    try:
        with initialize_config_dir(str(CONF)):
            before = state()
            if fails:
                monkeypatch.setattr(DINO, "step", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    package.run(*ONE_EPOCH)
            else:
                package.run(*ONE_EPOCH, "trainer.max_steps=1")
            assert state() == before
            assert compose("config", overrides=["seed=3"]).seed == 3
        logging.getLogger().warning("still here")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert Path("own.log").read_text() == "still here\n"


@pytest.mark.slow
def test_a_sweep_returns_its_own_run_and_goes_on_when_started_again() -> None:
    sweep = ["-m", "seed=0,1", *ONE_EPOCH, "trainer.max_steps=1"]
    run_id, _ = package.run(*sweep)
    parent = store().get_run(run_id)
    assert (parent.data.tags["role"], parent.info.status) == ("sweep", "FINISHED")
    assert len(runs()) == 3
    assert package.run(*sweep).run_id == run_id
    assert len(runs()) == 3
    with pytest.raises(UserError, match="1 of 2 jobs did not finish"):
        package.run("-m", "optimizer.lr=0.1,-1", *ONE_EPOCH, "trainer.max_steps=1")


@pytest.mark.slow
def test_in_another_thread_than_the_main_one() -> None:
    results: list[package.Result] = []
    thread = threading.Thread(target=lambda: results.append(package.run(*ONE_EPOCH, "trainer.max_steps=1")))
    thread.start()
    thread.join()
    assert results[0].run_id == runs()[0].info.run_id


def test_two_runs_at_a_time_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvexp.python.execute", lambda words: package.run(*words))
    with pytest.raises(UserError, match="another run is in progress"):
        package.run()


@pytest.mark.parametrize("word", ["--help", "--cfg", "-sc", "--version", "--unknown"])
def test_what_only_the_command_line_answers_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=f"got '{word}'.*use python -m cvexp"):
        package.run("task=dino", word)
