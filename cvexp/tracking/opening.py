"""Opening a new or interrupted run, and closing it with the right status."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow.entities import Param
from omegaconf import OmegaConf

from cvexp import processes, progress
from cvexp.config import RunConfig, flatten, without_passwords
from cvexp.errors import Incomplete, Interrupted, Pruned, UserError, opening
from cvexp.metrics.names import safe_name
from cvexp.tracking import description, space
from cvexp.tracking.checkpoints import fetch_newer
from cvexp.tracking.opened import note_opened
from cvexp.tracking.outbox import STEP
from cvexp.tracking.run import ReadOnlyRun, Run
from cvexp.tracking.store import Store, connect, failures_explained
from cvexp.tracking.system import SystemMetrics
from cvexp.tracking.watchdog import failure_recorded, watched

LOCK = "run.lock"  # a file in a run's folder, which is locked while the run is open


@contextlib.contextmanager
def open_run(
    config: RunConfig, folder: Path, command: str = "", swept: Mapping[str, str] | None = None
) -> Iterator[ReadOnlyRun]:
    """Open a new run, or the interrupted one that `config.resume` names, and close it at the end of the block.

    The run ends as FINISHED, also if it is incomplete, in which case the tag `left_out` says what is missing; as KILLED
    after Ctrl-C, SIGTERM or pruning; or as FAILED after an error, whose text becomes the tag `error`. Of several
    processes that train together, only the first one writes to the run, but each records its own failure, because that
    may be the cause of the first one's, or the first one may have been killed.

    Args:
        config: The run's configuration.
        folder: Hydra's folder of a new run.
        command: The command that repeats the run.
        swept: The settings that the jobs of a sweep differ in, for the name of a new run.

    Raises:
        UserError: if the run can't be opened, or later if the store fails, the disk is full, or a worker process of a
            loader or another process of the training is killed.
    """
    if processes.rank() > 0:
        with _open_another_process(config, folder) as run:
            yield run
        return
    store = connect(config.tracking)
    if config.resume is None:
        with failures_explained("check it, and start again"):
            run_id = _create_run(store, config, folder, command, swept or {})
    else:
        run_id = config.resume
        folder = _recorded_folder(store, config, folder)
    with (
        _only_process(folder, run_id),
        failures_explained(
            f"once it works again, resume the run with: {description.resume_command(run_id, config.tracking.folder)}"
        ),
    ):
        run = Run(store, run_id, folder, config.tracking)
        note_opened(run)
        with watched(run):
            try:
                if config.resume is not None:
                    _reopen(run, config)
                with _closing(run, config), _lost_processes_explained(run.resume_command):
                    processes.from_first((run_id, folder))  # now that its last checkpoint is here
                    yield run
            finally:
                run.release()


@contextlib.contextmanager
def _open_another_process(config: RunConfig, folder: Path) -> Iterator[ReadOnlyRun]:
    """Open the run of the first process in another one, which records only its own failure.

    Raises:
        UserError: if this process does not find the run where the first one has recorded it.
    """
    with _lost_processes_explained():
        run_id, folder = processes.from_first(("", folder))
    with failures_explained(
        f"process {processes.rank()} needs the run {run_id}: choose a tracking.folder on a file system that all "
        "machines share, or name a server with MLFLOW_TRACKING_URI"
    ):
        run = ReadOnlyRun(connect(config.tracking), run_id, folder, config.tracking)
        note_opened(run)
    with watched(run), failure_recorded(run), _lost_processes_explained(run.resume_command):
        yield run


def _reopen(run: Run, config: RunConfig) -> None:
    """Set an interrupted run to RUNNING, and record what is missing if the run was killed early."""
    client = run.store.client
    run.reload()
    _log_parameters(run.store, run.id, config)
    client.update_run(run.id, status="RUNNING")
    run.set_tag("processes", str(processes.world_size()))
    run.set_tag(description.RESUMED, "true")
    run.set_tag("cvexp.folder", str(run.run_folder.absolute()))
    if "error" in run.tags():
        client.delete_tag(run.id, "error")
    fetch_newer(run)


@contextlib.contextmanager
def _closing(run: Run, config: RunConfig) -> Iterator[None]:
    monitor = SystemMetrics(run) if config.tracking.system_metrics else None
    status: str = "FAILED"
    failure: BaseException | None = None
    try:
        yield
        status = "FINISHED"
    except Incomplete as incomplete:
        run.set_tag("left_out", str(incomplete))
        status = "FINISHED"
        raise
    except (KeyboardInterrupt, Interrupted, SystemExit, Pruned):
        status = "KILLED"
        raise
    except BaseException as error:
        failure = error
        if isinstance(error, Exception) and space.is_out_of_space(error, run):
            raise UserError(space.explain(error, run)) from error
        raise
    finally:
        with progress.step("handing the record to MLflow"):
            _close(run, status, failure, monitor)


def _close(run: Run, status: str, error: BaseException | None, monitor: SystemMetrics | None) -> None:
    """End a run, trying every step even if others fail.

    Args:
        run: The run.
        status: The final status of the run, unless a step fails.
        error: The error that made the run fail, which is recorded.
        monitor: The monitor of the machine, if there is one.

    Raises:
        Exception: the first failure of a step, unless the run failed or was killed before.
    """
    failures: list[Exception] = []
    steps: list[Callable[[], object]] = [run.upload_checkpoints, run.drain]
    if monitor is not None:
        steps.insert(0, monitor.finish)
    if error is not None:
        steps.insert(0, lambda: run.set_tag("error", _error_text(run, error)))
    steps.append(lambda: run.close("FAILED" if failures and status == "FINISHED" else status))
    for step in steps:
        try:
            step()
        except Exception as failed:  # whatever it is, the next steps still matter
            failures.append(failed)
    if status == "FINISHED" and failures:
        raise failures[0]


def _error_text(run: Run, error: BaseException) -> str:
    """Return the tag of an error, which keeps the error that another process has recorded before."""
    text = f"{type(error).__name__}: {error}"
    earlier = run.recorded_error()
    return f"{earlier}; process 0: {text}" if earlier and text not in earlier else text


@contextlib.contextmanager
def _lost_processes_explained(command: str | None = None) -> Iterator[None]:
    """Explain the errors that follow if a worker process of a loader, or another process of the training, is gone."""
    advice = f"resume the run with: {command}" if command else "start again"
    try:
        yield
    except RuntimeError as error:
        if match := re.search(r"DataLoader worker \(pid.*\) (.*)", str(error)):
            raise UserError(
                f"loader: a worker process {match[1].rstrip('. ')}; if the machine ran out of memory, lower "
                f"loader.num_workers or loader.batch_size, and {advice}"
            ) from error
        if processes.is_lost_connection(error):
            raise UserError(
                "another process of the run ended, or can't be reached any more; if it printed an error, solve that "
                f"first, and {advice}"
            ) from error
        raise


def _recorded_folder(store: Store, config: RunConfig, new: Path) -> Path:
    """Return the folder of an interrupted run, or a new one if the run goes on elsewhere from what the store has.

    Raises:
        UserError: if it is not inside the tracking folder, and the store has no checkpoint. Whoever can write to the
            store can change the tag.
    """
    tags = store.run(str(config.resume), "resume").data.tags
    recorded = tags.get("cvexp.folder", "")
    folder, tracking = Path(recorded).resolve(), Path(config.tracking.folder).resolve()
    if recorded and folder.is_relative_to(tracking):
        return folder
    if STEP in tags:
        return new
    raise UserError(
        f"resume: the run {config.resume} has its folder at {recorded!r} (tag cvexp.folder), which is not in "
        f"tracking.folder={config.tracking.folder}, and the store has no checkpoint of it; set tracking.folder to "
        "where the run was started, on the same machine"
    )


def _create_run(store: Store, config: RunConfig, folder: Path, command: str, swept: Mapping[str, str]) -> str:
    name = config.name or description.default_name(config, swept)
    tags = description.describe(config, folder, command)
    run_id = str(store.client.create_run(store.experiment_id(), run_name=name, tags=tags).info.run_id)
    # This comes first, because from here on, a run that is killed can be resumed.
    store.client.log_text(run_id, OmegaConf.to_yaml(without_passwords(asdict(config))), "config.yaml")
    _log_parameters(store, run_id, config)
    return run_id


def _log_parameters(store: Store, run_id: str, config: RunConfig) -> None:
    """Record every key of the configuration that is not recorded yet, because recorded ones can't be changed."""
    logged = store.client.get_run(run_id).data.params
    values = {safe_name(key): value for key, value in flatten(without_passwords(asdict(config))).items()}
    params = [Param(key, value[:6000]) for key, value in values.items() if key not in logged]
    for first in range(0, len(params), 100):  # MLflow's limit
        store.client.log_batch(run_id, params=params[first : first + 100])


@contextlib.contextmanager
def _only_process(folder: Path, run_id: str) -> Iterator[None]:
    """Lock a run for this process. The system releases the lock however the process ends.

    The run's folder tells scripts its id (`run_id`), and whether it was stopped by a signal (`stopped`).
    """
    with opening("tracking.folder"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(f"resume: the run {run_id} is still running in another process; stop it first") from error
        (folder / "run_id").write_text(f"{run_id}\n")
        (folder / "stopped").unlink(missing_ok=True)
    try:
        yield
    except Interrupted:
        (folder / "stopped").touch()
        raise
    finally:
        lock.release()
