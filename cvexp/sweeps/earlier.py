"""Runs that an earlier start of a sweep left: finished ones are not repeated, interrupted ones go on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow.entities import Run as MLflowRun

from cvexp import data
from cvexp.config import RunConfig, flatten
from cvexp.data.prepare import Use
from cvexp.errors import UserError
from cvexp.tracking.description import JOB_VARIABLE, PARENT_VARIABLE, digest
from cvexp.tracking.opening import LOCK
from cvexp.tracking.store import Store, connect
from cvexp.weights.locate import source_run

log = logging.getLogger("cvexp")


class Data:
    """The fingerprints of data, which are opened once for all jobs of a sweep."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str] | None] = {}

    def fingerprints(self, config: RunConfig) -> dict[str, str] | None:
        """Return the fingerprint of each split of a run's data, or None if the data can't be used."""
        role = config.task.role
        use: Use = "segmentation" if role == "segmentation" else "pretraining"
        uses_labels = role != "pretraining"
        dataset = config.dataset
        if not uses_labels or dataset.fraction == 1:
            dataset = replace(dataset, fraction_seed=0)  # which has no effect
        key = f"{use} {uses_labels} {flatten(asdict(dataset))}"
        if key not in self._known:
            try:
                splits = data.open_splits(dataset, use, uses_labels)
                self._known[key] = {index.split: index.fingerprint() for index in splits}
            except UserError:  # the job itself says what is wrong
                self._known[key] = None
        return self._known[key]

    def are_those_of(self, run: MLflowRun, config: RunConfig) -> bool:
        """Return whether a run used the data as they are now."""
        return self.recorded(run) == self.fingerprints(config)

    @staticmethod
    def recorded(run: MLflowRun) -> dict[str, str]:
        """Return the fingerprints that a run recorded, by split."""
        tags = {split: run.data.tags.get(f"data.{split}.fingerprint") for split in ("train", "val", "test")}
        return {split: fingerprint for split, fingerprint in tags.items() if fingerprint is not None}


def find_finished(store: Store, config: RunConfig, known: Data, repeats_jobs: bool = True) -> MLflowRun | None:
    """Return the newest finished run with the same configuration, the same data and the same initial weights.

    Args:
        store: Where runs are recorded.
        config: The configuration of the job.
        known: The data of the sweep.
        repeats_jobs: Whether tasks that do not train are always repeated, because there may be new runs to work on.
    """
    if (config.role == "job" and repeats_jobs) or config.resume is not None:
        return None
    for run in store.search(f"attributes.status = 'FINISHED' and tags.`cvexp.config` = '{digest(config)}'"):
        if known.are_those_of(run, config) and _has_same_start(run, config, store):
            return run
    return None


def _has_same_start(run: MLflowRun, config: RunConfig, store: Store) -> bool:
    """Return whether `backbone.weights` still names the weights that a run started from."""
    weights = config.backbone.weights
    if config.continues or weights in (None, "timm") or weights.startswith("runs:/"):
        return True
    if weights.startswith(("latest:", "models:/")):
        try:
            return source_run(weights, config, store) == run.data.tags.get("weights_from")
        except UserError:
            return False
    path = Path(weights)
    return path.is_file() and path.stat().st_mtime * 1000 < run.info.start_time


def find_running(store: Store, config: RunConfig) -> MLflowRun | None:
    """Return the run of a sweep with this configuration that another process is working on, or None."""
    return next((run for run in _unfinished(store, config) if is_locked(run, config.tracking.folder)), None)


def find_interrupted(config: RunConfig, of_any_sweep: bool) -> str | None:
    """Return the id of the run that this job of a sweep left when it was interrupted, or None.

    A job is interrupted by a signal, an error, or a scheduler that stops it and starts it again.

    Args:
        config: The configuration of the job.
        of_any_sweep: Whether the run may belong to another sweep, such as one with fewer jobs. It then becomes a run of
            this one.

    Raises:
        UserError: if that run is still running in another process.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if not parent or config.role == "job" or config.resume is not None:
        return None
    store = connect(config.tracking)
    for run in _unfinished(store, config):
        if not of_any_sweep and run.data.tags.get("mlflow.parentRunId") != parent:
            continue
        if is_locked(run, config.tracking.folder):
            raise UserError(f"this job is still running in another process, as run {run.info.run_id}")
        if _can_go_on(run, config, store):
            log.info("going on with the interrupted run %s", run.info.run_id)
            tags = {"mlflow.parentRunId": parent, "sweep.job": os.environ.get(JOB_VARIABLE, "")}
            for key, value in tags.items():
                store.client.set_tag(run.info.run_id, key, value)
            return str(run.info.run_id)
    return None


def _unfinished(store: Store, config: RunConfig) -> Iterator[MLflowRun]:
    """Yield the runs of sweeps with a configuration that did not finish, and are on this machine, newest first."""
    tracking = Path(config.tracking.folder).resolve()
    for run in store.search(f"attributes.status != 'FINISHED' and tags.`cvexp.config` = '{digest(config)}'"):
        folder = Path(run.data.tags.get("cvexp.folder", "")).resolve()
        if "sweep.job" in run.data.tags and folder.is_relative_to(tracking) and folder.is_dir():
            yield run


def is_locked(run: MLflowRun, tracking_folder: str) -> bool:
    """Return whether a process is working on a run."""
    folder = Path(run.data.tags.get("cvexp.folder", "")).resolve()
    if not folder.is_relative_to(Path(tracking_folder).resolve()) or not folder.is_dir():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def _can_go_on(run: MLflowRun, config: RunConfig, store: Store) -> bool:
    """Return whether a run can be resumed, and has the data and the initial weights as they are now."""
    tags = run.data.tags
    if "pruned" in tags or "config.yaml" not in store.files(run.info.run_id):
        return False
    if "start" in tags and not _has_same_start(run, config, store):
        return False
    known = Data()
    recorded, now = known.recorded(run), known.fingerprints(config)
    return not recorded or (now is not None and recorded.items() <= now.items())  # it may have recorded only some
