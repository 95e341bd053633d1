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
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cvexp import arguments, completion, plugins, processes
from cvexp.composition import COMPOSITION_ERRORS, CONF, check, explain_composition
from cvexp.errors import Interrupted, UserError, explain_os_error
from cvexp.redaction import hide_secrets
from cvexp.tracking.sweep import Sweep, as_given, swept_settings

WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
USER_ERRORS = (UserError, *COMPOSITION_ERRORS)  # everything else is a bug, and its traceback is printed

log = logging.getLogger("cvexp")


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
        sys.argv = ["cvexp", *arguments.for_hydra(sys.argv[1:], CONF)]
        if processes.world_size() > 1:
            sys.argv += _for_torchrun(sys.argv[1:])
        _hydra_main()
        Sweep.close(failed=False)
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
    finally:
        with contextlib.suppress(Exception):  # if the store is what failed, that was reported
            Sweep.close(failed=True)


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


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _hydra_main(composed: DictConfig) -> float | None:
    """Run one job, and return its objective to the sweeper.

    In a sweep, the error of a job is printed here, because Hydra goes on to the next job, and prints only the first
    error at the end.
    """
    global job_started
    job_started = True
    is_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        return _run(composed)
    except USER_ERRORS as error:
        if WANTS_TRACEBACK:
            raise
        if not is_sweep:  # Hydra would print the error once more
            _exit(error)
        log.error("job %s failed: %s", HydraConfig.get().job.num, describe(error))
        raise
    except Exception:
        if is_sweep:
            log.exception("job %s failed", HydraConfig.get().job.num)
        raise


def _run(composed: DictConfig) -> float | None:
    config = check(composed)
    from cvexp.tracking import description, opening, resume, store  # import MLflow
    from cvexp.training.strategy import check_processes

    logging.getLogger("pytorch_lightning").setLevel(logging.CRITICAL)  # we print the same more clearly
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # about its own use of PyTorch
    hydra_config = HydraConfig.get()
    overrides = as_given(hydra_config.overrides.task)
    command = description.command_line([*overrides, *as_given(hydra_config.overrides.hydra)])
    if config.resume is not None:
        with store.failures_explained("check it, and try again"):
            config = resume.saved_config(config, composed, overrides)
    check_processes(config)
    task = plugins.load("task", config.job)
    folder = Path(hydra_config.runtime.output_dir)
    with processes.connected(), opening.open_run(config, folder, command, swept_settings(overrides)) as run:
        objective: float | None = task.main(config, run)
    return objective


def describe(error: Exception) -> str:
    """Say in one line what was received, where, and how to fix it."""
    if isinstance(error, UserError):
        # An error from a worker process of a loader arrives as the text of its traceback.
        text = re.split(r"(?:cvexp\.errors\.)?UserError: ", str(error))[-1].strip()
    else:
        text = explain_composition(error, sys.argv[1:])
    return hide_secrets(text)
