"""Finished runs: found in MLflow, with what was recorded of them."""

from __future__ import annotations

import heapq
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import NamedTuple

import mlflow
from mlflow.exceptions import MlflowException

from cvexp.config import Config, check
from cvexp.errors import UserError
from cvexp.recorded import recorded_config
from cvexp.store import experiment_id
from cvexp.tracking import flatten

log = logging.getLogger("cvexp")


class RecordedData(NamedTuple):
    """What a run recorded of a split.

    Attributes:
        fingerprint: Of the files' contents, boxes and labels.
        images, objects: How many there are.
        classes: The number of objects of each class, in order; empty where there are no labels.
    """

    fingerprint: str
    images: int
    objects: int
    classes: dict[str, int]


class FinishedRun:
    """A run that a job works on.

    Attributes:
        id: MLflow's.
        name: In MLflow.
        task: Its task.
        start: Where its weights came from: "random", "dino", "timm", or a file's name.
        tags, params, metrics: MLflow's.
        data: What it recorded of each split.
    """

    def __init__(self, client: mlflow.MlflowClient, run: mlflow.entities.Run, local: Config) -> None:
        """
        Args:
            client: Of the store.
            run: MLflow's.
            local: The configuration of this process.
        """
        self.id = str(run.info.run_id)
        self.name = str(run.info.run_name)
        self.tags: dict[str, str] = run.data.tags
        self.params: dict[str, str] = run.data.params
        self.metrics: dict[str, float] = run.data.metrics
        self.task = self.tags.get("task", "")
        self.start = self.tags.get("start", "random")
        self.data = _recorded_data(run)
        self._client, self._local = client, local

    @cached_property
    def config(self) -> Config:
        """What it ran with; fetched when it is first needed.

        Raises:
            UserError: when it can't be read, or is of another version of cvexp.
        """
        try:
            return check(recorded_config(self._client, self.id, self._local))
        except UserError as error:
            raise UserError(f"the run {self.id} can't be used: {error}") from error

    @property
    def seed(self) -> int:
        return int(self.params["seed"])

    def is_readable(self) -> bool:
        """Whether its configuration can be used; a warning says why not."""
        try:
            return bool(self.config)
        except UserError as error:
            log.warning("left out: %s", error)
            return False

    @property
    def classes(self) -> list[str]:
        """Of the data, in order; none where they have no labels, or were not recorded."""
        return list(self.data["val"].classes) if "val" in self.data else []


def find_runs(
    client: mlflow.MlflowClient, config: Config, tasks: Sequence[str], key: str = "runs"
) -> list[FinishedRun]:
    """The runs that `runs` names, or all finished ones of these tasks, the newest first.

    Args:
        client: Of the store.
        config: The job's.
        tasks: Of which the runs may be.
        key: What errors name.

    Raises:
        UserError: when a run does not exist, has not finished, or is of another task.
    """
    if config.runs is None:
        return list(_search(client, config, tasks))
    found = []
    for run_id in config.runs:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            raise UserError(f"{key}: there is no run {run_id!r}; `make ui` shows the runs") from error
        task, status = run.data.tags.get("task"), run.info.status
        if task not in tasks or status != "FINISHED":
            raise UserError(
                f"{key}: {run_id} is a run of task={task} and {status}; give finished runs of {' or '.join(tasks)}"
            )
        found.append(FinishedRun(client, run, config))
    return found


def _search(client: mlflow.MlflowClient, config: Config, tasks: Sequence[str]) -> Iterator[FinishedRun]:
    """The finished runs of some tasks, the newest first; fetched page by page, as most callers need only the first."""
    experiments = [experiment_id(client, config.tracking)]

    def pages(task: str) -> Iterator[mlflow.entities.Run]:
        query = f"attributes.status = 'FINISHED' and tags.task = '{task}'"
        token, size = None, 20
        while True:
            page = client.search_runs(experiments, query, max_results=size, page_token=token)
            yield from page
            token, size = page.token, 1000
            if not token:
                return

    for run in heapq.merge(*map(pages, tasks), key=lambda run: -run.info.start_time):
        yield FinishedRun(client, run, config)


def _recorded_data(run: mlflow.entities.Run) -> dict[str, RecordedData]:
    """What `Run.log_data` recorded."""
    found = {}
    for entry in run.inputs.dataset_inputs if run.inputs else []:
        split = next((tag.value for tag in entry.tags if tag.key == "mlflow.data.context"), "")
        if fingerprint := run.data.tags.get(f"data.{split}.fingerprint"):
            profile = json.loads(entry.dataset.profile or "{}")
            images, objects = profile.pop("images", 0), profile.pop("objects", 0)
            classes = profile.pop("classes", profile)  # older runs have the classes beside the others
            found[split] = RecordedData(fingerprint, images, objects, classes if isinstance(classes, dict) else profile)
    return found


def find_run(client: mlflow.MlflowClient, config: Config, tasks: Sequence[str]) -> FinishedRun:
    """The run that `run` names, or the newest finished one of these tasks.

    Raises:
        UserError: when there is none, or it has not finished, or is of another task.
    """
    found = newest_run(client, config, tasks)
    if found is None:
        raise UserError(
            f"run: there is no finished run of task={' or '.join(tasks)}; train one, or name a store with "
            "tracking.folder= or MLFLOW_TRACKING_URI"
        )
    return found


def newest_run(client: mlflow.MlflowClient, config: Config, tasks: Sequence[str]) -> FinishedRun | None:
    """Like `find_run`, but None when there is none and none is named."""
    if config.run is not None:
        return find_runs(client, replace(config, runs=[config.run]), tasks, key="run")[0]
    return next((run for run in _search(client, config, tasks) if run.is_readable()), None)


def embedded_epochs(client: mlflow.MlflowClient, run_id: str) -> list[int]:
    """After which epochs a run recorded an embedding, in order.

    Raises:
        UserError: when it recorded none.
    """
    names = [item.path for item in client.list_artifacts(run_id, "embeddings")]
    epochs = sorted(int(found[1]) for name in names if (found := re.search(r"epoch-(\d+)\.npz$", name)))
    if not epochs:
        raise UserError(f"run: {run_id} has recorded no embedding; name another dino run")
    return epochs


def latest_pretraining(client: mlflow.MlflowClient, config: Config) -> str:
    """The id of the newest finished dino run with this backbone and data set, of the same seed where there is one."""
    wanted = _identity(flatten(asdict(config)))
    first = None
    for run in _search(client, config, ["dino"]):
        if _identity(run.params) == wanted:
            if run.seed == config.seed:
                return run.id
            first = first or run.id
    if first is None:
        described = ", ".join(f"{key}={value}" for key, value in wanted.items())
        raise UserError(
            f"backbone.weights=latest:dino: there is no finished dino run with {described}; pretrain with python -m "
            "cvexp task=dino, or give other weights"
        )
    return first


def _identity(params: Mapping[str, str]) -> dict[str, str]:
    """What a pretraining and the training that starts from it have in common: the network, and where the data lie."""
    keys = [key for key in params if key.startswith("backbone.args")]
    found = {key: params[key] for key in ("backbone.name", "dataset.name", "dataset.root", *keys) if key in params}
    if found.get("dataset.root", "null") != "null":
        found["dataset.root"] = os.path.realpath(found["dataset.root"])
    return found
