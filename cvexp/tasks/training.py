"""What all training tasks share: optimiser, trainer, checkpoints, interruption, and the closing summary."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from cvexp import config
from cvexp.data.crops import mix
from cvexp.data.loaders import ShuffledBatches
from cvexp.errors import Interrupted, UserError
from cvexp.metrics.knn import worse_than_untrained
from cvexp.models.schedules import cosine, warmup_cosine
from cvexp.report import console, curves
from cvexp.tracking import Run

CURVES = {  # of a run's picture: the validation metric, and what training may call it
    "loss (nats)": ("val/loss", ["train/loss"]),
    "mIoU": ("val/miou", ["train/miou", "train/miou_asked"]),
    "kNN accuracy": ("val/knn_top1", []),
}


def make_batches(module: pl.LightningModule, samples: int, settings: config.Config) -> ShuffledBatches:
    """The batches of an epoch, which go on where the module's run is, and are this process' share of them."""
    return ShuffledBatches(
        samples,
        settings.loader.batch_size,
        settings.seed,
        batches_done=lambda: module.global_step,
        rank=module.trainer.global_rank,
        world_size=module.trainer.world_size,
    )


def total_steps(trainer: config.Trainer, batches_per_epoch: int) -> int:
    """How many optimiser steps a run takes."""
    steps = trainer.max_epochs * batches_per_epoch
    return steps if trainer.max_steps is None else min(steps, trainer.max_steps)


def make_optimizer(
    model: nn.Module, settings: config.Optimizer, lr_factors: Mapping[nn.Module, float] | None = None
) -> torch.optim.Optimizer:
    """The optimiser of a model's trainable parameters, without weight decay on biases and norms.

    Args:
        model: What is trained.
        settings: The optimiser's.
        lr_factors: By what the learning rate of parts of the model is multiplied.

    Raises:
        UserError: when torch.optim has no such optimiser, or it refuses the arguments.
    """
    optimizers = {name for name, cls in vars(torch.optim).items() if isinstance(cls, type) and name != "Optimizer"}
    config.require_one_of("optimizer.name", settings.name, optimizers)
    factor_of = {id(p): factor for part, factor in (lr_factors or {}).items() for p in part.parameters()}
    by_kind: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            by_kind.setdefault((factor_of.get(id(parameter), 1.0), parameter.ndim > 1), []).append(parameter)
    groups = [
        {"params": parameters, "lr_factor": factor, "decays": decays}
        for (factor, decays), parameters in by_kind.items()
    ]
    try:
        optimizer = getattr(torch.optim, settings.name)(groups, lr=settings.lr, weight_decay=0.0, **settings.args)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.args: {settings.name} refuses {settings.args}: {error}") from error
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def train(module: Any, settings: config.Config, run: Run, monitor: str) -> None:
    """Fit a module, from its run's last checkpoint where there is one.

    Args:
        module: A LightningModule that also has `run_`, `total_steps`, and `batches`, as many as an epoch has steps;
            its validation ends with `log_validation`.
        monitor: The metric that picks best.ckpt; a loss is best when least, everything else when largest.
    """
    checkpoints = Checkpoints(run, monitor)
    progress = console.Progress()
    trainer = pl.Trainer(
        max_epochs=settings.trainer.max_epochs,
        accelerator=settings.trainer.accelerator,
        devices=1 if settings.trainer.devices == "auto" else settings.trainer.devices,
        num_nodes=settings.trainer.num_nodes,
        strategy=settings.trainer.strategy,
        precision=_precision(settings.trainer),  # type: ignore[arg-type]
        gradient_clip_val=settings.optimizer.clip_norm,
        deterministic="warn",  # equal seeds give equal losses; an operation that can't says so
        callbacks=[Schedule(settings), Speed(run, settings.loader), checkpoints, Interruption(checkpoints), progress],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=True,
        enable_model_summary=False,
    )
    last = run.last_checkpoint
    if last is None:
        trainer.validate(module, verbose=False)  # what it is before it has learned anything
    trainer.fit(module, ckpt_path=last, weights_only=True)
    panels = {
        words: [
            curves.Curve("", [p for name in train for p in run.history(name)], run.history(val), len(module.batches))
        ]
        for words, (val, train) in CURVES.items()
        if val in checkpoints.best
    }
    run.log_figure(curves.compare(panels), "curves/curves.png")
    untrained = {name: run.history(name)[0][1] for name in checkpoints.best if name.startswith("val/")}
    console.print_summary(run, checkpoints.best, untrained, _record_worse_features(run, checkpoints.best))


def _record_worse_features(run: Run, best: Mapping[str, float]) -> str | None:
    """Warn where pretraining lowered the kNN accuracy, and add that to the tag `warning`."""
    if "val/knn_top1" not in best:
        return None
    accuracies = run.history("val/knn_top1")
    trained = {"at the best epoch": best["val/knn_top1"], "at the last epoch": accuracies[-1][1]}
    warning = worse_than_untrained(dict(accuracies).get(0), trained)
    if warning:
        earlier = run.client.get_run(run.id).data.tags.get("warning", "")
        if warning not in earlier:  # which a run that goes on at its very end may have recorded
            run.set_tag("warning", f"{earlier}; {warning}" if earlier else warning)
    return warning


def device(trainer: config.Trainer) -> torch.device:
    """The device that Lightning takes for these settings."""
    chosen = pl.Trainer(accelerator=trainer.accelerator, devices=1, logger=False, enable_checkpointing=False)
    return chosen.strategy.root_device


def _precision(trainer: config.Trainer) -> str:
    if trainer.precision != "auto":
        return trainer.precision
    on_gpu = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def log_validation(module: Any, run: Run, metrics: Mapping[str, float]) -> None:
    """Record validation metrics, and leave them in `module.validated` for the callbacks."""
    check_loss(module, metrics["loss"])
    named = {f"val/{name}": value for name, value in metrics.items()}
    run.log_metrics(named, module.global_step)
    module.validated = named


def check_loss(module: pl.LightningModule, loss: float) -> None:
    """Raise a UserError where a validation loss is not finite: then nothing else can be measured either."""
    if not math.isfinite(loss):
        raise UserError(
            f"the validation loss is {loss} after {module.global_step} steps; lower optimizer.lr, or raise precision "
            "with trainer.precision=32-true; the last good epoch is in checkpoints/last.ckpt"
        )


def warn(module: pl.LightningModule, run: Run, warning: str | None) -> None:
    """Tell a warning, and keep it as the run's tag `warning`."""
    if warning:
        console.print_line(f"warning, step {module.global_step}: {warning}", style="bold yellow")
        run.set_tag("warning", f"step {module.global_step}: {warning}")


