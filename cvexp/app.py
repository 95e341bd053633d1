"""The way through a run: compose, check, open the run, call the task, close the run.

PyTorch and MLflow are imported only once a run starts, so that `--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
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
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cvexp import arguments, completion
from cvexp.config import check, explain, keys_of, nearest
from cvexp.errors import Interrupted, UserError
from cvexp.redaction import hide_secrets
from cvexp.sweep import Sweep, swept_settings

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # in the wheel, in the repository

WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
EXPECTED = (UserError, HydraException, OmegaConfBaseException, OSError)  # all else is a bug, and shows its traceback

log = logging.getLogger("cvexp")


def main() -> None:
    """Run Hydra, and turn what goes wrong into one message and an exit status."""
    sys.excepthook = _print_traceback
    if "--version" in sys.argv[1:]:
        print(f"cvexp {version('cvexp')}")
        return
    if script := completion.script(sys.argv[1:]):
        print(script)
        return
    os.environ["CVEXP_START"] = secrets.token_hex(3)  # makes the run folder unique
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises, and the message is ours to give
    signal.signal(signal.SIGTERM, _interrupt)
    sys.argv = ["cvexp", *arguments.for_hydra(sys.argv[1:], CONF)]
    try:
        _hydra_main()
        Sweep.close(failed=False)
    except EXPECTED as error:
        if WANTS_TRACEBACK:
            raise
        _exit(error)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.signal_number)
    finally:
        with contextlib.suppress(Exception):  # the store may be what failed, and that was reported
            Sweep.close(failed=True)


def _exit(error: Exception) -> NoReturn:
    """End with one message; of several processes, the first one prints it."""
    sys.exit(f"cvexp: error: {describe(error)}" if os.environ.get("RANK", "0") == "0" else 1)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(hide_secrets("".join(traceback.format_exception(kind, error, trace))))


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal_number)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _hydra_main(composed: DictConfig) -> None:
    """One job. In a sweep its error is told here, as Hydra goes on and tells only the first one at the end."""
    is_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        _run(composed)
    except EXPECTED as error:
        if WANTS_TRACEBACK:
            raise
        if not is_sweep:  # Hydra would announce the error once more
            _exit(error)
        log.error("job %s failed: %s", HydraConfig.get().job.num, describe(error))
        raise
    except Exception:
        if is_sweep:
            log.exception("job %s failed", HydraConfig.get().job.num)
        raise


def _run(composed: DictConfig) -> None:
    config = check(composed)
    from cvexp import recorded, store, tracking  # import MLflow

    logging.getLogger("pytorch_lightning").setLevel(logging.CRITICAL)  # what it tells is told better by us
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # of its own use of PyTorch
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    if config.resume is not None:
        with store.failures_explained("check it, and try again"):
            config = recorded.saved_config(config, composed, overrides)
    task = importlib.import_module(f"cvexp.tasks.{config.task.name}")
    with tracking.open_run(config, Path(hydra_config.runtime.output_dir), swept_settings(overrides)) as run:
        task.run(config, run)


def describe(error: Exception) -> str:
    """One message for people: what was received, where, and the remedy."""
    return hide_secrets(_describe(error))


def _describe(error: Exception) -> str:
    if isinstance(error, UserError):
        # An error from a loader's worker process arrives as the text of its traceback.
        return re.split(r"(?:cvexp\.errors\.)?UserError: ", str(error))[-1].strip()
    if isinstance(error, OSError) and error.strerror:
        place = error.filename2 or error.filename  # of a copy, where it was to be written
        where = f"{place}: " if place else ""
        remedy = _REMEDIES.get(error.errno or 0, "mend this, or choose another place with tracking.folder=PATH")
        return f"{where}{error.strerror}; {remedy}"
    return _describe_composition(error)


PLUGINS = {  # of Hydra, by what they are chosen with
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/launcher/ray": "hydra-ray-launcher",
    "hydra/launcher/rq": "hydra-rq-launcher",
    "hydra/launcher/submitit": "hydra-submitit-launcher",
    "hydra/sweeper/ax": "hydra-ax-sweeper",
    "hydra/sweeper/nevergrad": "hydra-nevergrad-sweeper",
    "hydra/sweeper/optuna": "hydra-optuna-sweeper",
}

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another place with tracking.folder=PATH; an interrupted run goes on with "
    "resume=RUN_ID",
    errno.EACCES: "allow it, or choose another place with tracking.folder=PATH or dataset.root=PATH",
    errno.EROFS: "choose another place with tracking.folder=PATH or dataset.root=PATH",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another place with tracking.folder=PATH",
}


def _describe_composition(error: Exception) -> str:
    """What Hydra or OmegaConf found wrong with the command line."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        for prefix, package in PLUGINS.items():
            if f"{group}/{option}".startswith(prefix):
                return f"{group}={option}: this needs a package; install it with: pip install {package}"
        return f"{group}: there is no option {option!r}; {nearest(option, error.options or [])}"
    for cause in (error, error.__cause__):
        if isinstance(cause, OmegaConfBaseException):
            return explain(cause, _known_keys())
    return str(error).splitlines()[0] + "; see python -m cvexp --help"


def _known_keys() -> list[str]:
    """All keys of the configuration with the groups' options that the command line chooses."""
    arguments = (argument.lstrip("+").partition("=") for argument in sys.argv[1:])
    choices = [
        f"{'+' * (group == 'experiment')}{group}={option}"  # an experiment is added, all else is chosen anew
        for group, _, option in arguments
        if (CONF / group / f"{option}.yaml").is_file()
    ]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return keys_of(hydra.compose("config", overrides=choices))
