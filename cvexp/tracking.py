"""MLflow's runs: opening, writing, closing and going on with them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat
from urllib.parse import unquote, urlparse

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities import Dataset as MLflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from omegaconf import DictConfig, OmegaConf
from sqlalchemy.exc import SQLAlchemyError

from cvexp.config import Config, Tracking, check
from cvexp.errors import Interrupted, UserError
from cvexp.sweep import VARIABLE as SWEEP_VARIABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cvexp.data.index import Splits

log = logging.getLogger("cvexp")

FLUSH_SECONDS = 5.0  # a write takes some milliseconds however many metrics it holds
LOGGED_VERSIONS = ("cvexp", "torch", "torchvision", "pytorch-lightning", "timm", "hydra-core", "mlflow", "numpy")


class Run:
    """An open MLflow run. Metrics are gathered and written every few seconds; everything else is written at once.

    Attributes:
        id: MLflow's id of the run.
        folder: Where the run's checkpoints are written: the run's artifact folder where that is on this machine, else
            Hydra's run folder, from which they are uploaded at the end.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str, run_folder: Path, tracking: Tracking) -> None:
        self.client = client
        self.id = run_id
        self.log_every_n_steps = tracking.log_every_n_steps
        artifacts = urlparse(client.get_run(run_id).info.artifact_uri)
        self._is_local = artifacts.scheme in ("", "file")
        self.folder = Path(unquote(artifacts.path)) if self._is_local else run_folder
        self._pending: list[tuple[str, SupportsFloat, int]] = []
        self._last_flush = time.monotonic()
        self._logged_until: dict[str, int] = {}
        self._images: set[tuple[str, int]] = set()

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint to go on from; None before the first."""
        path = self.folder / "checkpoints" / "last.ckpt"
        return path if path.exists() else None

    @property
    def source(self) -> str | None:
        """The run that the weights come from, once that is recorded."""
        found: str | None = self.client.get_run(self.id).data.tags.get("weights_from")
        return found

    def log_metrics(self, metrics: Mapping[str, SupportsFloat], step: int) -> None:
        """Record values at a step: what was measured after that many optimiser steps.

        A value may be a tensor on a device; it is fetched when it is written. Steps that the run had before it was
        interrupted are not recorded twice. What MLflow does not take in a name, which may be of a class, becomes "_".
        """
        for name, value in metrics.items():
            name = re.sub(r"[^\w\-. :/]", "_", name)
            if step > self._logged_until.get(name, -1):
                self._pending.append((name, value, step))
        if time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is gathered."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value, step in self._pending]
        for first in range(0, len(metrics), 1000):  # MLflow's limit
            self.client.log_batch(self.id, metrics=metrics[first : first + 1000])
        self._pending.clear()
        self._last_flush = time.monotonic()

    def history(self, name: str) -> list[tuple[int, float]]:
        """All (step, value) of a metric, by step."""
        self.flush()
        return self.history_of(self.id, name)

    def history_of(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """The same of another run; empty where it has no such metric."""
        return sorted((metric.step, metric.value) for metric in self.client.get_metric_history(run_id, name))

    def artifact_of(self, run_id: str, path: str) -> bytes | None:
        """The content of an artifact of another run; None where there is none."""
        folder = path.rpartition("/")[0]
        if path not in {item.path for item in self.client.list_artifacts(run_id, folder or None)}:
            return None
        with tempfile.TemporaryDirectory() as temporary:
            return Path(self.client.download_artifacts(run_id, path, temporary)).read_bytes()

    def log_image(self, key: str, figure: Figure, step: int) -> None:
        """Record a picture under a key and step; MLflow shows those of one key as a sequence."""
        import numpy as np
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        if (key, step) in self._images:
            return
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        self.client.log_image(self.id, pixels, key=key, step=step)

    def log_figure(self, figure: Figure, path: str) -> None:
        """Record a picture as an artifact."""
        self.client.log_figure(self.id, figure, path)

    def log_file(self, source: Path, folder: str) -> None:
        """Record a copy of a file as an artifact."""
        self.client.log_artifact(self.id, str(source), folder)

    def log_json(self, values: Mapping[str, Any], path: str) -> None:
        """Record nested values as an artifact."""
        self.client.log_dict(self.id, dict(values), path)

    def log_text(self, text: str, path: str) -> None:
        """Record a text as an artifact."""
        self.client.log_text(self.id, text, path)

    def log_data(self, name: str, splits: Splits) -> None:
        """Record the data set: source, fingerprint and counts of both splits, and what was left out."""
        inputs = []
        for index in splits:
            fingerprint = index.fingerprint()
            dataset = MLflowDataset(
                name=f"{name}-{index.split}",
                digest=fingerprint[:36],  # MLflow's limit
                source_type="local",
                source=json.dumps({"uri": str(index.root.absolute())}),
                profile=json.dumps({"images": len(index.images), "objects": len(index), **index.counts()}),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", index.split)]))
            self.set_tag(f"data.{index.split}.fingerprint", fingerprint)
        self.client.log_inputs(self.id, inputs)
        left_out = [str(problem) for index in splits for problem in index.problems]
        self.log_metrics({"data/left_out": len(left_out)}, step=0)
        self.flush()  # a run that is killed and goes on doesn't come here again
        if left_out:
            self.log_text("\n".join(left_out) + "\n", "data/left_out.txt")

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag, which replaces an older one of the same key."""
        self.client.set_tag(self.id, key, value[:5000])

    def link_source(self, run_id: str) -> str:
        """Record the run that the weights come from, as the parent unless that is a sweep; give its short name.

        Raises:
            UserError: when there is no such run.
        """
        try:
            source = self.client.get_run(run_id)
        except MlflowException as error:
            raise UserError(
                f"backbone.weights: there is no run {run_id!r}; `make ui` shows the runs and their artifacts"
            ) from error
        self.set_tag("weights_from", run_id)
        if "mlflow.parentRunId" not in self.client.get_run(self.id).data.tags:
            self.set_tag("mlflow.parentRunId", run_id)
        return str(source.data.params.get("task.name", "other"))

    def upload_checkpoints(self) -> None:
        """Hand the checkpoints to the server; nothing to do where the artifact folder is on this machine."""
        if not self._is_local and (self.folder / "checkpoints").is_dir():
            self.client.log_artifacts(self.id, str(self.folder / "checkpoints"), "checkpoints")

    @property
    def ui_command(self) -> str:
        """The command that shows the store in a browser."""
        uri = self.client.tracking_uri.partition("?")[0]
        return f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite") else f"open {uri} in a browser"

    def remember_what_is_logged(self) -> None:
        """Look up which steps an interrupted run has recorded, so that going on records none of them twice."""
        for name in self.client.get_run(self.id).data.metrics:
            self._logged_until[name] = max(metric.step for metric in self.client.get_metric_history(self.id, name))
        for item in self.client.list_artifacts(self.id, "images"):
            if found := re.match(r"images/(.*)[+%]step[+%](\d+)[+%]", item.path):
                self._images.add((found[1], int(found[2])))


