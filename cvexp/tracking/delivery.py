"""The delivery of an outbox to MLflow's store, beside the training, which never waits for the store."""

from __future__ import annotations

import contextlib
import logging
import threading
import time

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, ErrorCode
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from requests import HTTPError

from cvexp.tracking.outbox import Entry, Outbox, send, set_aside
from cvexp.tracking.store import FAILURES, Store, first_line

PATIENCE = 3.0  # seconds that the end of a run waits for a store that does not answer
BLIP = 2.0  # seconds for which a store may be away without a message
SLOW = 30.0  # seconds for which a store may take nothing without a message, such as while it takes a large file
RETRY_SECONDS = 1.0

_PERMANENT = {ErrorCode.Name(INVALID_PARAMETER_VALUE), ErrorCode.Name(BAD_REQUEST)}
_TEMPORARY_STATUS = (401, 403, 408, 429)  # of HTTP, among those of client errors: signing in can be corrected

log = logging.getLogger("cvexp")


class Delivery:
    """Sends the entries of an outbox to the store, one after another, in a thread of its own.

    If the store is away, or refuses the user's password, it tries again until it succeeds.

    Args:
        store: Where the entries are sent to.
        run_id: MLflow's id of the run.
        outbox: The outbox.

    Attributes:
        refused: The errors of entries that the store refuses for good.
        failure: The last error of a store that took nothing at that moment, in one line.
    """

    def __init__(self, store: Store, run_id: str, outbox: Outbox) -> None:
        self.refused: list[Exception] = []
        self.failure = ""
        self._store, self._run_id, self._outbox = store, run_id, outbox
        self._changed = threading.Condition()
        self._has_news, self._is_stopped = bool(len(outbox)), False
        self._last_progress = time.monotonic()
        self._failing_since: float | None = None
        self._waited_since: float | None = None  # by the end of the run, however often it asks
        self._is_busy = self._has_warned = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="delivery")
        self._thread.start()

    def notify(self) -> None:
        """Say that the outbox has a new entry. Prints a message if earlier ones have been waiting for long."""
        with self._changed:
            self._has_news = True
            self._changed.notify_all()
        if self._is_busy and time.monotonic() - self._last_progress > SLOW:
            self._warn(f"has taken nothing for {SLOW:.0f} seconds")

    def drain(self) -> bool:
        """Wait until everything is delivered or refused, and return True, or False if the store is away."""
        while len(self._outbox):
            is_quick = self._failing_since is None and time.monotonic() - self._last_progress < BLIP
            with self._changed:
                self._changed.wait(0.05 if is_quick else 0.5)
            now = time.monotonic()
            if is_quick or (self._failing_since is None and self._answers()):
                self._waited_since = None
            elif self._waited_since is None:
                self._waited_since = now
            elif now - self._waited_since > PATIENCE:
                return False
        return True

    def stop(self) -> bool:
        """End the thread, and return whether it has ended, which may take minutes while the store is away."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        self._thread.join(timeout=1)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while self._wait_for_news():
            for entry in self._outbox.entries():
                while not self._is_stopped and not self._deliver(entry):
                    with self._changed:
                        self._changed.wait_for(lambda: self._is_stopped, timeout=RETRY_SECONDS)

    def _wait_for_news(self) -> bool:
        with self._changed:
            self._is_busy = False
            self._changed.wait_for(lambda: self._has_news or self._is_stopped)
            self._has_news, self._is_busy = False, True
            self._last_progress = time.monotonic()
        return not self._is_stopped

    def _deliver(self, entry: Entry) -> bool:
        """Send an entry and remove it from the outbox, or return False if the store does not take it now."""
        try:
            if self._failing_since is not None and not self._answers():  # or else MLflow's client waits for long
                raise MlflowException("it does not answer")
            send(self._store.client, self._run_id, entry)
        except Exception as error:
            if not entry.path.exists():  # a newer checkpoint has taken its place
                return True
            if not is_permanent(error):
                self._note_failure(error)
                return False
            self.refused.append(error)
            set_aside(entry.path)
        else:
            self._outbox.remove(entry)
        self._note_success()
        return True

    def _answers(self) -> bool:
        return answers(self._store)

    def _note_failure(self, error: Exception) -> None:
        with self._changed:
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            self.failure = first_line(error)
            self._changed.notify_all()
        if now - self._failing_since > BLIP:
            self._warn(f"takes nothing at the moment ({self.failure})")

    def _note_success(self) -> None:
        with self._changed:
            self._last_progress, self._failing_since = time.monotonic(), None
            self._changed.notify_all()
        if self._has_warned:
            self._has_warned = False
            log.info("MLflow's store at %s takes again what the run records", self._store.address)

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "MLflow's store at %s %s; the run goes on, and what it records waits in %s",
                *(self._store.address, what, self._outbox.folder),
            )


def is_permanent(error: Exception) -> bool:
    """Return whether sending the same again would fail again, because it is not valid."""
    if isinstance(error, HTTPError) and error.response is not None:
        status = error.response.status_code
        return 400 <= status < 500 and status not in _TEMPORARY_STATUS
    if isinstance(error, MlflowException):
        return error.error_code in _PERMANENT
    return not isinstance(error, (*FAILURES, OSError))


def answers(store: Store) -> bool:
    """Return whether a server can be reached. MLflow's client would retry for minutes. A database always can."""
    uri = store.client.tracking_uri
    if not uri.startswith(("http://", "https://")):
        return True
    with contextlib.suppress(*FAILURES, OSError):
        response = http_request(
            get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=5, raise_on_status=False
        )
        return bool(response.status_code < 500)
    return False
