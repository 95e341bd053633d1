"""What a training run says first: on what it trains what, with which data, for how long."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict
from typing import NamedTuple

import pytorch_lightning as pl
import torch

from cvexp.config import flatten
from cvexp.console import print_line
from cvexp.metrics.names import safe_name
from cvexp.progress import clock
from cvexp.report.style import shorten
from cvexp.tracking.finished import newest_runs
from cvexp.tracking.run import ReadOnlyRun
from cvexp.tracking.store import FAILURES, few_retries
from cvexp.training.module import TrainingModule

DEVICE = "device"  # tag of a training run
FEW_STEPS, ENOUGH_STEPS = 4, 5  # of an epoch
SMALLEST_BATCH = 8  # that is suggested
# Runs that agree in these settings, and in all sizes of images, are about equally fast.
_SPEED_SETTINGS = ("task.name", "backbone.name", "dataset.name", "loader.batch_size", "trainer.compile")


class Estimate(NamedTuple):
    """How long a run will probably take, in seconds, and the run that was as fast as this one is expected to be."""

    seconds: float
    run_id: str


def describe_device(trainer: pl.Trainer) -> str:
    """Return what a trainer computes on, and with which precision."""
    device = trainer.strategy.root_device
    num_threads = torch.get_num_threads()
    name = f"cpu, {num_threads} thread{'s' * (num_threads > 1)}"
    if device.type != "cpu":
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    processes = f"{trainer.world_size} processes, each with " if trainer.world_size > 1 else ""
    return f"{processes}{name}, {trainer.precision}"


def announce(trainer: pl.Trainer, module: TrainingModule, run: ReadOnlyRun) -> None:
    """Print what a run is about to do, and record its device as a tag, by which later runs find how fast it was."""
    device, config = describe_device(trainer), module.config
    estimate = estimate_duration(module, run, device)
    run.set_tag(DEVICE, device)
    num_parameters = sum(parameter.numel() for parameter in module.trained_network().parameters())
    is_pretraining = config.role == "pretraining"
    val = module.splits.val
    num_val, samples = (len(val), "crops") if is_pretraining else (len(val.images), "images")
    steps_per_epoch, steps_left = len(module.batches), module.total_steps - trainer.global_step
    parts = [
        f"{config.job}: {shorten(config.backbone.name)}, {num_parameters / 1e6:.1f} M parameters",
        f"{config.dataset.name}: {module.num_samples:,} training and {num_val:,} validation {samples}",
        device,
        f"{steps_left:,} steps of {module.batches.batch_size} {samples}, in epochs of {steps_per_epoch:,}",
        f"about {clock(estimate.seconds)}, as the run {estimate.run_id}" if estimate else "time: after the first steps",
    ]
    print_line("; ".join(parts), style="bold")
    print_line(f"if it is interrupted, go on with: {run.resume_command}")
    advice = batch_advice(module.batches.batch_size, module.num_samples, steps_per_epoch)
    if advice and config.trainer.steps_per_epoch is None:
        print_line(advice, style="bold yellow")


def batch_advice(batch_size: int, num_samples: int, steps_per_epoch: int) -> str | None:
    """Suggest smaller batches if there are so few images that an epoch is hardly a training; None if it is one."""
    if steps_per_epoch >= FEW_STEPS or num_samples < 4 * SMALLEST_BATCH:
        return None
    size = SMALLEST_BATCH
    while 2 * size * ENOUGH_STEPS <= num_samples:
        size *= 2
    if size >= batch_size:
        return None
    steps = f"{steps_per_epoch} step{'s' * (steps_per_epoch > 1)}"
    return (
        f"an epoch is only {steps}, because loader.batch_size={batch_size} of {num_samples:,}; with "
        f"loader.batch_size={size}, the network learns more from each epoch"
    )


def estimate_duration(module: TrainingModule, run: ReadOnlyRun, device: str) -> Estimate | None:
    """Estimate how long a run takes from the speed of the newest finished run like it; None if there is none."""
    settings = {
        key: value
        for key, value in flatten(asdict(module.config)).items()
        if key in _SPEED_SETTINGS or key.rpartition(".")[2] in ("size", "image_size", "global_size", "local_size")
    }
    conditions = [f"tags.`{DEVICE}` = '{device}'", "metrics.`speed/images_per_second` > 0"]
    conditions += [f"params.`{safe_name(key)}` = '{value}'" for key, value in settings.items()]
    if any(condition.count("'") not in (0, 2) for condition in conditions):  # MLflow's queries can't quote a quote
        return None
    with few_retries(), contextlib.suppress(*FAILURES):  # a run does not fail for lack of an estimate
        for earlier in newest_runs(run.store, module.config, 1, *conditions):
            speed = earlier.metrics["speed/images_per_second"] * (1 - earlier.metrics.get("speed/validation", 0.0))
            images_left = (module.total_steps - module.global_step) * module.batches.batch_size
            if speed > 0 and math.isfinite(speed):
                return Estimate(images_left / speed, earlier.id)
    return None
