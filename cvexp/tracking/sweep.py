"""The parent run of a sweep in MLflow, and what its jobs know of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from mlflow.entities import Param

from cvexp.config import TrackingConfig
from cvexp.errors import Interrupted, UserError, opening
from cvexp.metrics.names import safe_name
from cvexp.redaction import hide_secrets
from cvexp.tracking.description import JOB_VARIABLE, PARENT_VARIABLE, SWEPT_VARIABLE
from cvexp.tracking.opened import note_opened
from cvexp.tracking.store import Store, connect
from cvexp.tracking.waiting import deliver_earlier

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SweepRun:
    """The parent run of a sweep.

    Attributes:
        store: Where the sweep is recorded.
        id: MLflow's id of the run.
        swept: The keys that the jobs differ in.
        folder: The tracking folder.
        stays_open: Whether jobs go on in other processes when this one ends.
    """

    def __init__(self, store: Store, run_id: str, swept: Sequence[str], folder: str) -> None:
        self.store = store
        self.folder = folder
        self.stays_open = False
        self.id = run_id
        self.swept = swept

    def metrics(self) -> dict[str, float]:
        """Return the latest value of each metric."""
        metrics: dict[str, float] = self.store.client.get_run(self.id).data.metrics
        return metrics

    def environment(self, number: int) -> dict[str, str]:
        """Return the environment variables from which a job, on whatever machine, knows its sweep."""
        return {PARENT_VARIABLE: self.id, JOB_VARIABLE: str(number), SWEPT_VARIABLE: ",".join(self.swept)}

    def log_summary(self, rows: Sequence[Mapping[str, Any]], table: str) -> None:
        """Record what became of the jobs, as JSON and as a Markdown table."""
        self.store.client.log_dict(self.id, {"jobs": [dict(row) for row in rows]}, "sweep/summary.json")
        self.store.client.log_text(self.id, table, "sweep/summary.md")

    def log_json(self, values: Mapping[str, Any], path: str) -> None:
        """Record nested values as an artifact."""
        self.store.client.log_dict(self.id, dict(values), path)

    def log_text(self, text: str, path: str) -> None:
        """Record text as an artifact."""
        self.store.client.log_text(self.id, text, path)

    def log_figure(self, figure: Figure, path: str) -> None:
        """Record a picture as an artifact."""
        self.store.client.log_figure(self.id, figure, path)

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.store.client.set_terminated(self.id, status)


@contextlib.contextmanager
def open_sweep(
    tracking: TrackingConfig,
    overrides: Sequence[str],
    command: str,
    swept: Sequence[str],
    identity: str,
    goes_on: bool,
    task: str = "sweep",
) -> Iterator[SweepRun]:
    """Open the parent run of a sweep, or that of an earlier start of the same sweep, for the duration of the block.

    The block may close the run. Otherwise, it ends as FINISHED, or as KILLED or FAILED after an exception.

    Args:
        tracking: Where the sweep is recorded.
        overrides: The overrides, including those of the sweeper.
        command: The command that repeats the sweep.
        swept: The keys that the jobs differ in.
        identity: What the sweep consists of, by which an earlier start of it is found.
        goes_on: Whether to go on with the run of an earlier start.
        task: What the run is recorded as.

    Raises:
        UserError: if the same sweep is running in another process.
    """
    store = connect(tracking)
    deliver_earlier(tracking)
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    with _only_process(Path(tracking.folder), key) if goes_on else contextlib.nullcontext():
        run_id = _reopen(store, command, key) if goes_on else None
        run_id = run_id or _create(store, overrides, command, key, swept, task)
        status = "FINISHED"
        sweep = SweepRun(store, run_id, swept, tracking.folder)
        note_opened(sweep)
        try:
            yield sweep
        except (KeyboardInterrupt, Interrupted):
            status = "KILLED"
            raise
        except BaseException:
            status = "FAILED"
            raise
        finally:
            is_closed = status == "FINISHED" and store.client.get_run(run_id).info.status != "RUNNING"
            if not is_closed and not sweep.stays_open:
                store.client.set_terminated(run_id, status)


def _reopen(store: Store, command: str, key: str) -> str | None:
    """Reopen the run of an earlier start, and return its id, or None if there is none."""
    earlier = next(store.search(f"tags.`sweep.key` = '{key}'"), None)
    if earlier is None:
        return None
    run_id = str(earlier.info.run_id)
    store.client.update_run(run_id, status="RUNNING")
    store.client.set_tag(run_id, "command", command)
    return run_id


def _create(store: Store, overrides: Sequence[str], command: str, key: str, swept: Sequence[str], task: str) -> str:
    """Create the run, with the overrides as its parameters, and the swept ones in its name."""
    tags = {
        "task": task,
        "role": "sweep",
        "sweep.key": key,
        "command": command,
    }
    values = {name: value for name, _, value in (override.lstrip("+").partition("=") for override in overrides)}
    words = [f"{name.rpartition('.')[2]}={value}" for name, value in values.items() if name in swept]
    name = hide_secrets(" ".join([task, *words]))[:250]
    run_id = str(store.client.create_run(store.experiment_id(), run_name=name, tags=tags).info.run_id)
    params = [Param(safe_name(f"sweep.{name}"), hide_secrets(value)[:6000]) for name, value in values.items()]
    store.client.log_batch(run_id, params=params)
    return run_id


@contextlib.contextmanager
def _only_process(folder: Path, key: str) -> Iterator[None]:
    """Lock a sweep for this process. The system releases the lock however the process ends."""
    with opening("tracking.folder"):
        (folder / "sweeps").mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "sweeps" / f"{key}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                "the same sweep is running in another process; wait for it, or stop it first; to run it twice, "
                "add hydra.sweeper.skip_finished=false"
            ) from error
    try:
        yield
    finally:
        lock.release()


def swept_settings(overrides: Sequence[str]) -> dict[str, str]:
    """Return, by key, those overrides of a job that vary within its sweep. Outside a sweep, there are none."""
    swept = os.environ.get(SWEPT_VARIABLE, "").split(",")
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs if key in swept}
