"""MLflow's runs: opening, writing, closing and going on with them."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
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
from omegaconf import OmegaConf

from cvexp.config import Config, Tracking, without_passwords
from cvexp.errors import Interrupted, UserError
from cvexp.metrics.names import safe_name
from cvexp.redaction import hide_secrets
from cvexp.store import FAILURES, Content, connect, experiment_id, failures_explained, few_retries, read_artifact
from cvexp.sweep import VARIABLE as SWEEP_VARIABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cvexp.data.index import Splits

log = logging.getLogger("cvexp")

FILES = "data/files.json.gz"  # the artifact with a digest of each file of the data
LARGEST_FILES = 2**28  # bytes, unpacked
NAMED_FILES = 3  # in a message, of each kind
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
        interrupted are not recorded twice. A name that contains a class has it from `safe_name`.
        """
        for name, value in metrics.items():
            if step > self._logged_until.get(name, -1):
                self._pending.append((name, value, step))
        if time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is gathered; what the store does not take stays gathered."""
        now = int(time.time() * 1000)
        while batch := self._pending[:1000]:  # MLflow's limit
            self.client.log_batch(
                self.id, metrics=[Metric(name, float(value), now, step) for name, value, step in batch]
            )
            del self._pending[: len(batch)]
        self._last_flush = time.monotonic()

    def history(self, name: str) -> list[tuple[int, float]]:
        """All (step, value) of a metric, by step."""
        self.flush()
        return self.history_of(self.id, name)

    def history_of(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """The same of another run; empty where it has no such metric."""
        return sorted((metric.step, metric.value) for metric in self.client.get_metric_history(run_id, name))

    def artifact_of(self, run_id: str, path: str, parse: Callable[[Path], Content]) -> Content | None:
        """An artifact of another run as `parse` reads it; None where there is none.

        Raises:
            UserError: when it is damaged.
        """
        folder = path.rpartition("/")[0]
        if path not in {item.path for item in self.client.list_artifacts(run_id, folder or None)}:
            return None
        return read_artifact(self.client, run_id, path, parse)

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
        """Record the data set: source, fingerprint and counts of both splits, its files, and what was left out.

        A run that goes on has recorded it, unless it was killed before; then its data must still be the same.

        Raises:
            UserError: naming some of the files, when the data have changed since the run began.
        """
        tags = self.client.get_run(self.id).data.tags
        recorded = [tags.get(f"data.{index.split}.fingerprint") for index in splits]
        fingerprints = [index.fingerprint() for index in splits]
        if recorded == fingerprints:
            return
        if any(old not in (None, new) for old, new in zip(recorded, fingerprints, strict=True)):
            raise UserError(
                f"dataset: the data in {splits.val.root} have changed since the run {self.id} began"
                f"{self._changed_files(splits)}; restore them, or start a new run"
            )
        inputs = []
        for index, fingerprint in zip(splits, fingerprints, strict=True):
            dataset = MLflowDataset(
                name=f"{name}-{index.split}",
                digest=fingerprint[:36],  # MLflow's limit
                source_type="local",
                source=json.dumps({"uri": str(index.root.absolute())}),
                profile=json.dumps({"images": len(index.images), "objects": len(index), "classes": index.counts()}),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", index.split)]))
        self.client.log_inputs(self.id, inputs)
        files = {index.split: index.file_digests() for index in splits}
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / Path(FILES).name
            path.write_bytes(gzip.compress(json.dumps(files).encode(), mtime=0))
            self.log_file(path, str(Path(FILES).parent))
        left_out = [str(problem) for index in splits for problem in index.problems]
        self.log_metrics({"data/left_out": len(left_out)}, step=0)
        self.flush()
        if left_out:
            self.log_text("\n".join(left_out) + "\n", "data/left_out.txt")
        for index, fingerprint in zip(splits, fingerprints, strict=True):  # last: then all of it is recorded
            self.set_tag(f"data.{index.split}.fingerprint", fingerprint)

    def _changed_files(self, splits: Splits) -> str:
        """Some of the files that differ from those recorded, in words; nothing where they were not recorded."""
        try:
            recorded = read_artifact(self.client, self.id, FILES, _read_files)
        except UserError:  # of an older version, or damaged: what differs can't be said
            return ""
        changes = []
        for index in splits:
            now, before = index.file_digests(), recorded.get(index.split, {})
            for word, files in (
                ("changed", [file for file in now.keys() & before.keys() if now[file] != before[file]]),
                ("new", now.keys() - before.keys()),
                ("gone", before.keys() - now.keys()),
            ):
                shown = ", ".join(sorted(files)[:NAMED_FILES])
                more = f" and {len(files) - NAMED_FILES} more" if len(files) > NAMED_FILES else ""
                if files:
                    changes.append(f"{index.split}: {word} {shown}{more}")
        return f" ({'; '.join(changes) or 'the same files, but other classes'})"

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag, which replaces an older one of the same key."""
        self.client.set_tag(self.id, key, hide_secrets(value)[:5000])

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


