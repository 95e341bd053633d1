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
import warnings
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cvexp.config import check, explain, keys_of, nearest
from cvexp.errors import Interrupted, UserError
from cvexp.sweep import Sweep

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # in the wheel, in the repository

WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
EXPECTED = (UserError, HydraException, OmegaConfBaseException, OSError)  # all else is a bug, and shows its traceback

log = logging.getLogger("cvexp")


def main() -> None:
    """Run Hydra, and turn what goes wrong into one message and an exit status."""
    os.environ["CVEXP_START"] = secrets.token_hex(3)  # makes the run folder unique
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises, and the message is ours to give
    signal.signal(signal.SIGTERM, _interrupt)
    sys.argv[1:] = _for_sweep(sys.argv[1:])
    try:
        _hydra_main()
        Sweep.close(failed=False)
    except EXPECTED as error:
        if WANTS_TRACEBACK:
            raise
        sys.exit(f"cvexp: error: {describe(error)}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.signal_number)
    finally:
        with contextlib.suppress(Exception):  # the store may be what failed, and was told
            Sweep.close(failed=True)


def _for_sweep(arguments: list[str]) -> list[str]:
    """Let a sweep over a group set keys that only the swept options have, such as `task.dropout=0`.

    Hydra first composes what all jobs share, without the swept groups, and there refuses these keys (hydra#2888). With
    ++ it takes them; the schema finds those that are misspelt.
    """
    if not {"-m", "--multirun"} & set(arguments):
        return arguments
    pairs = [argument.partition("=") for argument in arguments]
    swept = {group for group, _, value in pairs if "," in value and (CONF / group).is_dir()}
    return ["".join(("++" * (key.partition(".")[0] in swept - {key}), key, *rest)) for key, *rest in pairs]


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
            sys.exit(f"cvexp: error: {describe(error)}")
        log.error("job %s failed: %s", HydraConfig.get().job.num, describe(error))
        raise
    except Exception:
        if is_sweep:
            log.exception("job %s failed", HydraConfig.get().job.num)
        raise


def _run(composed: DictConfig) -> None:
    config = check(composed)
    from cvexp import tracking  # imports MLflow

    logging.getLogger("pytorch_lightning").setLevel(logging.CRITICAL)  # what it tells is told better by us
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # of its own use of PyTorch
    hydra_config = HydraConfig.get()
    if config.resume is not None:
        config = tracking.saved_config(config, composed, list(hydra_config.overrides.task))
    task = importlib.import_module(f"cvexp.tasks.{config.task.name}")
    with tracking.open_run(config, folder=Path(hydra_config.runtime.output_dir)) as run:
        task.run(config, run)


def describe(error: Exception) -> str:
    """One message for people: what was got, where, and the remedy."""
    if isinstance(error, UserError):
        # An error from a loader's worker process arrives as the text of its traceback.
        return re.split(r"(?:cvexp\.errors\.)?UserError: ", str(error))[-1].strip()
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        remedy = _REMEDIES.get(error.errno or 0, "mend this, or choose another place with tracking.folder=PATH")
        return f"{where}{error.strerror}; {remedy}"
    return _describe_composition(error)


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
