"""The end of one of several processes that train together: whatever ends it, the run does not stay RUNNING.

If a process dies, torchrun sends SIGTERM to the others, and kills them 30 seconds later. Until then, they most likely
wait for the dead process in a function of PyTorch, which either fails or never returns.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from cvexp import processes
from cvexp.errors import Interrupted
from cvexp.redaction import hide_secrets
from cvexp.tracking.run import ReadOnlyRun
from cvexp.tracking.store import few_retries

PATIENCE = 20.0  # seconds from a signal to the end of the process, less than torchrun's 30
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def watched(run: ReadOnlyRun) -> Iterator[None]:
    """Note signals until the training can stop, and end this process if it does not stop in time.

    With one process, this does nothing. A thread waits for the signal, because Python calls no handler while the main
    thread is in a function of PyTorch.
    """
    if processes.world_size() == 1:
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        run.noted_signal = run.noted_signal or number

    has_ended = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    former_writer = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    former = {number: signal.signal(number, note) for number in SIGNALS}
    threading.Thread(target=_watch, args=(run, reader, has_ended), daemon=True).start()
    try:
        yield
    finally:
        has_ended.set()
        signal.set_wakeup_fd(former_writer)
        for number, handler in former.items():
            signal.signal(number, handler)
        writer.close()


def _watch(run: ReadOnlyRun, reader: socket.socket, has_ended: threading.Event) -> None:
    """Wait for a signal, and then for the end of the run, but not longer than `PATIENCE`."""
    with reader:
        while numbers := reader.recv(64):
            if set(numbers) & set(SIGNALS):
                break
        if has_ended.wait(PATIENCE if numbers else None):
            return
    error = f"did not stop within {PATIENCE:.0f} seconds of a signal; another process may have died"
    record_end(run, "FAILED", error)
    sys.stderr.write(f"cvexp: error: process {processes.rank()} {error}; resume with: resume={run.id}\n")
    sys.stderr.flush()
    os._exit(1)


@contextlib.contextmanager
def failure_recorded(run: ReadOnlyRun) -> Iterator[None]:
    """Record how a process that is not the first one ends, if it ends early, because the first one may have died."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        record_end(run, "KILLED")
        raise
    except BaseException as error:
        record_end(run, "FAILED", f"{type(error).__name__}: {error}")
        raise


def record_end(run: ReadOnlyRun, status: str, error: str = "") -> None:
    """Set the status of a run that is still RUNNING, and the tag `error` if there is none.

    If the store fails, nothing is recorded, because what ended the process matters more.
    """
    client = run.store.client
    with few_retries(), contextlib.suppress(Exception):
        recorded = client.get_run(run.id)
        if error and "error" not in recorded.data.tags:
            client.set_tag(run.id, "error", hide_secrets(f"process {processes.rank()}: {error}")[:5000])
        if recorded.info.status == "RUNNING":
            client.set_terminated(run.id, status)
