"""What the command line and `cvexp.run` share: compose, check, open the run, call the task, close the run.

PyTorch and MLflow are imported only when a run starts, so `--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import secrets
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cvexp import arguments, plugins, processes, progress
from cvexp.composition import COMPOSITION_ERRORS, CONF, check, explain_composition, refuse_secrets
from cvexp.console import print_line
from cvexp.errors import Interrupted, Pruned, UserError, explain_os_error
from cvexp.memory import shortage_explained
from cvexp.redaction import hide_secrets
from cvexp.sweeps.grid import Grid
from cvexp.sweeps.preemption import wait_for_slurm
from cvexp.sweeps.search import Search
from cvexp.sweeps.stopping import raise_if_stopped, stop_job
from cvexp.sweeps.study import Study
from cvexp.tracking import description
from cvexp.tracking.description import JOB_VARIABLE

USER_ERRORS = (UserError, *COMPOSITION_ERRORS)  # everything else is a bug, and its traceback is printed

# What the configuration may make Hydra call, besides the launchers that are installed.
TRUSTED = ["cvexp.console.Handler", "cvexp.redaction.Formatter", "logging.StreamHandler", "logging.FileHandler"]

GREETING = (
    "Without settings, cvexp pretrains with DINO on generated images. `python -m cvexp +experiment=demo` does the same "
    "with a small network in a minute, and `python -m cvexp --help` lists what can be set."
)

log = logging.getLogger("cvexp")

for sweeper in (Grid, Search, Study):
    Plugins.instance().register(sweeper)


class _PastHydra(BaseException):
    """Carries a user error past Hydra, which would print more about it."""

    def __init__(self, error: Exception) -> None:
        self.error = error


job_started = False  # whether Hydra has called `_hydra_main`


def execute(words: Sequence[str]) -> None:
    """Do what a command line says: run one job, or a sweep.

    It changes `sys.argv`, environment variables, logging, and the handler of SIGTERM, as suits a process that does
    nothing else.

    Args:
        words: The command line without the program's name.

    Raises:
        UserError: in one line, and without secrets.
        Interrupted, KeyboardInterrupt: after a signal; the run can be resumed.
    """
    global job_started
    job_started = False
    os.environ["CVEXP_START"] = secrets.token_hex(3)  # makes the run folder unique
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, and we explain them
    if processes.handles_signals():
        signal.signal(signal.SIGTERM, _interrupt)
    sys.argv = ["cvexp", *words]
    try:
        sys.argv = ["cvexp", *arguments.for_hydra(arguments.with_sweeper(list(words), CONF), CONF)]
        if processes.world_size() > 1:
            sys.argv += _for_torchrun(sys.argv[1:])
        is_question = any(word.startswith("-") and word not in ("-m", "--multirun") for word in words)
        with contextlib.nullcontext() if is_question else progress.step("starting"):
            _call_hydra()
    except USER_ERRORS as error:
        text = describe(error)
        if text == str(error) and isinstance(error, UserError):
            raise
        raise UserError(text) from error
    except OSError as error:
        if job_started or not error.strerror:
            raise
        raise UserError(explain_os_error(error, "tracking.folder")) from error  # Hydra can't create the run's folder


def _call_hydra() -> None:
    try:
        _hydra_main()
    except _PastHydra as passed:
        raise passed.error from passed.error.__cause__


def _for_torchrun(words: list[str]) -> list[str]:
    """Return extra arguments for one of several processes, because only the first one has a folder of its own.

    Raises:
        UserError: for a sweep.
    """
    if {"-m", "--multirun"} & set(words):
        raise UserError("-m: a sweep runs in one process; start each of its jobs with torchrun")
    return ["hydra.run.dir=${tracking.folder}", "hydra/job_logging=stdout"] if processes.rank() > 0 else []


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal_number)


@hydra.main(config_path=str(CONF), config_name="config", execution_whitelist=TRUSTED)
def _hydra_main(composed: DictConfig) -> float | None:
    """Run one job, and return its objective to the sweeper.

    In a sweep, the error of a job is printed at once, and again in the summary at the end.
    """
    global job_started
    job_started = True
    raise_if_stopped()
    is_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if not is_sweep and not HydraConfig.get().overrides.task:
        print_line(GREETING)
    try:
        with progress.step("starting") as step:
            return _run(composed, step)
    except USER_ERRORS as error:
        if not is_sweep:
            raise _PastHydra(error) from error
        log.error("job %s failed: %s", os.environ.get(JOB_VARIABLE), describe(error))
        raise
    except (Interrupted, KeyboardInterrupt) as error:
        if is_sweep:
            wait_for_slurm()
        if is_sweep and HydraConfig.get().runtime.choices["hydra/launcher"] == "joblib":
            stop_job(error)
        raise
    except Exception:
        if is_sweep:
            log.exception("job %s failed", os.environ.get(JOB_VARIABLE))
        raise
    finally:
        if is_sweep:
            gc.collect()  # the networks, worker processes and open files of the job, whose objects form cycles


def _run(composed: DictConfig, step: progress.Step) -> float | None:
    config = check(composed)
    refuse_secrets(config)
    progress.configure(config.tracking.progress_seconds)
    from cvexp.suggestions.rules import after_run, print_next
    from cvexp.sweeps.earlier import find_interrupted
    from cvexp.tracking import opening, resume, store  # import MLflow
    from cvexp.tracking.continuing import continued_config
    from cvexp.tracking.fork import fork
    from cvexp.tracking.sweep import swept_settings
    from cvexp.tracking.waiting import deliver_earlier
    from cvexp.training.strategy import check_processes

    logging.getLogger("pytorch_lightning").setLevel(logging.CRITICAL)  # we print the same more clearly
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")  # about its own use of PyTorch
    hydra_config = HydraConfig.get()
    overrides = as_given(hydra_config.overrides.task)
    command = description.command_line([*overrides, *as_given(hydra_config.overrides.hydra)])
    task = plugins.load("task", config.job)
    with store.failures_explained("check it, and try again"):
        if task.Config.is_recorded and processes.rank() == 0:
            deliver_earlier(config.tracking)
        if config.continues:
            config = continued_config(config, composed, overrides)
            composed = OmegaConf.create(asdict(config))
        if hydra_config.mode == RunMode.MULTIRUN and config.resume is None:
            goes_on = hydra_config.sweeper.get("skip_finished", True)
            composed.resume = config.resume = find_interrupted(config, of_any_sweep=goes_on)
        if config.resume is not None:
            config = resume.saved_config(config, composed, overrides)
    check_processes(config)
    step.title = f"task={config.job}"
    task = plugins.load("task", config.job)  # that of a resumed run
    folder = Path(hydra_config.runtime.output_dir)
    if not task.Config.is_recorded:
        with store.failures_explained("check it, and start again"):
            task.main(config, store.connect(config.tracking))
        return None
    with contextlib.suppress(Pruned), processes.connected():
        with opening.open_run(config, folder, command, swept_settings(overrides)) as run:
            if config.run is not None and config.continues:
                fork(run, config.run)
            with shortage_explained(config):
                objective: float | None = task.main(config, run)
        if hydra_config.mode == RunMode.MULTIRUN and run.noted_signal in (signal.SIGINT, signal.SIGTERM):
            raise Interrupted(run.noted_signal)  # it came in the last epoch: this job is done, but no other one starts
        if hydra_config.mode != RunMode.MULTIRUN and processes.rank() == 0:
            print_next(after_run(run.store, run.id, config, run.tags()))
        return objective
    return None


def as_given(overrides: Any) -> list[str]:
    """Return Hydra's overrides without resolving interpolations, one of which may be the password of the data."""
    given = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(given, list)
    return [str(override) for override in given]


def describe(error: Exception) -> str:
    """Say in one line what was received, where, and how to fix it."""
    if isinstance(error, UserError):
        # An error from a worker process of a loader arrives as the text of its traceback.
        text = re.split(r"(?:cvexp\.errors\.)?UserError: ", str(error))[-1].strip()
    else:
        text = explain_composition(error, sys.argv[1:])
    return hide_secrets(text)