@contextlib.contextmanager
def open_run(config: Config, folder: Path) -> Iterator[Run]:
    """A new run, or the interrupted one that `config.resume` names; it ends as what happened in the block.

    FINISHED; KILLED, after Ctrl-C or SIGTERM; FAILED, after any error, with its text in the tag `error`.
    """
    client = connect(config.tracking)
    if config.resume is None:
        run_id = _create_run(client, config, folder)
    else:
        run_id = config.resume
        folder = Path(client.get_run(run_id).data.tags["cvexp.folder"])
    with _only_process(folder, run_id):
        run = Run(client, run_id, folder, config.tracking)
        if config.resume is not None:
            run.remember_what_is_logged()
            client.update_run(run_id, status="RUNNING")
            client.delete_tag(run_id, "error") if "error" in client.get_run(run_id).data.tags else None
        monitor = SystemMetricsMonitor(
            run_id, resume_logging=config.resume is not None, tracking_uri=client.tracking_uri
        )
        status = "FAILED"
        try:
            if config.tracking.system_metrics:
                monitor.start()
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, Interrupted):
            status = "KILLED"
            raise
        except BaseException as error:
            with contextlib.suppress(Exception):  # the store may be what failed; the first error is the one to tell
                run.set_tag("error", f"{type(error).__name__}: {error}")
            raise
        finally:
            if config.tracking.system_metrics:
                monitor.finish()
            with contextlib.ExitStack() as closing:
                if status != "FINISHED":
                    closing.enter_context(contextlib.suppress(Exception))
                run.flush()
                run.upload_checkpoints()
                client.set_terminated(run_id, status)


