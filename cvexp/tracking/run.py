"""An open run: all processes that train together can read it, but only the first one writes to it.

What it writes goes to an outbox on disk, from which a thread delivers it to MLflow's store. So the training never waits
for the store, and nothing is lost while that is away.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat
from urllib.parse import unquote, urlparse

from cvexp.config import TrackingConfig
from cvexp.errors import UserError
from cvexp.redaction import hide_secrets
from cvexp.tracking.checkpoints import step_of
from cvexp.tracking.delivery import Delivery
from cvexp.tracking.description import resume_command, sync_command
from cvexp.tracking.kept import KeptFiles
from cvexp.tracking.outbox import Recorder, open_outbox
from cvexp.tracking.sink import Sink
from cvexp.tracking.store import FAILURES, Store, few_retries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLUSH_SECONDS = 5.0  # a write takes a few milliseconds, however many metrics it contains

log = logging.getLogger("cvexp")


class ReadOnlyRun(Sink):
    """An open run of MLflow for all but the first of several processes that train together: it writes nothing.

    Attributes:
        id: MLflow's id of the run.
        store: Where the run is recorded.
        tracking_folder: The folder that holds the records of all runs, if there is no server.
        artifacts: The address of the run's artifacts.
        resume_command: The command that resumes the run.
        run_folder: Hydra's folder of the run.
        is_local: Whether the artifact folder is on this machine.
        folder: Where the run's checkpoints are written. This is its artifact folder if that is on this machine, and
            otherwise Hydra's run folder, from which they are uploaded, see `tracking.upload_checkpoints`.
        kept: The files that the run reads back.
        noted_signal: The first signal that asked this process to stop; None until there is one.
    """

    def __init__(self, store: Store, run_id: str, run_folder: Path, tracking: TrackingConfig) -> None:
        self.store = store
        self.id = run_id
        self.noted_signal: int | None = None
        self.log_every_n_steps = tracking.log_every_n_steps
        self.tracking_folder = tracking.folder
        self.resume_command = resume_command(run_id, tracking.folder)
        self.artifacts = str(store.client.get_run(run_id).info.artifact_uri)
        address = urlparse(self.artifacts)
        self.is_local = address.scheme in ("", "file")
        self.run_folder = run_folder
        self.kept = KeptFiles(run_folder / "kept")
        self.folder = Path(unquote(address.path)) if self.is_local else run_folder

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint to resume from; None until the first one is written."""
        path = self.folder / "checkpoints" / "last.ckpt"
        return path if path.exists() else None

    def tags(self) -> dict[str, str]:
        """Return the tags as they are now."""
        tags: dict[str, str] = self.store.client.get_run(self.id).data.tags
        return tags

    def flush(self) -> None:
        """Write the pending metrics."""

    def persist(self) -> None:
        """Write the pending metrics, and see that what waits survives a crash of the machine."""

    def upload_checkpoint(self, path: Path) -> None:
        """Send a checkpoint to the server if `tracking.upload_checkpoints` says so."""

    def metrics(self) -> dict[str, float]:
        """Return the latest value of each metric."""
        metrics: dict[str, float] = self.store.client.get_run(self.id).data.metrics
        return metrics

    def history(self, name: str) -> list[tuple[int, float]]:
        """Return all (step, value) pairs of a metric, by step."""
        return self.store.history(self.id, name)


