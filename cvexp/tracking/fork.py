"""A run that continues a finished one begins with a copy of its record, and goes on from its last checkpoint."""

from __future__ import annotations

import logging
import shutil
import tempfile
from functools import partial
from pathlib import Path

from mlflow.entities import Metric
from mlflow.entities import Run as MLflowRun

from cvexp import processes
from cvexp.checkpoints import replacing, verify
from cvexp.errors import opening
from cvexp.tracking.run import ReadOnlyRun, Run

OF_THE_MACHINE = ("system/", "speed/")  # metrics that are not copied
COPIED_TAGS = ("start", "weights_from", "backbone.loaded", "selected", "collapse", "warning", "mlflow.loggedImages")

log = logging.getLogger("cvexp")


def fork(run: ReadOnlyRun, source_id: str) -> None:
    """Copy the record of a finished run into a run that continues it.

    The checkpoint to go on from is copied last. As long as it is missing, all is copied again, so that a run that is
    killed in between can be resumed.

    Args:
        run: The open run.
        source_id: MLflow's id of the finished run.

    Raises:
        UserError: if an artifact can't be fetched, or a checkpoint is damaged or holds more than data.
    """
    if isinstance(run, Run) and run.last_checkpoint is None:
        log.info("copying the record of the run %s", source_id)
        source = run.store.run(source_id, "run")
        run.set_tag("continues", source_id)
        if "mlflow.parentRunId" not in run.tags():  # which is that of a sweep
            run.set_tag("mlflow.parentRunId", source_id)
        _copy_metrics(run, source)
        _copy_artifacts(run, source_id)
        assert source.inputs is not None  # it is what the configuration was checked with
        run.store.client.log_inputs(run.id, source.inputs.dataset_inputs)
        for key, value in source.data.tags.items():
            if key in COPIED_TAGS or key.startswith("data."):
                run.set_tag(key, value)
        with opening("tracking.folder"):
            for name in ("best.ckpt", "last.ckpt"):
                run.store.read(source_id, f"checkpoints/{name}", partial(_copy_checkpoint, run, name))
    processes.from_first(None)  # the other processes wait


def _copy_metrics(run: Run, source: MLflowRun) -> None:
    client = run.store.client
    for name in source.data.metrics:
        if not name.startswith(OF_THE_MACHINE):
            history = client.get_metric_history(source.info.run_id, name)
            metrics = [Metric(name, metric.value, metric.timestamp, metric.step) for metric in history]
            for first in range(0, len(metrics), 1000):  # MLflow's limit
                client.log_batch(run.id, metrics=metrics[first : first + 1000])


def _copy_artifacts(run: Run, source_id: str) -> None:
    """Copy all artifacts but the configuration and the checkpoints. At its end, the run replaces those of the end."""
    client = run.store.client
    for item in client.list_artifacts(source_id):
        if item.path in ("config.yaml", "checkpoints"):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            fetched = client.download_artifacts(source_id, item.path, temporary)
            if item.is_dir:
                client.log_artifacts(run.id, fetched, item.path)
            else:
                client.log_artifact(run.id, fetched)


def _copy_checkpoint(run: Run, name: str, fetched: Path) -> None:
    verify(fetched)
    with replacing(run.folder / "checkpoints" / name) as unfinished:
        shutil.copyfile(fetched, unfinished)