def open_sweep(tracking: Tracking, overrides: list[str]) -> tuple[mlflow.MlflowClient, str]:
    """Create the parent run of a sweep, with what is swept as its parameters; its client and id."""
    client = connect(tracking)
    tags = {"task": "sweep", "command": _command()}
    run = client.create_run(experiment_id(client, tracking), run_name="sweep", tags=tags)
    swept = (override.lstrip("+").partition("=") for override in overrides)
    params = [Param(f"sweep.{key}", value[:6000]) for key, _, value in swept if "password" not in key]
    client.log_batch(run.info.run_id, params=params)
    return client, str(run.info.run_id)


def close_sweep(client: mlflow.MlflowClient, run_id: str, failed: bool) -> None:
    """End a sweep's run: FINISHED only if all of its jobs did, and none `failed` before it had a run."""
    experiment = client.get_run(run_id).info.experiment_id
    jobs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=10000)
    statuses = {job.info.status for job in jobs}
    status = "FINISHED" if statuses == {"FINISHED"} and not failed else "KILLED" if "KILLED" in statuses else "FAILED"
    client.set_terminated(run_id, status)


def connect(tracking: Tracking) -> mlflow.MlflowClient:
    """A client of the server that MLFLOW_TRACKING_URI names, else of SQLite in `tracking.folder`.

    It is passed on to whatever needs it: `mlflow.set_tracking_uri` would set the variable for the next job of a sweep.

    Raises:
        UserError: when the server doesn't answer.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "mlflow"):  # what they tell of tables and migrations is no news
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.pop("MLFLOW_RUN_ID", None)  # it would make a stranger of the new run's parent
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        client = mlflow.MlflowClient(uri)
        try:
            client.get_experiment_by_name(tracking.experiment)
        except MlflowException as error:
            raise UserError(
                f"MLFLOW_TRACKING_URI: {uri} doesn't answer ({_first_line(error)}); start it, correct the address, or "
                "unset the variable to record in tracking.folder="
            ) from error
    else:
        folder = Path(tracking.folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        # SQLite waits this many seconds for other writers; several runs may start, and log, at the same time.
        uri = f"sqlite:///{folder / 'mlflow.db'}?timeout=120"
        with FileLock(folder / "mlflow.lock"):  # processes that make the tables at the same time break the file
            try:
                client = mlflow.MlflowClient(uri)
                if client.get_experiment_by_name(tracking.experiment) is None:
                    client.create_experiment(tracking.experiment, (folder / "artifacts").as_uri())
            except (MlflowException, SQLAlchemyError) as error:
                raise UserError(
                    f"{folder / 'mlflow.db'}: MLflow can't use this store ({_first_line(error)}); mend it, or choose "
                    "another with tracking.folder=PATH"
                ) from error
    return client


def _create_run(client: mlflow.MlflowClient, config: Config, folder: Path) -> str:
    name = config.name or default_name(config)
    experiment = experiment_id(client, config.tracking)
    run = client.create_run(experiment, run_name=name, tags=_tags(config, folder))
    recorded = _without_passwords(asdict(config))
    params = [Param(key, value[:6000]) for key, value in flatten(recorded).items()]
    for first in range(0, len(params), 100):  # MLflow's limit
        client.log_batch(run.info.run_id, params=params[first : first + 100])
    client.log_text(run.info.run_id, OmegaConf.to_yaml(recorded), "config.yaml")
    return str(run.info.run_id)


def default_name(config: Config) -> str:
    """A run's name in MLflow: what it does, with what, from where, and the seed."""
    if config.task.works_on is not None:  # its data and models are those of other runs
        return config.task.name
    start = {"latest:dino": "dino", "timm": "timm"}.get(config.backbone.weights or "")
    parts = (config.task.name, config.backbone.name.split("_")[0], config.dataset.name, start, f"seed{config.seed}")
    return "-".join(part for part in parts if part)