class Schedule(pl.Callback):
    """Sets learning rate, weight decay and random state as pure functions of the step, so that a run can go on.

    It also ends the run after its last step, which `trainer.max_steps` may put inside an epoch: unlike Lightning's own
    limit, this validates what the last steps gave.
    """

    def __init__(self, settings: config.Config) -> None:
        self.optimizer = settings.optimizer
        self.seed = settings.seed

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        trainer.should_stop = trainer.global_step >= module.total_steps  # a run that was stopped after its last step

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(mix(self.seed, trainer.global_step))
        done = trainer.global_step / module.total_steps
        lr = warmup_cosine(done, self.optimizer.warmup, self.optimizer.lr, self.optimizer.final_lr)
        weight_decay = cosine(done, self.optimizer.weight_decay, self.optimizer.final_weight_decay)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = lr * group["lr_factor"]
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        if trainer.global_step % module.run_.log_every_n_steps == 0:
            schedule = {"schedule/lr": lr, "schedule/weight_decay": weight_decay}
            module.run_.log_metrics(schedule, trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == module.total_steps:
            trainer.should_stop = True


class Speed(pl.Callback):
    """Records the training's images per second, and which share of the time it waited for data, epoch by epoch."""

    def __init__(self, run: Run, loader: config.Loader) -> None:
        self.run = run
        self.batch_size = loader.batch_size

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.on_train_epoch_start(trainer, module)  # which Lightning skips when a run goes on inside an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.started = self.ready = time.perf_counter()
        self.waited = 0.0
        self.images = 0

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.waited += time.perf_counter() - self.ready

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ready = time.perf_counter()
        self.images += len(batch[1]) * trainer.world_size
        if trainer.is_last_batch or trainer.global_step == module.total_steps:
            seconds = self.ready - self.started
            speed = {"speed/images_per_second": self.images / seconds, "speed/data_wait": self.waited / seconds}
            self.run.log_metrics(speed, trainer.global_step)


class Checkpoints(pl.Callback):
    """Writes checkpoints/last.ckpt after each epoch, and checkpoints/best.ckpt after the best one.

    Before last.ckpt is written, all metrics are: what a checkpoint has behind it is recorded.
    """

    def __init__(self, run: Run, monitor: str) -> None:
        self.run = run
        self.monitor = monitor
        self.best: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        metrics = module.validated
        sign = -1 if self.monitor.endswith("loss") else 1
        if not self.best or sign * metrics[self.monitor] > sign * self.best[self.monitor]:
            self.best = {**metrics, "epoch": trainer.current_epoch, "step": trainer.global_step}
            self._write(trainer, "best.ckpt", weights_only=True)
            named = {f"best/{name.removeprefix('val/')}": value for name, value in self.best.items()}
            self.run.log_metrics(named, trainer.global_step)
        self.save_last(trainer)

    def save_last(self, trainer: pl.Trainer) -> None:
        self.run.flush()
        self._write(trainer, "last.ckpt", weights_only=False)

    def _write(self, trainer: pl.Trainer, name: str, weights_only: bool) -> None:
        """Write a checkpoint beside the old one, then put it in its place: a full disk or a kill leaves the old one."""
        path = self.run.folder / "checkpoints" / name
        unfinished = path.with_suffix(".unfinished")
        try:
            trainer.save_checkpoint(unfinished, weights_only=weights_only)
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                unfinished.replace(path)
        except OSError as error:
            error.filename = error.filename or str(path)  # a full disk does not say which file it has no room for
            raise
        finally:
            if trainer.is_global_zero:
                unfinished.unlink(missing_ok=True)


class Interruption(pl.Callback):
    """Ends a run after Ctrl-C or SIGTERM where it can go on from: after a step, or after the validation.

    A second signal ends it at once; it then goes on from the last epoch's end.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.signal_number: int | None = None
        self.previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        for number in self.SIGNALS:
            self.previous[number] = signal.signal(number, self._note)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise Interrupted(signal_number)
        self.signal_number = signal_number
        console.print_line("stopping after this step, or validation; once more to stop at once", style="bold yellow")

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.signal_number is not None and not (trainer.is_last_batch or trainer.should_stop):
            self.checkpoints.save_last(trainer)
            self._stop()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:  # after Checkpoints has saved
        if self.signal_number is not None and trainer.global_step < module.total_steps:
            self._stop()

    def _stop(self) -> None:
        assert self.signal_number is not None
        console.print_line(f"stopped; go on with: python -m cvexp resume={self.checkpoints.run.id}")
        raise Interrupted(self.signal_number)

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self._restore()

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
