"""What training shows in the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from rich.table import Table

from cvexp import progress
from cvexp.console import console, print_line
from cvexp.progress import clock
from cvexp.report.style import shorten
from cvexp.tracking.run import ReadOnlyRun
from cvexp.tracking.view import share_all_runs
from cvexp.training.announcement import announce

MEASURED_SECONDS = 5.0  # of training, after which its duration is estimated
LONG = 20.0  # seconds; shorter durations are not worth a line


class Progress(pl.callbacks.ProgressBar):
    """Shows what is trained, how far it is, and how long it will take; and the measurements of each epoch.

    Args:
        run: The run.
    """

    def __init__(self, run: ReadOnlyRun) -> None:
        super().__init__()
        self.run = run
        self.training: progress.Step | None = None
        self.validation: progress.Step | None = None
        self.validation_seconds = 0.0  # of the latest validation
        self.validated_seconds = 0.0  # of all validations during the training
        self.is_announced = self.is_estimated = False

    def disable(self) -> None:
        """Show nothing; Lightning calls this in all processes but the first."""
        self.is_disabled_ = True

    def _announce(self, trainer: pl.Trainer, module: Any) -> None:
        if not self.is_announced and trainer.is_global_zero:
            announce(trainer, module, self.run)
        self.is_announced = True

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._announce(trainer, module)
        is_first = trainer.state.fn == "validate"
        title = "validating the untrained network" if is_first else f"validation of epoch {trainer.current_epoch + 1}"
        self.validation = progress.begin(title, sum(map(int, trainer.num_val_batches)), unit="batches")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        assert self.validation is not None
        self.validation.status = module.validation_parts[dataloader_idx]

    def on_validation_batch_end(self, *_: Any) -> None:
        assert self.validation is not None
        self.validation.advance()

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        assert self.validation is not None
        self.validation_seconds = self.validation.seconds
        self.validated_seconds += self.validation_seconds
        progress.end(self.validation)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._announce(trainer, module)
        self.started, self.validated_seconds = time.perf_counter(), 0.0
        self.num_steps, self.loss = 0, float("nan")
        self.training = progress.begin("training", module.total_steps, trainer.global_step, "steps")

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.training is not None
        self.num_steps += 1
        if self.num_steps == 1:  # which is slower than the others, and not counted
            self.started, self.validated_seconds = time.perf_counter(), 0.0
        if module.logs_now:
            self.loss = float(outputs["loss"])  # not at every step, because this waits for the device
        self.training.title = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.training.done = trainer.global_step
        loss = f"loss {self.loss:.3f}, " if math.isfinite(self.loss) else ""  # which the module checks
        self.training.status = f"{loss}{self._speed(module):.0f} images/s"
        left = self._seconds_left(trainer, module)
        self.training.expect(left)
        if not self.is_estimated and self._seconds() >= MEASURED_SECONDS:
            self.is_estimated = True
            if left >= LONG:
                end = time.strftime("%H:%M", time.localtime(time.time() + left))
                print_line(f"measured: {clock(left)} left, until about {end}")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        metrics = "  ".join(
            f"{shorten(name.removeprefix('val/'))} {value:.3f}" for name, value in module.validated.items()
        )
        print_line(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {metrics}  "
            f"{self._speed(module):.0f} images/s  {clock(self._seconds_left(trainer, module))} left"
        )

    def _seconds(self) -> float:
        """Return the seconds of all training steps but the first, without the validations."""
        return max(time.perf_counter() - self.started - self.validated_seconds, 1e-9)

    def _speed(self, module: Any) -> float:
        """Return the number of images per second, in this process's steps."""
        return float((self.num_steps - 1) * module.batches.batch_size / self._seconds())

    def _seconds_left(self, trainer: pl.Trainer, module: Any) -> float:
        steps = module.total_steps - trainer.global_step
        num_validations = math.ceil(steps / len(module.batches))
        training = steps * self._seconds() / max(self.num_steps - 1, 1)
        return float(training + num_validations * self.validation_seconds)

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        for step in (self.training, self.validation):
            if step is not None:
                progress.end(step)


def print_summary(
    run: ReadOnlyRun, best: Mapping[str, float], selected: str, untrained: Mapping[str, float], warning: str | None
) -> None:
    """Print what a run measured, where its record is, and how to view that. A warning comes first.

    Args:
        run: The run.
        best: The metrics at the selected epoch, and the `epoch`, counted from 0.
        selected: The selected epoch, and why it is selected.
        untrained: The metrics before training.
        warning: A reason to doubt the result.
    """
    if warning:
        print_line(warning, style="bold yellow")
    table = Table(title=f"run {run.id}", title_justify="left")
    table.add_column("")
    table.add_column("untrained", justify="right")
    table.add_column(f"epoch {best['epoch'] + 1:.0f}", justify="right")
    for name, value in best.items():
        if name.startswith("val/"):
            before = untrained.get(name)
            table.add_row(shorten(name), "" if before is None else f"{before:.3f}", f"{value:.3f}")
    console.print(table)
    print_line(f"best.ckpt  {selected}")
    print_line(f"artifacts  {run.artifacts}")
    print_line("look       make ui, or: " + run.store.ui_command)
    if address := share_all_runs(run.store):
        print_line(f"all runs   {address}")
