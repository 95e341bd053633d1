"""What training shows in the terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from rich import progress
from rich.table import Table

from cvexp.report.console import console, print_line
from cvexp.report.style import shorten
from cvexp.tracking.run import ReadOnlyRun


class Progress(pl.callbacks.ProgressBar):
    """Shows epoch, loss, images per second and remaining time: a bar on a terminal, a line per epoch elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: progress.Progress | None = None

    def disable(self) -> None:
        """Show nothing; Lightning calls this in all processes but the first."""
        self.is_disabled_ = True

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.started, self.first_step = time.perf_counter(), trainer.global_step
        self.num_images, self.loss = 0, float("nan")
        if console.is_terminal:
            self.bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TextColumn("{task.completed}/{task.total}"),
                progress.TextColumn("{task.fields[status]}"),
                progress.TimeRemainingColumn(),
                console=console,
            )
            self.bar.start()
            self.row = self.bar.add_task("training", total=module.total_steps, completed=trainer.global_step, status="")

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.num_images += module.batches.batch_size
        if self.bar is None:
            return
        if module.logs_now:
            self.loss = float(outputs["loss"])  # not at every step, because this waits for the device
        self.bar.update(
            self.row,
            completed=trainer.global_step,
            description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            status=f"loss {self.loss:.3f}  {self._speed():.0f} images/s",
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        metrics = "  ".join(
            f"{shorten(name.removeprefix('val/'))} {value:.3f}" for name, value in module.validated.items()
        )
        seconds = time.perf_counter() - self.started
        steps = trainer.global_step - self.first_step
        remaining = seconds / max(steps, 1) * (module.total_steps - trainer.global_step)
        print_line(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {metrics}  "
            f"{self._speed():.0f} images/s  {_clock(remaining)} left"
        )

    def _speed(self) -> float:
        return self.num_images / (time.perf_counter() - self.started)

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


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
