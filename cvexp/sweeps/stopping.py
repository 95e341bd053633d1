"""Stopping the jobs of a sweep with Ctrl-C or SIGTERM, so that each can write a checkpoint first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import psutil
from hydra.core.hydra_config import HydraConfig

from cvexp import processes
from cvexp.console import print_line
from cvexp.errors import Interrupted, JobStopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_stopped_sweep = ""  # the folder of the sweep, a new one at each start, whose job this process was told to stop


def stop_job(error: BaseException) -> NoReturn:
    """End a job in a process of its own, which also runs none of the jobs that wait.

    Raises:
        JobStopped: always. The launcher would stop the other processes if the error were an interruption.
    """
    global _stopped_sweep
    _stopped_sweep = HydraConfig.get().sweep.dir
    raise JobStopped(str(error)) from error


def raise_if_stopped() -> None:
    """Raise :class:`JobStopped` if this process was told to stop an earlier job of the same sweep."""
    if HydraConfig.get().sweep.dir == _stopped_sweep:
        raise JobStopped


@contextlib.contextmanager
def stopping_jobs() -> Iterator[None]:
    """During the block, let jobs in processes of their own stop by themselves after a signal.

    A terminal sends Ctrl-C to all processes. SIGTERM is passed on. A second signal ends everything at once.

    Raises:
        Interrupted: at the end of the block, if there was a signal.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            raise Interrupted(number)
        noted.append(number)
        print_line("stopping all jobs; interrupt again to stop at once", style="bold yellow")
        if number == signal.SIGTERM:
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(number)

    former = {number: signal.signal(number, note) for number in SIGNALS if processes.handles_signals()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if noted:
        raise Interrupted(noted[0])
