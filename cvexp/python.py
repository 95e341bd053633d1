"""`cvexp.run`: what the command line does, within a Python program that goes on afterwards, such as a notebook."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime

from cvexp import processes
from cvexp.command import execute
from cvexp.errors import Interrupted, UserError

FLAGS = ("-m", "--multirun")

_one_at_a_time = threading.Lock()


def run(words: Sequence[str]) -> tuple[str, dict[str, float]]:
    """Do what a command line says, and leave the process as it was.

    Args:
        words: The command line without the program's name.

    Returns:
        MLflow's id of the run, and its latest metrics; "" and none for a task that records no run.

    Raises:
        UserError: in one line, and without secrets.
        KeyboardInterrupt: after Ctrl-C; the run can be resumed.
    """
    from cvexp.tracking.opened import opened
    from cvexp.tracking.run import ReadOnlyRun
    from cvexp.tracking.store import failures_explained

    _check(words)
    if not _one_at_a_time.acquire(blocking=False):
        raise UserError("cvexp.run: another run is in progress in this process; wait for it, or use another process")
    opened.clear()
    noted: int | None
    try:
        with _hydra_apart(), _logging_apart(), _torch_restored(), _process_restored():
            execute(words)
        if not opened:  # task=demo records no run
            return "", {}
        first = opened[0]
        noted = first.noted_signal if isinstance(first, ReadOnlyRun) else None  # it came too late to stop the run
        if noted is None:
            with failures_explained(f"the run {first.id} has ended, and `make ui` shows it once the store works again"):
                return first.id, first.metrics()
    except Interrupted as interrupted:
        noted = interrupted.signal_number
    except SystemExit:  # Lightning's answer to a KeyboardInterrupt
        noted = signal.SIGINT
    finally:
        gc.collect()  # as after a job of a sweep
        _one_at_a_time.release()
    if noted != signal.SIGINT:
        signal.raise_signal(noted)  # now it reaches the program
    raise KeyboardInterrupt


def _check(words: Sequence[str]) -> None:
    """Raise a UserError for what only the command line can do."""
    for word in words:
        if word.startswith("-") and word not in FLAGS:
            raise UserError(f"cvexp.run: got {word!r}, but it takes settings, and -m for a sweep; use python -m cvexp")
    if processes.world_size() > 1 and not processes.handles_signals():
        raise UserError("cvexp.run: one of several processes can train only in its main thread; call it there")


@contextlib.contextmanager
def _hydra_apart() -> Iterator[None]:
    """Keep Hydra's state, which the program may use itself, apart from that of the block."""
    outer, configuration, name = GlobalHydra.instance().hydra, HydraConfig.instance().cfg, JobRuntime().get("name")
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = outer, configuration
        JobRuntime().set("name", name)


@contextlib.contextmanager
def _logging_apart() -> Iterator[None]:
    """Keep the program's logging apart from that of the block, which replaces the handlers of the root logger."""
    import mlflow  # noqa: F401  # these configure their loggers when they are first imported
    import pytorch_lightning  # noqa: F401

    names = {*logging.root.manager.loggerDict, "alembic", "mlflow", "pytorch_lightning"}  # the last ones are silenced
    loggers = [logging.root, *map(logging.getLogger, names)]
    former = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    private: Any = logging
    handlers, by_name = private._handlerList[:], dict(private._handlers)
    private._handlerList.clear()  # or else `logging.config.dictConfig` would close them
    try:
        yield
    finally:
        for handler in set(logging.root.handlers) - set(former[0][2]):
            handler.close()
        for logger, level, own in former:
            logger.setLevel(level)
            logger.handlers[:] = own
        private._handlerList[:] = handlers
        private._handlers.update(by_name)


@contextlib.contextmanager
def _torch_restored() -> Iterator[None]:
    """Restore PyTorch's random state, and whether it is deterministic."""
    import torch

    is_deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.use_deterministic_algorithms(is_deterministic, warn_only=only_warns)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark


@contextlib.contextmanager
def _process_restored() -> Iterator[None]:
    """Restore arguments, environment variables, filters of warnings, and the handlers of signals."""
    words, environment = sys.argv, dict(os.environ)
    numbers = (signal.SIGINT, signal.SIGTERM) if processes.handles_signals() else ()
    handlers = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not None}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        sys.argv = words
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)
