"""The destination of metrics and pictures, so that training works with or without MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Sink:
    """Receives metrics, pictures and files. This class drops them; `Run` writes them to MLflow.

    Attributes:
        id: MLflow's id of the run; empty without MLflow.
        log_every_n_steps: The number of steps from one record of training metrics to the next.
    """

    id: str = ""
    log_every_n_steps: int = 1

    def log_metrics(self, metrics: Mapping[str, SupportsFloat], step: int) -> None:
        """Record values that were measured after this many optimizer steps."""

    def log_image(self, key: str, figure: Figure, step: int) -> None:
        """Record a picture under a key and a step; MLflow shows the pictures of one key as a sequence."""

    def log_figure(self, figure: Figure, path: str) -> None:
        """Record a picture as an artifact."""

    def log_file(self, source: Path, folder: str) -> None:
        """Record a copy of a file as an artifact."""

    def log_json(self, values: Mapping[str, Any], path: str) -> None:
        """Record nested values as an artifact."""

    def log_text(self, text: str, path: str) -> None:
        """Record text as an artifact."""

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag, replacing an older one with the same key."""

    def tags(self) -> dict[str, str]:
        """Return all tags."""
        return {}


class Memory(Sink):
    """Keeps the metrics in memory, for tests and notebooks.

    Attributes:
        metrics: (step, value) pairs by name.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, list[tuple[int, float]]] = {}

    def log_metrics(self, metrics: Mapping[str, SupportsFloat], step: int) -> None:
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append((step, float(value)))
