"""`task=benchmark`: how fast does a task train, and what limits it?

The command line turns `task=benchmark task.of=NAME ...` into the configuration of the run `task=NAME ...` with
`benchmark=true`. The settings are thus exactly those of that run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cvexp import data, plugins, progress
from cvexp.config import RunConfig, TaskConfig
from cvexp.console import print_line
from cvexp.data.kept import describe
from cvexp.errors import UserError
from cvexp.report.speed import print_speed
from cvexp.tracking.data_record import record_data
from cvexp.tracking.run import ReadOnlyRun
from cvexp.training.speed import measure

SECONDS = 10.0  # of each measurement, at least
GOOD_RATIO = 0.9  # of fit and step, from which the model is the limit


@dataclass(kw_only=True)
class Config(TaskConfig):
    pass


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Measure, print a table and a line of JSON, and record the figures in `run`.

    Raises:
        UserError: if the task does not train.
    """
    if config.task.role == "job":
        raise UserError(f"task.of: got {config.task.name!r}, but only tasks that train can be measured, such as dino")
    splits = data.load(config.dataset, config.task.role)  # type: ignore[arg-type]
    record_data(run, config.dataset.name, splits)
    print_line(f"measuring task={config.task.name} for about {6 * SECONDS:.0f} seconds")
    module = plugins.load("task", config.task.name).Method(config, splits)
    with progress.step("measuring") as step:
        step.expect(6 * SECONDS)
        speed = measure(module, SECONDS)
    advice = advise(speed, config, module.draws_on_device, kept=describe(module.images))
    print_speed(speed, describe(module.images), module.draws_on_device)
    print_line(advice, style="bold")
    run.log_metrics({f"benchmark/{name}": value for name, value in speed.items()}, 0)
    run.set_tag("benchmark", advice)
    report = {"task": config.task.name, **speed, "kept": describe(module.images), "advice": advice}
    run.log_json(report, "benchmark.json")
    print(json.dumps(report))  # scripts read the last line


def advise(speed: Mapping[str, float], config: RunConfig, draws_on_device: bool, kept: str) -> str:
    """Name what limits the speed, and the keys to change."""
    if speed["fit_over_step"] >= GOOD_RATIO:
        keys = ["trainer.precision=bf16-mixed"] if "bf16" not in config.trainer.precision else []
        keys += [] if config.trainer.compile else ["trainer.compile=true"]
        return f"the model is the limit; try {', '.join([*keys, 'smaller images'])}, or another backbone"
    reads = kept.startswith("none")
    read_seconds = 1 / speed["read_images_per_second"] if reads else 0.0  # for each image, in one process
    view_seconds = 0.0 if draws_on_device else 1 / speed["view_images_per_second"]
    if reads and read_seconds >= view_seconds:
        return "reading the images is the limit; try dataset.keep=ram, or a larger loader.num_workers"
    if draws_on_device:
        return "moving the images to the device is the limit; try dataset.keep=device"
    if torch.get_num_threads() >= (num_cores := os.cpu_count() or 1):
        other = 0 if config.loader.num_workers else 1
        return (
            "the views take time on the cores that the model uses; try fewer or smaller views, or "
            f"loader.num_workers={other}"
        )
    num_needed = math.ceil(speed["step_images_per_second"] * (read_seconds + view_seconds))
    num_workers = min(max(num_needed, config.loader.num_workers + 1), num_cores)
    return f"making the views is the limit; try loader.num_workers={num_workers}"
