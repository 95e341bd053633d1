"""An open run: all processes that train together can read it, but only the first one writes to it."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat
from urllib.parse import unquote, urlparse

from mlflow.entities import Metric

from cvexp.config import TrackingConfig
from cvexp.redaction import hide_secrets
from cvexp.tracking.sink import Sink
from cvexp.tracking.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLUSH_SECONDS = 5.0  # a write takes a few milliseconds, however many metrics it contains


def resume_command(run_id: str, tracking_folder: str) -> str:
    """Return the command that resumes a run."""
    words = ["python -m cvexp", f"resume={run_id}"]
    if tracking_folder != "outputs" and not os.environ.get("MLFLOW_TRACKING_URI"):
        words.append(shlex.quote(f"tracking.folder={tracking_folder}"))
    return " ".join(words)


class ReadOnlyRun(Sink):
    """An open run of MLflow for all but the first of several processes that train together: it writes nothing.

    Attributes:
        id: MLflow's id of the run.
        store: Where the run is recorded.
        tracking_folder: The folder that holds the records of all runs, if there is no server.
        artifacts: The address of the run's artifacts.
        resume_command: The command that resumes the run.
        folder: Where the run's checkpoints are written. This is its artifact folder if that is on this machine, and
            otherwise Hydra's run folder, from which they are uploaded at the end.
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
        self._is_local = address.scheme in ("", "file")
        self.folder = Path(unquote(address.path)) if self._is_local else run_folder

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

    def history(self, name: str) -> list[tuple[int, float]]:
        """Return all (step, value) pairs of a metric, by step."""
        self.flush()
        return self.store.history(self.id, name)


class Run(ReadOnlyRun):
    """An open run of MLflow. Metrics are gathered and written every few seconds; everything else is written at once."""

    def __init__(self, store: Store, run_id: str, run_folder: Path, tracking: TrackingConfig) -> None:
        super().__init__(store, run_id, run_folder, tracking)
        self._pending: list[tuple[str, SupportsFloat, int]] = []
        self._last_flush = time.monotonic()
        self._logged_until: dict[str, int] = {}
        self._images: set[tuple[str, int]] = set()

    def log_metrics(self, metrics: Mapping[str, SupportsFloat], step: int) -> None:
        """Record values that were measured after this many optimizer steps.

        A value may be a tensor on a device, which is fetched when it is written. Steps that were recorded before an
        interruption are not recorded again. Class names in metric names must come from `safe_name`.
        """
        for name, value in metrics.items():
            if step > self._logged_until.get(name, -1):
                self._pending.append((name, value, step))
        if time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pending metrics, and keep those that the store does not accept."""
        now = int(time.time() * 1000)
        while batch := self._pending[:1000]:  # MLflow's limit
            self.store.client.log_batch(
                self.id, metrics=[Metric(name, float(value), now, step) for name, value, step in batch]
            )
            del self._pending[: len(batch)]
        self._last_flush = time.monotonic()

    def log_image(self, key: str, figure: Figure, step: int) -> None:
        import numpy as np
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        if (key, step) in self._images:
            return
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        self.store.client.log_image(self.id, pixels, key=key, step=step)

    def log_figure(self, figure: Figure, path: str) -> None:
        self.store.client.log_figure(self.id, figure, path)

    def log_file(self, source: Path, folder: str) -> None:
        self.store.client.log_artifact(self.id, str(source), folder)

    def log_json(self, values: Mapping[str, Any], path: str) -> None:
        self.store.client.log_dict(self.id, dict(values), path)

    def log_text(self, text: str, path: str) -> None:
        self.store.client.log_text(self.id, text, path)

    def set_tag(self, key: str, value: str) -> None:
        self.store.client.set_tag(self.id, key, hide_secrets(value)[:5000])

    def upload_checkpoints(self) -> None:
        """Send the checkpoints to the server, unless the artifact folder is on this machine."""
        if not self._is_local and (self.folder / "checkpoints").is_dir():
            self.store.client.log_artifacts(self.id, str(self.folder / "checkpoints"), "checkpoints")

    def remember_what_is_logged(self) -> None:
        """Look up which steps an interrupted run has recorded, so that resuming records none of them twice."""
        for name in self.store.client.get_run(self.id).data.metrics:
            self._logged_until[name] = max(step for step, _ in self.store.history(self.id, name))
        paths = set(self.store.files(self.id, "images"))
        for path in paths:
            # MLflow writes two files for each picture, this one last.
            if match := re.match(r"images/(.*)[+%]step[+%](\d+)[+%].*[+%]compressed\.webp$", path):
                self._images.add((match[1], int(match[2])))
                continue
            second = {f"{path.removesuffix('.png')}{mark}compressed.webp" for mark in "+%"}
            if self._is_local and path.endswith(".png") and not paths & second:
                (self.folder / path).unlink()  # the run was killed between both, and will draw the picture again