def _read_files(path: Path) -> dict[str, dict[str, str]]:
    """What `Run.log_data` recorded of each split: the digest of each file."""
    with gzip.open(path) as stream:
        content: dict[str, dict[str, str]] = json.loads(stream.read(LARGEST_FILES))
    return {str(split): dict(files) for split, files in content.items()}


@contextlib.contextmanager
def open_run(config: Config, folder: Path, swept: Mapping[str, str]) -> Iterator[Run]:
    """A new run, or the interrupted one that `config.resume` names; it ends as what happened in the block.

    FINISHED; KILLED, after Ctrl-C or SIGTERM; FAILED, after any error, with its text in the tag `error`.

    Args:
        config: The run's.
        folder: Hydra's folder of a new run.
        swept: The settings that the jobs of a sweep differ in, for the name of a new run.

    Raises:
        UserError: also when the store fails, or a worker process of a loader is killed.
    """
    client = connect(config.tracking)
    if config.resume is None:
        with failures_explained("check it, and start again"):
            run_id = _create_run(client, config, folder, swept)
    else:
        run_id = config.resume
        folder = _recorded_folder(client, config)
    with (
        _only_process(folder, run_id),
        failures_explained(f"once it works again, the run goes on with: python -m cvexp resume={run_id}"),
        _killed_worker_explained(run_id),
    ):
        run = Run(client, run_id, folder, config.tracking)
        if config.resume is not None:
            _log_parameters(client, run_id, config)  # it may have been killed before
            run.remember_what_is_logged()
            client.update_run(run_id, status="RUNNING")
            client.delete_tag(run_id, "error") if "error" in client.get_run(run_id).data.tags else None
        monitor = SystemMetricsMonitor(
            run_id, resume_logging=config.resume is not None, tracking_uri=client.tracking_uri
        )
        if config.tracking.system_metrics:
            monitor.start()
        status, failure = "FAILED", None
        try:
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, Interrupted):
            status = "KILLED"
            raise
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                error.filename = error.filename or str(run.folder)
            failure = error
            raise
        finally:
            _close(run, status, failure, monitor if config.tracking.system_metrics else None)


def _close(run: Run, status: str, error: BaseException | None, monitor: SystemMetricsMonitor | None) -> None:
    """End a run: each step is tried, whatever becomes of the others.

    Args:
        run: The run.
        status: How it ends, unless a step fails.
        error: What made it fail, which is recorded.
        monitor: Of the machine, if there is one.

    Raises:
        Exception: the first failure, unless the run ends for another reason, which is the one to report.
    """
    failures: list[Exception] = []
    steps: list[Callable[[], object]] = [run.flush, run.upload_checkpoints]
    if monitor is not None:
        steps.insert(0, monitor.finish)
    if error is not None:
        steps.insert(0, lambda: run.set_tag("error", f"{type(error).__name__}: {error}"))
    steps.append(lambda: run.client.set_terminated(run.id, "FAILED" if failures and status == "FINISHED" else status))
    for step in steps:
        # MLflow tries to reach an absent server for minutes; that is enough once.
        with few_retries() if failures or isinstance(error, FAILURES) else contextlib.nullcontext():
            try:
                step()
            except Exception as failed:  # whatever it is, the next steps still matter
                failures.append(failed)
    if status == "FINISHED" and failures:
        raise failures[0]


@contextlib.contextmanager
def _killed_worker_explained(run_id: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"DataLoader worker \(pid.*\) (.*)", str(error))
        if found is None:
            raise
        raise UserError(
            f"loader: a worker process {found[1].rstrip('. ')}; if the machine ran out of memory, lower "
            f"loader.num_workers or loader.batch_size. The run goes on with: python -m cvexp resume={run_id}"
        ) from error


