"""Finished runs: found in MLflow, with what was recorded of them."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import mlflow
from mlflow.exceptions import MlflowException

from cvexp.config import Config, check
from cvexp.errors import UserError
from cvexp.tracking import experiment_id, flatten, recorded_config

log = logging.getLogger("cvexp")


class FinishedRun(NamedTuple):
    """A run that a job works on.

    Attributes:
        id: MLflow's.
        name: In MLflow.
        config: What it ran with.
        start: Where its weights came from: "random", "dino", "timm", or a file's name.
        tags, metrics: MLflow's.
        data: Of each split the fingerprint, and how many images, objects, and objects of each class there are.
    """

    id: str
    name: str
    config: Config
    start: str
    tags: dict[str, str]
    metrics: dict[str, float]
    data: dict[str, tuple[str, dict[str, int]]]

    @property
    def classes(self) -> list[str]:
        """Of the data, in order; none where they have no labels."""
        _, profile = self.data["val"]
        return [name for name in profile if name not in ("images", "objects")]


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
        finished = client.search_runs(
            [experiment_id(client, config.tracking)], "attributes.status = 'FINISHED'", max_results=10000
        )
        found = [run for run in finished if run.data.tags.get("task") in tasks]
    else:
        found = []
        for run_id in config.runs:
            try:
                found.append(client.get_run(run_id))
            except MlflowException as error:
                raise UserError(f"{key}: there is no run {run_id!r}; `make ui` shows the runs") from error
            task, status = found[-1].data.tags.get("task"), found[-1].info.status
            if task not in tasks or status != "FINISHED":
                raise UserError(
                    f"{key}: {run_id} is a run of task={task} and {status}; give finished runs of {' or '.join(tasks)}"
                )
    finished_runs = []
    for run in found:
        try:
            recorded = check(recorded_config(client, run.info.run_id))
        except UserError as error:
            message = f"the run {run.info.run_id} is of another version of cvexp ({error})"
            if config.runs is not None:
                raise UserError(f"{key}: {message}; leave it out, or train it again") from error
            log.warning("%s, and is left out", message)
            continue
        finished_runs.append(
            FinishedRun(
                id=str(run.info.run_id),
                name=str(run.info.run_name),
                config=recorded,
                start=run.data.tags.get("start", "random"),
                tags=run.data.tags,
                metrics=run.data.metrics,
                data=_recorded_data(run),
            )
        )
    return finished_runs


def _recorded_data(run: mlflow.entities.Run) -> dict[str, tuple[str, dict[str, int]]]:
    """What `Run.log_data` recorded."""
    found: dict[str, tuple[str, dict[str, int]]] = {}
    for entry in run.inputs.dataset_inputs if run.inputs else []:
        split = next(tag.value for tag in entry.tags if tag.key == "mlflow.data.context")
        found[split] = (run.data.tags[f"data.{split}.fingerprint"], json.loads(entry.dataset.profile or "{}"))
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
    named = None if config.run is None else [config.run]
    found = find_runs(client, replace(config, runs=named), tasks, key="run")
    return found[0] if found else None


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
    finished = "attributes.status = 'FINISHED' and params.`task.name` = 'dino'"
    found = client.search_runs([experiment_id(client, config.tracking)], finished, max_results=10000)  # newest first
    wanted = _identity(flatten(asdict(config)))
    same = [run for run in found if _identity(run.data.params) == wanted]
    of_seed = [run for run in same if run.data.params["seed"] == str(config.seed)]
    if not same:
        described = ", ".join(f"{key}={value}" for key, value in wanted.items())
        raise UserError(
            f"backbone.weights=latest:dino: there is no finished dino run with {described}; pretrain with python -m "
            "cvexp task=dino, or give other weights"
        )
    return str((of_seed or same)[0].info.run_id)


def _identity(params: Mapping[str, str]) -> dict[str, str]:
    """What a pretraining and the training that starts from it have in common: the network, and where the data lie."""
    keys = [key for key in params if key.startswith("backbone.args")]
    found = {key: params[key] for key in ("backbone.name", "dataset.name", "dataset.root", *keys) if key in params}
    if found.get("dataset.root", "null") != "null":
        found["dataset.root"] = os.path.realpath(found["dataset.root"])
    return found
