"""The command line: compose, check, open the run, call the task, close the run.

PyTorch and MLflow are imported only when a run starts, so `--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import sys
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cvexp import arguments, completion, plugins, processes
from cvexp.composition import COMPOSITION_ERRORS, CONF, check, explain_composition
from cvexp.errors import Interrupted, Pruned, UserError, explain_os_error
from cvexp.redaction import hide_secrets
from cvexp.sweeps.grid import Grid
from cvexp.sweeps.preemption import wait_for_slurm
from cvexp.sweeps.search import Search
from cvexp.sweeps.stopping import raise_if_stopped, stop_job
from cvexp.sweeps.study import Study
from cvexp.tracking import description
from cvexp.tracking.description import JOB_VARIABLE

WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
USER_ERRORS = (UserError, *COMPOSITION_ERRORS)  # everything else is a bug, and its traceback is printed

# What the configuration may make Hydra call, besides the launchers that are installed.
TRUSTED = ["cvexp.redaction.Formatter", "logging.StreamHandler", "logging.FileHandler"]

log = logging.getLogger("cvexp")

for sweeper in (Grid, Search, Study):
    Plugins.instance().register(sweeper)


def main() -> None:
    """Run Hydra, and turn user errors into one message and an exit status."""
    sys.excepthook = _print_traceback
    if "--version" in sys.argv[1:]:
        print(f"cvexp {version('cvexp')}")
        return
    if script := completion.script(sys.argv[1:]):
        print(script)
        return
    os.environ["CVEXP_START"] = secrets.token_hex(3)  # makes the run folder unique
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, and we print the message
    signal.signal(signal.SIGTERM, _interrupt)
    global job_started
    job_started = False
    try:
        sys.argv = ["cvexp", *arguments.for_hydra(arguments.with_sweeper(sys.argv[1:], CONF), CONF)]
        if processes.world_size() > 1:
            sys.argv += _for_torchrun(sys.argv[1:])
        _hydra_main()
    except USER_ERRORS as error:
        if WANTS_TRACEBACK:
            raise
        _exit(error)
    except OSError as error:
        if WANTS_TRACEBACK or job_started or not error.strerror:
            raise
        _exit(UserError(explain_os_error(error, "tracking.folder")))  # Hydra can't create the run's folder
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.signal_number)


job_started = False  # whether Hydra has called `_hydra_main`


def _for_torchrun(words: list[str]) -> list[str]:
    """Return extra arguments for one of several processes, because only the first one has a folder of its own.

    Raises:
        UserError: for a sweep.
    """
    if {"-m", "--multirun"} & set(words):
        raise UserError("-m: a sweep runs in one process; start each of its jobs with torchrun")
    return ["hydra.run.dir=${tracking.folder}", "hydra/job_logging=stdout"] if processes.rank() > 0 else []


def _exit(error: Exception) -> NoReturn:
    """Exit with one message. If several processes have the same one, only one of them prints it."""
    message = f"cvexp: error: {describe(error)}"
    if processes.world_size() == 1:
        sys.exit(message)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun stops the other processes after the first error
    if processes.is_first_with(message):
        print(message, file=sys.stderr, flush=True)
    sys.exit(1)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(hide_secrets("".join(traceback.format_exception(kind, error, trace))))


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
    try:
        return _run(composed)
    except USER_ERRORS as error:
        if WANTS_TRACEBACK:
            raise
        if not is_sweep:  # Hydra would print the error once more
            _exit(error)
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


def _run(composed: DictConfig) -> float | None:
    config = check(composed)
    from cvexp.sweeps.earlier import find_interrupted
    from cvexp.tracking import opening, resume, store  # import MLflow
    from cvexp.tracking.sweep import swept_settings
    from cvexp.training.strategy import check_processes

    logging.getLogger("pytorch_lightning").setLevel(logging.CRITICAL)  # we print the same more clearly
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")  # about its own use of PyTorch
    hydra_config = HydraConfig.get()
    overrides = as_given(hydra_config.overrides.task)
    command = description.command_line([*overrides, *as_given(hydra_config.overrides.hydra)])
    with store.failures_explained("check it, and try again"):
        if hydra_config.mode == RunMode.MULTIRUN and config.resume is None:
            goes_on = hydra_config.sweeper.get("skip_finished", True)
            composed.resume = config.resume = find_interrupted(config, of_any_sweep=goes_on)
        if config.resume is not None:
            config = resume.saved_config(config, composed, overrides)
    check_processes(config)
    task = plugins.load("task", config.job)
    folder = Path(hydra_config.runtime.output_dir)
    if not task.Config.is_recorded:
        with store.failures_explained("check it, and start again"):
            task.main(config, store.connect(config.tracking))
        return None
    with contextlib.suppress(Pruned), processes.connected():
        with opening.open_run(config, folder, command, swept_settings(overrides)) as run:
            objective: float | None = task.main(config, run)
        if hydra_config.mode == RunMode.MULTIRUN and run.noted_signal in (signal.SIGINT, signal.SIGTERM):
            raise Interrupted(run.noted_signal)  # it came in the last epoch: this job is done, but no other one starts
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
