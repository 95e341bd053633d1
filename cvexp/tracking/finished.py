"""Finished runs as found in MLflow, with what they recorded."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mlflow.entities import Run as MLflowRun

from cvexp.composition import check
from cvexp.config import RunConfig
from cvexp.errors import UserError
from cvexp.tracking.kept import KeptFiles
from cvexp.tracking.resume import recorded_config
from cvexp.tracking.store import Content, Store

log = logging.getLogger("cvexp")


class RecordedData(NamedTuple):
    """What a run recorded about a split.

    Attributes:
        fingerprint: The fingerprint of the files' contents, boxes and labels.
        num_images, num_objects: The numbers of images and objects.
        classes: The number of objects of each class, in class order; empty if there are no labels.
    """

    fingerprint: str
    num_images: int
    num_objects: int
    classes: dict[str, int]


class FinishedRun:
    """A run that a job works on.

    Attributes:
        id: MLflow's id of the run.
        name: The run's name in MLflow.
        task: The name of the run's task.
        role: ``"pretraining"``, ``"segmentation"`` or ``"job"``.
        started: When it was started, in milliseconds since 1970.
        start: Origin of the initial weights: ``"random"``, ``"timm"``, the task of a pretraining run, or a file's name.
        tags, params, metrics: The tags, parameters and latest metrics in MLflow.
        data: What the run recorded about each split.
    """

    def __init__(self, store: Store, run: MLflowRun, local: RunConfig) -> None:
        """
        Args:
            store: Where the run is recorded.
            run: The run as MLflow returns it.
            local: The configuration of this process.
        """
        self.id = str(run.info.run_id)
        self.name = str(run.info.run_name)
        self.tags: dict[str, str] = run.data.tags
        self.params: dict[str, str] = run.data.params
        self.metrics: dict[str, float] = run.data.metrics
        self.task = self.tags.get("task", "")
        self.role = self.tags.get("role", "")
        self.started = int(run.info.start_time)
        self.start = self.tags.get("start", "random")
        self.data = _recorded_data(run)
        self.store, self._local = store, local

    @cached_property
    def config(self) -> RunConfig:
        """The configuration of the run, which is fetched on first use.

        Raises:
            UserError: if it can't be read, or comes from another version of cvexp.
        """
        try:
            return check(recorded_config(self.store, self.id, self._local))
        except UserError as error:
            raise UserError(f"the run {self.id} can't be used: {error}") from error

    @property
    def seed(self) -> int:
        return int(self.params["seed"])

    def is_readable(self) -> bool:
        """Return whether the run's configuration can be used, and if not, log a warning that says why."""
        try:
            return bool(self.config)
        except UserError as error:
            log.warning("left out: %s", error)
            return False

    @property
    def classes(self) -> list[str]:
        """The class names of the run's data, in order; empty if the data have no labels or were not recorded."""
        return list(self.data["val"].classes) if "val" in self.data else []

    @property
    def num_validation_crops(self) -> int | None:
        """The number of the validation objects, which pretraining crops; None if it was not recorded."""
        return self.data["val"].num_objects if "val" in self.data else None

    def history(self, name: str) -> list[tuple[int, float]]:
        """Return all (step, value) pairs of a metric, sorted by step; empty if the run has no such metric."""
        return self.store.history(self.id, name) if name in self.metrics else []

    def continued(self) -> list[FinishedRun]:
        """Return the run that this one continues, the one that that one continues, and so on, as far as they exist."""
        if "continues" not in self.tags:
            return []
        try:
            source = FinishedRun(self.store, self.store.run(self.tags["continues"], "run"), self._local)
        except UserError:
            return []
        return [source, *source.continued()]

    def sweep_command(self) -> str | None:
        """Return the command of the sweep that the run belongs to, or None if it belongs to no sweep."""
        parent = self.tags.get("mlflow.parentRunId")
        if parent is None:
            return None
        tags = self.store.run(parent, "run").data.tags
        return tags.get("command") if tags.get("role") == "sweep" else None

    def read(self, path: str, parse: Callable[[Path], Content]) -> Content | None:
        """Read an artifact, or return None if the run does not have it.

        Raises:
            UserError: if the artifact is damaged.
        """
        return self.store.read_if_there(self.id, path, parse)


def recorded_epochs(store: Store | KeptFiles, run_id: str, folder: str) -> list[int]:
    """List the epochs after which a run recorded an artifact `epoch-NNNN.npz` in a folder."""
    names = store.files(run_id, folder)
    return sorted(int(match[1]) for name in names if (match := re.search(r"epoch-(\d+)\.npz$", name)))


def embedded_epochs(store: Store | KeptFiles, run_id: str) -> list[int]:
    """List the epochs after which a run recorded an embedding.

    Raises:
        UserError: if it recorded none.
    """
    epochs = recorded_epochs(store, run_id, "embeddings")
    if not epochs:
        raise UserError(f"run: {run_id} has recorded no embedding; name another pretraining run")
    return epochs