class Run(ReadOnlyRun):
    """An open run of MLflow. What it records is in its outbox, or already in the store, and it knows all of it itself.

    Metrics are gathered and written to the outbox every few seconds; everything else is written at once. Several
    threads may log metrics.
    """

    def __init__(self, store: Store, run_id: str, run_folder: Path, tracking: TrackingConfig) -> None:
        super().__init__(store, run_id, run_folder, tracking)
        self._uploads_each_epoch = tracking.upload_checkpoints == "epoch"
        self._outbox = open_outbox(tracking.folder, run_id)
        self._delivery = Delivery(store, run_id, self._outbox)
        self._recorder = Recorder(store.client.tracking_uri, self._outbox, self._delivery.notify)
        self._pending: list[tuple[str, SupportsFloat, int, int]] = []
        self._logging = threading.Lock()
        self._last_flush = time.monotonic()
        self._tags = super().tags()
        self._history: dict[str, list[tuple[int, float]]] = {}
        self._logged_until: dict[str, int] = {}
        self._images: set[tuple[str, int]] = set()
        self._uploaded: dict[str, int] = {}  # the time at which a checkpoint was written, by its name

    def log_metrics(self, metrics: Mapping[str, SupportsFloat], step: int) -> None:
        """Record values that were measured after this many optimizer steps.

        A value may be a tensor on a device, which is fetched when it is written. Steps that were recorded before an
        interruption are not recorded again. Class names in metric names must come from `safe_name`.
        """
        now = int(time.time() * 1000)
        with self._logging:
            for name, value in metrics.items():
                if step > self._logged_until.get(name, -1):
                    self._pending.append((name, value, now, step))
        if time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pending metrics to the outbox.

        Raises:
            UserError: if the run was deleted in the store.
            Exception: any other reason for which the store refused something for good, which is a bug.
        """
        self._raise_refused()
        self._write_pending()

    def _write_pending(self) -> None:
        with self._logging:
            while batch := self._pending[:1000]:  # MLflow's limit
                metrics = [(name, float(value), timestamp, step) for name, value, timestamp, step in batch]
                self._recorder.put("metrics", {"metrics": metrics})
                del self._pending[: len(batch)]
                for name, value, _, step in metrics:
                    self._history.setdefault(name, []).append((step, value))
            self._last_flush = time.monotonic()

    def _raise_refused(self) -> None:
        for error in self._delivery.refused:
            with few_retries(), contextlib.suppress(*FAILURES):
                if self.store.client.get_run(self.id).info.lifecycle_stage == "deleted":
                    raise UserError(
                        f"the run {self.id} was deleted in MLflow; what it lacks waits in {self._outbox.folder}; to go "
                        f"on, restore it with `mlflow runs restore --run-id {self.id}`, and deliver that with: "
                        f"{sync_command(self.tracking_folder)}"
                    ) from error
            raise error

    def persist(self) -> None:
        self.flush()
        self._outbox.persist()

    def metrics(self) -> dict[str, float]:
        self.flush()
        return {name: max(reversed(history), key=lambda pair: pair[0])[1] for name, history in self._history.items()}

    def history(self, name: str) -> list[tuple[int, float]]:
        self.flush()
        return sorted(self._history.get(name, []), key=lambda pair: pair[0])

    def log_image(self, key: str, figure: Figure, step: int) -> None:
        import numpy as np
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        if (key, step) in self._images:
            return
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        self._recorder.log_image(self.id, pixels, key=key, step=step)

    def log_figure(self, figure: Figure, path: str) -> None:
        self._recorder.log_figure(self.id, figure, path)

    def log_file(self, source: Path, folder: str) -> None:
        self._recorder.log_artifact(self.id, str(source), folder)
        self.kept.keep(source, folder)

    def log_json(self, values: Mapping[str, Any], path: str) -> None:
        self._recorder.log_dict(self.id, dict(values), path)

    def log_text(self, text: str, path: str) -> None:
        self._recorder.log_text(self.id, text, path)

    def log_inputs(self, inputs: Sequence[Mapping[str, str]]) -> None:
        """Record data sets: of each its `context`, and the attributes of an `mlflow.entities.Dataset`."""
        self._recorder.put("inputs", {"inputs": [dict(each) for each in inputs]})

    def set_tag(self, key: str, value: str) -> None:
        self._tags[key] = hide_secrets(value)[:5000]
        self._recorder.set_tag(self.id, key, self._tags[key])

    def tags(self) -> dict[str, str]:
        return dict(self._tags)

    def upload_checkpoint(self, path: Path) -> None:
        if not self.is_local and self._uploads_each_epoch:
            self._upload(path)

    def _upload(self, path: Path) -> None:
        written = path.stat().st_mtime_ns
        if self._uploaded.get(path.name) != written:
            step = step_of(path) if path.name == "last.ckpt" else None
            self._recorder.put("checkpoint", {"name": path.name, "step": step}, path)
            self._uploaded[path.name] = written

    def upload_checkpoints(self) -> None:
        """Send the checkpoints to the server, unless they have been sent, or the artifact folder is on this machine."""
        if not self.is_local:
            for path in sorted((self.folder / "checkpoints").glob("*.ckpt")):  # last.ckpt comes last
                self._upload(path)

    def recorded_error(self) -> str:
        """Return the error that another process of this run may have recorded, or "" if there is none."""
        with few_retries(), contextlib.suppress(*FAILURES):
            return super().tags().get("error", "")
        return ""

    def drain(self) -> bool:
        """Wait until the store has everything that was recorded, and return True, or False if it is away.

        Raises:
            Exception: what :meth:`flush` raises.
        """
        self._write_pending()
        with few_retries():  # the delivery tries again by itself
            has_all = self._delivery.drain()
        self._raise_refused()
        return has_all

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED. If the store is away, a message says what to do later.

        Raises:
            Exception: what :meth:`flush` raises.
        """
        try:
            self._recorder.put("end", {"status": status, "time": int(time.time() * 1000)})
        except OSError:  # the disk is full
            with few_retries():
                self.store.client.set_terminated(self.id, status)
        if not self.drain():
            log.warning(
                "MLflow's store at %s is away (%s); what it lacks of the run %s waits in %s; once it is back, deliver "
                "that with: %s",
                *(self.store.address, self._delivery.failure, self.id, self._outbox.folder),
                sync_command(self.tracking_folder),
            )

    def release(self) -> None:
        """End the delivery, and leave what waits to other processes."""
        self.kept.delete()
        if self._delivery.stop():
            self._outbox.unlock()

    def reload(self) -> None:
        """Look up what the run has recorded before it was opened, so that none of it is recorded twice.

        Raises:
            UserError: if the store is away.
        """
        if not self.drain():
            raise UserError(
                f"MLflow's store at {self.store.address} is away ({self._delivery.failure}); try again once it is back"
            )
        self._tags = super().tags()
        self.kept.fetch(self.store, self.id)
        for name in super().metrics():
            self._history[name] = self.store.history(self.id, name)
            self._logged_until[name] = max(step for step, _ in self._history[name])
        paths = set(self.store.files(self.id, "images"))
        for path in paths:
            # MLflow writes two files for each picture, this one last.
            if match := re.match(r"images/(.*)[+%]step[+%](\d+)[+%].*[+%]compressed\.webp$", path):
                self._images.add((match[1], int(match[2])))
                continue
            second = {f"{path.removesuffix('.png')}{mark}compressed.webp" for mark in "+%"}
            if self.is_local and path.endswith(".png") and not paths & second:
                (self.folder / path).unlink()  # the run was killed between both, and will draw the picture again
