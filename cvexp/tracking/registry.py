"""MLflow's model registry: versions of models, and the aliases that name them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.entities.model_registry import ModelVersion as MLflowVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Map
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS
from PIL import Image

from cvexp import serving
from cvexp.tracking.finished import FinishedRun
from cvexp.tracking.store import Store

PROGRAM = Path(serving.__file__).with_name("model.py")
PACKAGES = ("mlflow-skinny", "numpy", "onnxruntime", "pandas", "pillow")  # what the program needs
MEASURED = {"best/": "val", "test/": "test"}  # on which split metrics with a prefix were measured


class Parts(NamedTuple):
    """What a version of a model is made of.

    Attributes:
        onnx: The network as an ONNX file.
        checkpoint: The checkpoint that it was exported from.
        about: What is known about the network.
        tags: The part of it that is shown and searched.
    """

    onnx: Path
    checkpoint: Path
    about: Mapping[str, Any]
    tags: Mapping[str, str]


class Version(NamedTuple):
    """A version of a registered model.

    Attributes:
        model: The name of the model.
        number: The number of the version.
        run_id: The run that it comes from; empty if that is unknown.
    """

    model: str
    number: int
    run_id: str

    @property
    def uri(self) -> str:
        """The address of the version."""
        return f"models:/{self.model}/{self.number}"


def find_version(store: Store, name: str, run_id: str) -> Version | None:
    """Return the newest version of a model that comes from a run, or None."""
    versions = map(_of_mlflow, store.client.search_model_versions(f"run_id = '{run_id}'"))
    return max((version for version in versions if version.model == name), key=lambda one: one.number, default=None)


def _of_mlflow(version: MLflowVersion) -> Version:
    return Version(str(version.name), int(version.version), version.run_id or "")


def register(store: Store, name: str, run: FinishedRun, parts: Parts, folder: Path) -> Version:
    """Add a version to a model, which is created if there is none.

    It is recorded as a model of the training run, with the run's final metrics.

    Args:
        store: Where the run is recorded.
        name: The name of the model.
        run: The training run.
        parts: What the version is made of.
        folder: An empty folder for temporary files.
    """
    write_model(folder / "model", parts)
    client = store.client
    kind = parts.about["kind"]
    logged = client.create_logged_model(
        str(client.get_run(run.id).info.experiment_id),
        name=run.task,
        source_run_id=run.id,
        tags=dict(parts.tags),
        params={key: run.params[key] for key in ("backbone.name", "dataset.name", "seed")},
        model_type=kind,
    )
    try:
        client.log_model_artifacts(logged.model_id, str(folder / "model"))
        client.finalize_logged_model(logged.model_id, "READY")
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.log_outputs(run.id, [LoggedModelOutput(logged.model_id, step=int(run.metrics["best/step"]))])
    _link_metrics(store, run, logged.model_id)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    version = _of_mlflow(
        client.create_model_version(
            name,
            logged.artifact_location,  # for an address models:/ID, MLflow would ask the store of its global state
            run_id=run.id,
            tags=dict(parts.tags),
            description=f"the {kind} of the run {run.name}",
            model_id=logged.model_id,
        )
    )
    versions = [{"name": name, "version": version.number}]  # by which MLflow's page of the run shows it
    client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(versions)})
    return version


def write_model(folder: Path, parts: Parts) -> None:
    """Write the folder of a model, which MLflow can load and serve without cvexp and PyTorch."""
    mlflow.pyfunc.save_model(
        str(folder),
        python_model=str(PROGRAM),
        artifacts={"onnx": str(parts.onnx), "checkpoint": str(parts.checkpoint)},
        signature=signature(parts.about["kind"]),
        input_example=example(),
        pip_requirements=[f"{package}=={installed(package)}" for package in PACKAGES],
        metadata={"cvexp": dict(parts.about)},
    )


def signature(kind: str) -> ModelSignature:
    """Describe what a segmenter or an encoder takes and returns."""
    images = Schema([ColSpec(DataType.binary, "image")])
    if kind == "encoder":
        return ModelSignature(images, Schema([ColSpec(Array(DataType.double), "features")]))
    results = Schema(
        [
            ColSpec(DataType.string, "mask"),
            ColSpec(DataType.long, "width"),
            ColSpec(DataType.long, "height"),
            ColSpec(Map(DataType.double), "presence"),
        ]
    )
    return ModelSignature(images, results, ParamSchema([ParamSpec("format", DataType.string, "png")]))


def example() -> pd.DataFrame:
    """Return an input that shows the form of a request."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((32, 24)).convert("RGB").save(buffer, "PNG")
    return pd.DataFrame({"image": [buffer.getvalue()]})


def _link_metrics(store: Store, run: FinishedRun, model_id: str) -> None:
    """Record the final metrics of a run for its model, too, with the data on which they were measured."""
    inputs = store.client.get_run(run.id).inputs
    entries = inputs.dataset_inputs if inputs else []
    datasets = {tag.value: entry.dataset for entry in entries for tag in entry.tags if tag.key == "mlflow.data.context"}
    metrics = []
    for key in run.metrics:
        dataset = next((datasets.get(split) for prefix, split in MEASURED.items() if key.startswith(prefix)), None)
        if dataset is not None:
            last = store.client.get_metric_history(run.id, key)[-1]
            of_model = {"model_id": model_id, "dataset_name": dataset.name, "dataset_digest": dataset.digest}
            metrics.append(Metric(key, last.value, last.timestamp, last.step, run_id=run.id, **of_model))
    store.client.log_batch(run.id, metrics)  # the run has them already, and does not get them twice


def aliased(store: Store, name: str, alias: str) -> Version | None:
    """Return the version that an alias of a model names, or None."""
    number = store.client.get_registered_model(name).aliases.get(alias)
    return None if number is None else _of_mlflow(store.client.get_model_version(name, number))


def move_alias(store: Store, alias: str, version: Version) -> None:
    """Let an alias name a version of a model."""
    store.client.set_registered_model_alias(version.model, alias, str(version.number))


def tag_version(store: Store, version: Version, key: str, value: str) -> None:
    """Set a tag of a version."""
    store.client.set_model_version_tag(version.model, str(version.number), key, value)
