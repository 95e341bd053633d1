"""Measures how fast a module trains, and the parts that this takes: reading, views, and the training step."""

from __future__ import annotations

import itertools
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.flop_counter import FlopCounterMode

from cvexp.data.batches import Batches
from cvexp.data.kept import Images
from cvexp.data.loaders import ShuffledBatches
from cvexp.training.fit import make_trainer
from cvexp.training.module import TrainingModule

NUM_ROUNDS = 3  # the whole training and the bare step alternate, because the speed of a machine varies
NUM_STEPS = 4  # least number of steps in each measurement, however long they take
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrix product that shows what the device can do


def measure(module: TrainingModule, seconds: float) -> dict[str, float]:
    """Train for a short time, and measure how fast the training and its parts are.

    Args:
        module: What is trained. Nothing is validated or saved.
        seconds: Duration of each measurement, at least.

    Returns:
        Images per second: `images_per_second` of the whole training, `step_images_per_second` of the bare step on a
        batch already on the device, `read_images_per_second` of one process that decodes them, and
        `view_images_per_second` of one process, or of a GPU, that makes their views. Also `fit_over_step`, `data_wait`
        (share of time spent waiting for data), `peak_memory_bytes` of this process, or on a GPU, and `model_flops` and
        `matmul_flops` (floating-point operations per second of the bare step, and of a matrix product).
    """
    settings = replace(module.config.trainer, max_epochs=2**31, max_steps=None)  # the stopwatch ends the training
    module.config = replace(module.config, trainer=settings)
    stopwatch = Stopwatch(seconds)
    make_trainer(module, [stopwatch], limit_val_batches=0, enable_progress_bar=False).fit(module)
    return stopwatch.results


class Stopwatch(pl.Callback):
    """Times training steps and bare steps in turn, then the parts of the input, and ends the training.

    Args:
        seconds: Duration of each measurement, at least.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.fit_seconds = self.waited = self.step_seconds = 0.0
        self.started = self.ready = 0.0
        self.num_fit = self.num_bare = self.round = 0
        self.results: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._start_round(module)

    def _start_round(self, module: TrainingModule) -> None:
        # The first step is slow, and the loader was idle while the bare step was timed: use up what it has prepared.
        prepared = 4 * max(module.config.loader.num_workers, 1)
        self.num_left_out = 2 if self.round == 0 else prepared
        self.num_steps = 0
        self.is_timed = False

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if self.is_timed:
            self.waited += time.perf_counter() - self.ready

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.num_steps += 1
        if self.is_timed:
            elapsed = time.perf_counter() - self.started
            if self.num_steps >= NUM_STEPS and elapsed > self.seconds / NUM_ROUNDS:
                _synchronize(module.device)
                self.fit_seconds += time.perf_counter() - self.started
                self.num_fit += self.num_steps
                self._time_bare_steps(trainer, module, batch)
                self.round += 1
                trainer.should_stop = self.round == NUM_ROUNDS
                self._start_round(module)
        elif self.num_steps == self.num_left_out:
            _synchronize(module.device)
            self.is_timed, self.num_steps = True, 0
            self.started = time.perf_counter()
        self.ready = time.perf_counter()

    def _time_bare_steps(self, trainer: pl.Trainer, module: TrainingModule, batch: Any) -> None:
        seconds, num_steps = _time(lambda: bare_step(trainer, module, batch), self.seconds / NUM_ROUNDS, module.device)
        self.step_seconds += seconds
        self.num_bare += num_steps
        self.batch = batch

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        batch_size, batches = module.batches.batch_size, module.train_dataloader().dataset
        fit = batch_size * self.num_fit / self.fit_seconds
        step = batch_size * self.num_bare / self.step_seconds
        flops = count_flops(lambda: bare_step(trainer, module, self.batch))
        self.results = {
            "images_per_second": fit,
            "step_images_per_second": step,
            "fit_over_step": fit / step,
            "data_wait": self.waited / self.fit_seconds,
            "read_images_per_second": time_reading(batches.images, module.batches, self.seconds),
            "view_images_per_second": time_views(batches, next(iter(module.batches)), module.device, self.seconds),
            "peak_memory_bytes": peak_memory(module.device),
            "model_flops": flops * step / batch_size,
            "matmul_flops": matmul_flops(module.device, trainer.precision),
        }


def bare_step(trainer: pl.Trainer, module: TrainingModule, batch: Any) -> None:
    """Train one step on a batch that is already on the device, with nothing but what the method needs."""
    optimizer = trainer.optimizers[0]
    with trainer.precision_plugin.train_step_context():
        loss, _ = module.step(batch)
    optimizer.zero_grad()
    loss.backward()
    module.on_before_optimizer_step(optimizer)
    if (clip_norm := module.config.optimizer.clip_norm) is not None:
        torch.nn.utils.clip_grad_norm_(module.trained_network().parameters(), clip_norm)
    optimizer.step()
    module.after_optimizer_step(module.done)


def time_reading(images: Images, batches: ShuffledBatches, seconds: float) -> float:
    """Measure how many images one process decodes per second, in the order of the training."""
    order = (position for _ in itertools.count() for batch in batches for _, position in batch)
    duration, num_images = _time(lambda: images.source.read(next(order)), seconds, torch.device("cpu"))
    return num_images / duration


def time_views(batches: Batches, keys: list[tuple[int, int]], device: torch.device, seconds: float) -> float:
    """Measure for how many images per second a process of the loader, or the device, makes all views."""
    pending = batches.pending(keys)
    num_threads = torch.get_num_threads()
    if batches.is_pending:
        pending = apply_to_collection(pending, torch.Tensor, lambda tensor: tensor.to(device))
    else:
        torch.set_num_threads(1)  # as in a process of the loader
    try:
        duration, num_batches = _time(lambda: pending.make(), seconds, device)
    finally:
        torch.set_num_threads(num_threads)
    return len(keys) * num_batches / duration


def count_flops(function: Callable[[], object]) -> int:
    """Count the floating-point operations of a function's matrix products and convolutions."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def matmul_flops(device: torch.device, precision: str) -> float:
    """Measure how many floating-point operations per second a large matrix product reaches on a device."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
    side = MATRIX_SIDE.get(device.type, MATRIX_SIDE["cpu"])
    matrix = torch.randn(side, side, device=device).to(dtype)
    duration, count = _time(lambda: matrix @ matrix, 1.0, device)
    return 2 * side**3 * count / duration


def peak_memory(device: torch.device) -> float:
    """Return the most memory that was in use at any time, on a GPU or else by this process, in bytes."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _time(function: Callable[[], object], seconds: float, device: torch.device) -> tuple[float, int]:
    """Call a function repeatedly, after one call to warm up; return the duration in seconds and the number of calls."""
    function()
    _synchronize(device)
    started, count = time.perf_counter(), 0
    while count < NUM_STEPS or time.perf_counter() - started < seconds:
        function()
        _synchronize(device)
        count += 1
    return time.perf_counter() - started, count


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
