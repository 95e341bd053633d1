"""What waits in the outboxes of runs that have ended, because MLflow's store was away, or the run was killed."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from cvexp.config import TrackingConfig
from cvexp.tracking.delivery import is_permanent
from cvexp.tracking.outbox import OUTBOXES, REFUSED, Outbox, send, set_aside
from cvexp.tracking.store import Store, connect, first_line

log = logging.getLogger("cvexp")


class Delivered(NamedTuple):
    """What became of the outbox of a run.

    Attributes:
        run_id: MLflow's id of the run.
        num_entries: The number of entries that were delivered.
        problem: Why some were not, or "".
    """

    run_id: str
    num_entries: int
    problem: str


def deliver_waiting(store: Store, folder: str, tries_refused: bool) -> Iterator[Delivered]:
    """Deliver what waits in the outboxes of a tracking folder.

    Args:
        store: Where to deliver it.
        folder: The tracking folder.
        tries_refused: Whether to try again what the store has refused before.

    Yields:
        What became of each outbox that is not empty.

    Raises:
        MlflowException: or another one of `cvexp.tracking.store.FAILURES`, if the store is away.
    """
    for path in sorted((Path(folder).absolute() / OUTBOXES).glob("*")):
        outbox = Outbox(path)
        if not len(outbox) and not (tries_refused and outbox.has_refused()):
            continue
        try:
            outbox.lock(seconds=0)
        except Timeout:
            yield Delivered(path.name, 0, "a process is still working on the run")
            continue
        try:
            if tries_refused:
                outbox.restore_refused()
            if _is_known(store, path.name):
                yield _deliver(store, path.name, outbox)
            else:
                yield Delivered(path.name, 0, f"{store.address} does not know the run; name its store")
        finally:
            outbox.unlock()


def _is_known(store: Store, run_id: str) -> bool:
    try:
        store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), "INVALID_PARAMETER_VALUE"):
            return False
        raise
    return True


def _deliver(store: Store, run_id: str, outbox: Outbox) -> Delivered:
    num_entries, problem = 0, ""
    for entry in outbox.entries():
        try:
            send(store.client, run_id, entry)
        except Exception as error:
            if not is_permanent(error):
                raise
            set_aside(entry.path)
            problem = f"the store refuses {entry.path.with_suffix(REFUSED)}: {first_line(error)}"
        else:
            outbox.remove(entry)
            num_entries += 1
    return Delivered(run_id, num_entries, problem)


def deliver_earlier(tracking: TrackingConfig) -> None:
    """Deliver what earlier runs have left, if anything, and print what that was."""
    if not glob.glob("*/*.json", root_dir=Path(tracking.folder) / OUTBOXES):
        return
    for delivered in deliver_waiting(connect(tracking), tracking.folder, tries_refused=False):
        if delivered.num_entries:
            log.info("delivered what waited of the run %s: %s records", delivered.run_id, delivered.num_entries)