def experiment_id(client: mlflow.MlflowClient, tracking: Tracking) -> str:
    experiment = client.get_experiment_by_name(tracking.experiment)
    if experiment is None:  # on a server
        with contextlib.suppress(MlflowException):  # another run may just have created it
            client.create_experiment(tracking.experiment)
        experiment = client.get_experiment_by_name(tracking.experiment)
        assert experiment is not None
    return str(experiment.experiment_id)


def _without_passwords(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_passwords(value) if isinstance(value, Mapping) else None if key == "password" else value
        for key, value in values.items()
    }


def _tags(config: Config, folder: Path) -> dict[str, str]:
    tags = {
        "task": config.task.name,
        "seed": str(config.seed),
        "command": _command(),
        "cvexp.folder": str(folder.absolute()),
        "version.python": platform.python_version(),
        **{f"version.{package}": version(package) for package in LOGGED_VERSIONS},
    }
    if parent := os.environ.get(SWEEP_VARIABLE):
        tags["mlflow.parentRunId"] = parent
    if commit := _git("rev-parse", "HEAD"):
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    return tags


def _command() -> str:
    return " ".join(["python -m cvexp", *(_argument(word.removeprefix("++")) for word in sys.argv[1:])])


def _argument(argument: str) -> str:
    """A word of the command line as it may be recorded, and typed again."""
    argument = re.sub(r"(password=).+", r"\1...", argument)
    return repr(argument) if re.search(r"[\s\[{(*$&;<>|]", argument) else argument


def _git(*arguments: str) -> str:
    """What git says of the working folder; nothing where that is no repository, or git is missing."""
    with contextlib.suppress(OSError):
        return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()
    return ""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as MLflow's flat parameters: {"loader.batch_size": "64"}; lists as JSON, None as "null"."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


@contextlib.contextmanager
def _only_process(folder: Path, run_id: str) -> Iterator[None]:
    """Hold a run for this process; the system gives it back however the process ends, and so it tells who lives."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "run.lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"resume: the run {run_id} is still going on in another process; stop that first") from error


def saved_config(config: Config, composed: DictConfig, overrides: list[str]) -> Config:
    """The configuration that the run `config.resume` was started with.

    Args:
        config: The one composed now; where the store is, and which run.
        composed: The same as YAML.
        overrides: What the command line says; it may repeat the run's settings, but not change them.

    Raises:
        UserError: when there is no such run, it has ended well, or an override differs from the run's setting.
    """
    client = connect(config.tracking)
    try:
        run = client.get_run(str(config.resume))
    except MlflowException as error:
        raise UserError(
            f"resume: there is no run {config.resume!r} in {client.tracking_uri.partition('?')[0]}; `make ui` shows "
            "the runs, and MLFLOW_TRACKING_URI or tracking.folder= names another store"
        ) from error
    if run.info.status == "FINISHED":
        raise UserError(f"resume: the run {config.resume} has finished; there is nothing to go on with")
    saved = recorded_config(client, str(config.resume))
    saved.resume = config.resume
    old, new = flatten(_plain(saved)), flatten(_plain(composed))
    said = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides]
    if "experiment" in said:  # it may set any key
        said = list(new)
    changed = sorted(
        key
        for key in old.keys() | new.keys()
        if any(key == word or key.startswith(f"{word}.") for word in said)
        and old.get(key) != new.get(key)
        and not key.endswith(".password")
    )
    if changed:
        differences = "; ".join(f"{key} was {old.get(key)}, now {new.get(key)}" for key in changed)
        raise UserError(
            f"resume: the configuration differs from that of the run {config.resume} ({differences}); leave these out "
            f"(resume={config.resume} alone goes on as it was), or start a new run"
        )
    if "password" in saved.dataset:  # the only key that is not recorded
        saved.dataset.password = OmegaConf.select(composed, "dataset.password")
    return check(saved)


def recorded_config(client: mlflow.MlflowClient, run_id: str) -> DictConfig:
    """What a run was started with."""
    with tempfile.TemporaryDirectory() as temporary:
        saved = OmegaConf.load(client.download_artifacts(run_id, "config.yaml", temporary))
    assert isinstance(saved, DictConfig)
    for key in ("run", "runs"):  # no settings of a run; those from before there were jobs lack them
        saved.setdefault(key, None)
    return saved


def _plain(config: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
