"""`task=sizes`: the number of parameters of finished segmentation runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cvexp.config import RunConfig, TaskConfig
from cvexp.inference.networks import choose_device, load_segmenter
from cvexp.tracking.finished import find_runs
from cvexp.tracking.run import ReadOnlyRun


@dataclass(kw_only=True)
class Config(TaskConfig):
    works_on: ClassVar[str | None] = "runs"


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Leave `sizes.json` in `run`."""
    sizes = {}
    for finished in find_runs(run.store, config, "role", "segmentation"):
        segmenter = load_segmenter(finished, choose_device(config.trainer))
        sizes[finished.task] = sum(parameter.numel() for parameter in segmenter.model.parameters())
    run.log_json(sizes, "sizes.json")