def find_runs(store: Store, config: RunConfig, tag: str, value: str) -> list[FinishedRun]:
    """Return the runs that `config.runs` names, or else all finished runs with a tag, newest first.

    Args:
        store: Where the runs are recorded.
        config: The job's configuration.
        tag, value: A tag of the runs, ``"role"`` or ``"task"``, and its value.

    Raises:
        UserError: if a named run does not exist, has not finished, or has another value of the tag.
    """
    if config.runs is None:
        return list(all_runs(store, config, tag, value))
    return [_named_run(store, config, tag, [value], run_id, "runs") for run_id in config.runs]


def all_runs(store: Store, config: RunConfig, tag: str, value: str, *conditions: str) -> Iterator[FinishedRun]:
    """Yield all finished runs with a tag, newest first, regardless of the runs that the configuration names.

    A store may contain thousands of runs, and fetching one takes a millisecond. So ask for few, or stop early.

    Args:
        store: Where the runs are recorded.
        config: The job's configuration.
        tag, value: A tag of the runs, and its value.
        conditions: Further conditions in MLflow's query language.
    """
    for run in store.search(_query(f"tags.{tag} = '{value}'", *conditions)):
        yield FinishedRun(store, run, config)


def newest_runs(store: Store, config: RunConfig, limit: int, *conditions: str) -> list[FinishedRun]:
    """Return the newest finished runs that match conditions in MLflow's query language, in one request.

    Args:
        store: Where the runs are recorded.
        config: The job's configuration.
        limit: The maximum number of runs.
        conditions: The conditions.
    """
    found = store.client.search_runs([store.experiment_id()], _query(*conditions), max_results=limit)
    return [FinishedRun(store, run, config) for run in found]


def runs_with_ids(store: Store, config: RunConfig, ids: Iterable[str], role: str) -> list[FinishedRun]:
    """Return those finished runs with a role that have one of these ids, newest first, in one request."""
    safe = sorted(run_id for run_id in set(ids) if re.fullmatch(r"[0-9a-f]{32}", run_id))  # recorded, so not trusted
    if not safe:
        return []
    listed = ", ".join(f"'{run_id}'" for run_id in safe)
    return newest_runs(store, config, len(safe), f"attributes.run_id IN ({listed})", f"tags.role = '{role}'")


def _query(*conditions: str) -> str:
    return " and ".join(["attributes.status = 'FINISHED'", *conditions])


def newest_with(store: Store, config: RunConfig, task: str, artifact: str) -> FinishedRun | None:
    """Return the newest run of a task that has recorded an artifact, whether it has finished or not, or None."""
    folder = artifact.rpartition("/")[0]
    for run in store.search(f"tags.task = '{task}'"):
        if artifact in store.files(run.info.run_id, folder):
            return FinishedRun(store, run, config)
    return None


def find_run(store: Store, config: RunConfig, tag: str, *values: str) -> FinishedRun | None:
    """Return the run that `config.run` names, or else the newest finished run with one of several tags, or None.

    Raises:
        UserError: if the named run does not exist, has not finished, or has another value of the tag.
    """
    if config.run is not None:
        return _named_run(store, config, tag, values, config.run, "run")
    newest = [next((run for run in all_runs(store, config, tag, value) if run.is_readable()), None) for value in values]
    return max(filter(None, newest), key=lambda run: run.started, default=None)


def find_trained_run(store: Store, config: RunConfig, *roles: str) -> FinishedRun:
    """Return the training run that `config.run` names, or else the newest finished one.

    Args:
        store: Where the run is recorded.
        config: The job's configuration.
        roles: ``"pretraining"``, ``"segmentation"``, or both.

    Raises:
        UserError: if there is none, or the named one can't be used.
    """
    finished = find_run(store, config, "role", *roles)
    if finished is None:
        kind = roles[0] if len(roles) == 1 else "training"
        task = "dino" if kind == "pretraining" else "multiclass"
        raise UserError(
            f"run: there is no finished {kind} run; start one with python -m cvexp task={task}, or name a store with "
            "tracking.folder= or MLFLOW_TRACKING_URI"
        )
    return finished


def _named_run(store: Store, config: RunConfig, tag: str, values: Sequence[str], run_id: str, key: str) -> FinishedRun:
    run = store.run(run_id, key)
    tags, status = run.data.tags, run.info.status
    if tags.get(tag) not in values or status != "FINISHED":
        raise UserError(
            f"{key}: {run_id} can't be used: its task is {tags.get('task')} and its status is {status}, but a finished "
            f"{' or '.join(values)} run is needed"
        )
    return FinishedRun(store, run, config)


def _recorded_data(run: MLflowRun) -> dict[str, RecordedData]:
    """Return what `record_data` recorded about each split."""
    recorded = {}
    for entry in run.inputs.dataset_inputs if run.inputs else []:
        split = next((tag.value for tag in entry.tags if tag.key == "mlflow.data.context"), "")
        if fingerprint := run.data.tags.get(f"data.{split}.fingerprint"):
            profile = json.loads(entry.dataset.profile or "{}")
            num_images, num_objects = profile.pop("images", 0), profile.pop("objects", 0)
            classes = profile.pop("classes", profile)  # older runs have the classes next to the other values
            classes = classes if isinstance(classes, dict) else profile
            recorded[split] = RecordedData(fingerprint, num_images, num_objects, classes)
    return recorded
