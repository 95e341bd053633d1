"""Finding the weights that `backbone.weights` names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cvexp.config import RunConfig, flatten
from cvexp.errors import UserError
from cvexp.tracking.finished import all_runs
from cvexp.tracking.run import ReadOnlyRun
from cvexp.tracking.store import Store, first_line

FORMS = "null, timm, a .ckpt, .pth or .safetensors file, runs:/RUN_ID/PATH, models:/NAME@ALIAS, or latest:METHOD"

SUFFIXES = (".ckpt", ".pth", ".safetensors")

BEST = "checkpoints/best.ckpt"


class Location(NamedTuple):
    """A file of weights.

    Attributes:
        path: The file.
        name: A short name of the origin: the task of a run, a registered model, or the file's name.
        run_id: The run that wrote the file, if known.
    """

    path: Path
    name: str
    run_id: str | None


def locate(weights: str, config: RunConfig, run: ReadOnlyRun, folder: Path) -> Location:
    """Find a file of weights, and fetch it if it is not on this machine.

    Args:
        weights: The value of `backbone.weights`, which is neither null nor timm.
        config: The configuration of the run that needs the weights.
        run: The run that needs the weights.
        folder: The folder that a fetched file is written to.

    Raises:
        UserError: if there is no such file, run, artifact or model.
    """
    prefix, _, method = weights.partition(":")
    if prefix == "latest":  # a run that was interrupted before its first checkpoint has already chosen
        source = run.tags().get("weights_from") or _latest_pretraining(run.store, config, method)
        weights = f"runs:/{source}/{BEST}"
    if weights.startswith(("models:/", "runs:/")):
        return locate_artifact(weights, run.store, folder, key="backbone.weights")
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"backbone.weights: there is no file {weights!r}; give {FORMS}")
    return Location(path, path.stem, None)


def locate_artifact(uri: str, store: Store, folder: Path, key: str) -> Location:
    """Find and fetch a checkpoint in MLflow.

    Args:
        uri: ``runs:/RUN_ID/PATH``; ``runs:/RUN_ID``, which means its best checkpoint; ``models:/NAME@ALIAS`` or
            ``models:/NAME/VERSION``.
        store: Where it is recorded.
        folder: The folder that a fetched file is written to.
        key: What asked for it, for messages.

    Raises:
        UserError: if there is no such run, artifact or model.
    """
    if uri.startswith("models:/"):
        return _locate_registered(uri, store, folder, key)
    run_id, _, path = uri.removeprefix("runs:/").partition("/")
    name = _task_of(store, run_id, key)
    return Location(download(f"runs:/{run_id}/{path or BEST}", store, folder, key), name, run_id)


def source_run(weights: str, config: RunConfig, store: Store) -> str | None:
    """Return the id of the run that `latest:METHOD` or `models:/...` now stands for.

    Raises:
        UserError: if there is no such run or model.
    """
    prefix, _, method = weights.partition(":")
    if prefix == "latest":
        return _latest_pretraining(store, config, method)
    return _registered_version(weights, store, "backbone.weights").run_id or None


def _latest_pretraining(store: Store, config: RunConfig, method: str) -> str:
    """Return the id of the newest finished pretraining run with this backbone and data set.

    Runs with the same seed take precedence.

    Args:
        store: Where the pretraining run is recorded.
        config: The configuration of the run that starts from the pretraining run.
        method: The pretraining task.

    Raises:
        UserError: if there is no such run.
    """
    wanted = _identity(flatten(asdict(config)))
    backbone, dataset = wanted["backbone.name"], wanted["dataset.name"]
    same_network = f"params.`backbone.name` = '{backbone}' and params.`dataset.name` = '{dataset}'"
    is_possible = "'" not in f"{method}{backbone}{dataset}"  # queries can't contain it, and no such name does
    for conditions in ([f"params.seed = '{config.seed}'"], []) if is_possible else ():
        for run in all_runs(store, config, "task", method, "tags.role = 'pretraining'", same_network, *conditions):
            if _identity(run.params) == wanted:
                return run.id
    described = ", ".join(f"{key}={value}" for key, value in wanted.items())
    raise UserError(
        f"backbone.weights=latest:{method}: there is no finished {method} run with {described}; pretrain with "
        f"python -m cvexp task={method}, or give other weights"
    )


def _identity(params: Mapping[str, str]) -> dict[str, str]:
    """Return what a pretraining run shares with runs that start from it: the network, and where the data are."""
    keys = [key for key in params if key.startswith("backbone.args")]
    identity = {key: params[key] for key in ("backbone.name", "dataset.name", "dataset.root", *keys) if key in params}
    root = identity.get("dataset.root", "null")
    if root != "null" and "://" not in root:
        identity["dataset.root"] = os.path.realpath(identity["dataset.root"])
    return identity


def _registered_version(uri: str, store: Store, key: str) -> ModelVersion:
    """Find a version in MLflow's model registry: models:/NAME@ALIAS, or models:/NAME/VERSION.

    Raises:
        UserError: if there is no such version.
    """
    name, at, alias = uri.removeprefix("models:/").partition("@")
    try:
        if at:
            return store.client.get_model_version_by_alias(name, alias)
        return store.client.get_model_version(*name.rsplit("/", 1))
    except (MlflowException, TypeError) as error:
        raise UserError(
            f"{key}: the registry has no {uri} ({first_line(error)}); `make ui` shows its models, and "
            "models:/NAME@ALIAS or models:/NAME/VERSION names one"
        ) from error


def _locate_registered(uri: str, store: Store, folder: Path, key: str) -> Location:
    """Find and fetch the checkpoint of a registered model."""
    version = _registered_version(uri, store, key)
    source = store.client.get_model_version_download_uri(version.name, version.version)
    run_id = version.run_id or None
    name = version.name
    path = download(source, store, folder, key)
    files = [file for file in sorted(path.rglob("*")) if file.suffix in SUFFIXES] if path.is_dir() else [path]
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise UserError(
            f"{key}: {uri} is a folder and should hold one checkpoint, but holds {names}; register the file itself"
        )
    return Location(files[0], _task_of(store, run_id, key) if run_id else name, run_id)


def _task_of(store: Store, run_id: str, key: str) -> str:
    return str(store.run(run_id, key).data.params.get("task.name", "other"))


def download(uri: str, store: Store, folder: Path, key: str) -> Path:
    """Fetch an artifact of MLflow by its URI.

    Raises:
        UserError: naming the key that asked for the artifact, if it can't be fetched.
    """
    try:
        return Path(
            mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=store.client.tracking_uri)
        )
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{key}: {uri} can't be fetched ({first_line(error)}); `make ui` shows the runs and their artifacts"
        ) from error