def _recorded_folder(client: mlflow.MlflowClient, config: Config) -> Path:
    """The folder of an interrupted run.

    Raises:
        UserError: when it does not lie in the tracking folder: a tag of a store may be anybody's.
    """
    recorded = client.get_run(str(config.resume)).data.tags.get("cvexp.folder", "")
    folder, tracking = Path(recorded).resolve(), Path(config.tracking.folder).resolve()
    if not recorded or not folder.is_relative_to(tracking):
        raise UserError(
            f"resume: the run {config.resume} has its folder at {recorded!r} (tag cvexp.folder), which is not in "
            f"tracking.folder={config.tracking.folder}; name the folder that it was started with, on its own machine"
        )
    return folder


def open_sweep(tracking: Tracking, overrides: list[str]) -> tuple[mlflow.MlflowClient, str]:
    """Create the parent run of a sweep, with what is swept as its parameters; its client and id."""
    client = connect(tracking)
    tags = {"task": "sweep", "command": _command()}
    run = client.create_run(experiment_id(client, tracking), run_name="sweep", tags=tags)
    swept = (override.lstrip("+").partition("=") for override in overrides)
    params = [Param(safe_name(f"sweep.{key}"), hide_secrets(value)[:6000]) for key, _, value in swept]
    client.log_batch(run.info.run_id, params=params)
    return client, str(run.info.run_id)


def close_sweep(client: mlflow.MlflowClient, run_id: str, failed: bool) -> None:
    """End a sweep's run: FINISHED only if all of its jobs did, and none `failed` before it had a run."""
    experiment = client.get_run(run_id).info.experiment_id
    jobs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=10000)
    statuses = {job.info.status for job in jobs}
    status = "FINISHED" if statuses == {"FINISHED"} and not failed else "KILLED" if "KILLED" in statuses else "FAILED"
    client.set_terminated(run_id, status)


def _create_run(client: mlflow.MlflowClient, config: Config, folder: Path, swept: Mapping[str, str]) -> str:
    name = config.name or default_name(config, swept)
    experiment = experiment_id(client, config.tracking)
    run_id = str(client.create_run(experiment, run_name=name, tags=_tags(config, folder)).info.run_id)
    # First of all: a run that is killed from here on can go on.
    client.log_text(run_id, OmegaConf.to_yaml(without_passwords(asdict(config))), "config.yaml")
    _log_parameters(client, run_id, config)
    return run_id


def _log_parameters(client: mlflow.MlflowClient, run_id: str, config: Config) -> None:
    """Record every key of the configuration that is not recorded yet; a recorded one can't be changed."""
    logged = client.get_run(run_id).data.params
    values = {safe_name(key): value for key, value in flatten(without_passwords(asdict(config))).items()}
    params = [Param(key, value[:6000]) for key, value in values.items() if key not in logged]
    for first in range(0, len(params), 100):  # MLflow's limit
        client.log_batch(run_id, params=params[first : first + 100])


NAMED_ANYWAY = ("task", "backbone", "backbone.name", "dataset", "seed")


def default_name(config: Config, swept: Mapping[str, str]) -> str:
    """A run's name in MLflow: what it does, with what, from where, the seed, and what else a sweep varies.

    Args:
        config: The run's.
        swept: The settings that the jobs of a sweep differ in.
    """
    if config.task.works_on is not None:  # its data and models are those of other runs
        parts = [config.task.name]
    else:
        start = {"latest:dino": "dino", "timm": "timm"}.get(config.backbone.weights or "")
        known = (config.task.name, config.backbone.name, config.dataset.name, start, f"seed{config.seed}")
        parts = [part for part in known if part]
        if config.backbone.weights is None or start:
            swept = {key: value for key, value in swept.items() if key != "backbone.weights"}
    last = [key.rpartition(".")[2] for key in swept]
    for key, value in swept.items():
        if key not in NAMED_ANYWAY:
            short = key.rpartition(".")[2]
            parts.append(f"{short if last.count(short) == 1 else key}={value}")
    return "-".join(parts)[:250]


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
    return hide_secrets(" ".join(["python -m cvexp", *(_argument(word.removeprefix("++")) for word in sys.argv[1:])]))


def _argument(argument: str) -> str:
    """A word of the command line as it can be typed again."""
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
