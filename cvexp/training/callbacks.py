"""What happens around the steps of every training run: schedules, speed, checkpoints, and interruptions."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from cvexp import processes
from cvexp.config import RunConfig
from cvexp.console import print_line
from cvexp.errors import Interrupted
from cvexp.metrics import selection
from cvexp.seeds import mix
from cvexp.tracking.run import ReadOnlyRun


class Schedule(pl.Callback):
    """Sets learning rate, weight decay and random state as pure functions of the step, so that a run can be resumed.

    It also ends the run after its last step, which may be within an epoch if `trainer.max_steps` is set. Unlike
    Lightning's own limit, this keeps the validation after the last step.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        trainer.should_stop = trainer.global_step >= module.total_steps  # a run that was stopped after its last step

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        own = [processes.rank()] if processes.rank() > 0 else []  # each process draws its own dropout
        torch.manual_seed(mix(self.config.seed, trainer.global_step, *own))
        values = module.schedules(self.config, module.done)
        lr, weight_decay = values["lr"], values["weight_decay"]
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = lr * group["lr_factor"]
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        if module.logs_now:
            schedule = {"schedule/lr": lr, "schedule/weight_decay": weight_decay}
            module.sink.log_metrics(schedule, trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == module.total_steps:
            trainer.should_stop = True


class Speed(pl.Callback):
    """Records the speed of each training epoch, and the shares of time for waiting, validation and its pictures."""

    def __init__(self) -> None:
        self.seconds = {"training": 0.0, "validation": 0.0, "pictures": 0.0}  # since this process started to train

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.on_train_epoch_start(trainer, module)  # Lightning skips this if a run is resumed within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.started = self.ready = time.perf_counter()
        self.waited = 0.0
        self.num_images = 0

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.waited += time.perf_counter() - self.ready

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ready = time.perf_counter()
        self.num_images += module.batches.batch_size
        if trainer.is_last_batch or trainer.global_step == module.total_steps:
            seconds = self.epoch_seconds = self.ready - self.started
            self.seconds["training"] += seconds
            speed = {"speed/images_per_second": self.num_images / seconds, "speed/data_wait": self.waited / seconds}
            module.sink.log_metrics(speed, trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.validation_started = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.state.fn != "fit":  # the validation before training has no epoch to be a share of
            return
        seconds = time.perf_counter() - self.validation_started
        self.seconds["validation"] += seconds
        self.seconds["pictures"] += module.picture_seconds
        whole = self.epoch_seconds + seconds
        shares = {"speed/validation": seconds / whole, "speed/pictures": module.picture_seconds / whole}
        module.sink.log_metrics(shares, trainer.global_step)

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        whole = self.seconds["training"] + self.seconds["validation"]
        if whole:
            training, validation, pictures = (f"{seconds / whole:.0%}" for seconds in self.seconds.values())
            print_line(f"time: training {training}, validation {validation}, of which pictures {pictures}")


class Checkpoints(pl.Callback):
    """Writes checkpoints/last.ckpt after each epoch, and checkpoints/best.ckpt after the selected one.

    All metrics are written before last.ckpt, so nothing that a checkpoint contains is missing from the record.

    Args:
        run: Where checkpoints and metrics are written.
        monitor: What selects the epoch, ``"last"`` or a metric; see `cvexp.metrics.selection`.

    Attributes:
        best: The validation metrics at the selected epoch, and its `epoch` and `step`.
    """

    def __init__(self, run: ReadOnlyRun, monitor: str) -> None:
        self.run = run
        self.monitor = monitor
        self.best: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        metrics = module.validated
        if selection.selects(self.monitor, metrics, self.best):
            self.best = {**metrics, "epoch": trainer.current_epoch, "step": trainer.global_step}
            trainer.save_checkpoint(self.run.folder / "checkpoints" / "best.ckpt", weights_only=True)
            named = {f"best/{name.removeprefix('val/')}": value for name, value in self.best.items()}
            self.run.log_metrics(named, trainer.global_step)
        self.run.set_tag("selected", selection.describe(self.monitor, self.best["epoch"], module.epochs_done))
        self.save_last(trainer)

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write last.ckpt, from which the run can be resumed."""
        self.run.persist()
        trainer.save_checkpoint(self.run.folder / "checkpoints" / "last.ckpt")


class Interruption(pl.Callback):
    """After Ctrl-C or SIGTERM, ends a run where it can be resumed: after a step, or after the validation.

    A second signal ends the run at once. Resuming then starts from the end of the last epoch. Several processes ignore
    a second signal, because torchrun and Slurm may both send one; `cvexp.tracking.watchdog` ends those that go on.

    Submitit handles SIGUSR2, with which Slurm announces that a job has to make room or that its time is up: it puts the
    job into the queue again. Its handler is called when the run can be resumed.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.run = checkpoints.run
        self.previous: dict[signal.Signals, Any] = {}

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.state.fn == "validate" and trainer.world_size > 1:  # Lightning's own handler would communicate
            self._listen()
            if self._is_noted(trainer):
                self._stop()

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._listen()

    def _listen(self) -> None:
        if not processes.handles_signals():
            return
        is_managed = callable(signal.getsignal(signal.SIGUSR2))
        for number in (signal.SIGINT, signal.SIGTERM, *[signal.SIGUSR2] * is_managed):
            self.previous[number] = signal.signal(number, self._note)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        if self.run.noted_signal is None:
            self.run.noted_signal = signal_number
            again = "; interrupt again to stop at once" if processes.world_size() == 1 else ""
            print_line(f"stopping after this step or validation{again}", style="bold yellow")
        elif processes.world_size() == 1:
            raise Interrupted(signal_number)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Several processes must stop at the same step, so they agree on it, but not at every step, which would be slow.
        may_stop = trainer.world_size == 1 or module.logs_now
        if may_stop and not (trainer.is_last_batch or trainer.should_stop) and self._is_noted(trainer):
            self.checkpoints.save_last(trainer)
            self._stop()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:  # after Checkpoints has saved
        if trainer.global_step < module.total_steps and self._is_noted(trainer):
            self._stop()

    def _is_noted(self, trainer: pl.Trainer) -> bool:
        """Return whether any of the processes has received a signal."""
        return trainer.strategy.reduce_boolean_decision(self.run.noted_signal is not None, all=False)

    def _stop(self) -> None:
        if self.run.noted_signal == signal.SIGUSR2:
            print_line("stopped; the job goes on when the scheduler starts it again")
            self._restore()
            self.previous[signal.SIGUSR2](signal.SIGUSR2, None)  # exits
        print_line(f"stopped; resume with: {self.run.resume_command}")
        raise Interrupted(self.run.noted_signal or signal.SIGTERM)

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self._restore()

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._restore()  # before Lightning restores those that were there before its own

    def _restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
