"""The base class of all training modules."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from cvexp import processes, progress
from cvexp.config import RunConfig
from cvexp.console import print_line
from cvexp.data import kept
from cvexp.data.augment.normalization import Normalization
from cvexp.data.index import Splits
from cvexp.data.loaders import FixedBatches, ShuffledBatches
from cvexp.data.order import Groups
from cvexp.models.schedules import cosine, warmup_cosine
from cvexp.tracking.sink import Sink
from cvexp.training.continuing import reopen_epoch
from cvexp.training.finite import Losses, NotFiniteError, not_finite
from cvexp.training.optimizer import make_optimizer
from cvexp.weights.read import metadata
from cvexp.weights.start import Start

REMEDY = "lower optimizer.lr, or raise the precision with trainer.precision=32-true"


class TrainingModule(pl.LightningModule):
    """The base of a training method: epochs, schedules, normalization, logging and the record of the run.

    A method defines its networks in :meth:`build`, its loss in :meth:`step`, and the name of its encoder. It runs
    without MLflow: metrics go to a sink, which drops them by default.

    Args:
        config: The run's configuration.
        splits: The data.
        sink: Where metrics and pictures go.
        start: The weights that the networks start from.

    Attributes:
        encoder_name: Name of the submodule whose weights other runs start from.
        validation_parts: What the loaders of the validation are for, in words.
        batches: Batches of an epoch, one for each optimizer step.
        total_steps: Number of optimizer steps of the run.
        images: The decoded images of each source.
        normalize: Maps images (b, 3, h, w) uint8 to normalized ones.
        training_losses: Notes whether they were finite.
        validated: The metrics of the last validation.
        picture_seconds: The time that the pictures of the last validation took.
    """

    encoder_name: ClassVar[str]
    validation_parts: ClassVar[tuple[str, ...]] = ("",)

    def __init__(self, config: RunConfig, splits: Splits, sink: Sink | None = None, start: Start | None = None) -> None:
        super().__init__()
        self.config = config
        self.splits = splits
        self.sink = sink or Sink()
        self.total_steps = 1
        self.validated: dict[str, float] = {}
        self.training_losses = Losses()
        self.images: list[kept.Images] = []
        self.normalize = Normalization(config.dataset.mean, config.dataset.std)
        torch.manual_seed(config.seed)
        self.build(start or Start())
        self.to(memory_format=torch.channels_last)  # of the weights, as of the images

    # What a method defines

    @abstractmethod
    def build(self, start: Start) -> None:
        """Create the networks with their initial weights."""

    @abstractmethod
    def step(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch of normalized images, and metrics to log as `train/NAME`."""

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Number of training samples in an epoch."""

    @abstractmethod
    def sources(self) -> list[kept.Source]:
        """Return the training images and the validation images."""

    def shards(self) -> Groups | None:
        """Return the shards that the training samples are in, or None if they are not in shards."""
        return None

    def trained_network(self) -> nn.Module:
        """Return what the optimizer trains."""
        return self

    def lr_factors(self) -> dict[nn.Module, float]:
        """Return learning rate factors for parts of the network."""
        return {}

    def after_optimizer_step(self, done: float) -> None:
        """Update what gradients do not update. `done` is the fraction of the run that was done before the step."""

    @classmethod
    def schedules(cls, config: RunConfig, done: float) -> dict[str, float]:
        """Return what changes as a run makes progress, by the key that sets it, at a fraction of the run."""
        optimizer = config.optimizer
        return {
            "lr": warmup_cosine(done, optimizer.warmup, optimizer.lr, optimizer.final_lr),
            "weight_decay": cosine(done, optimizer.weight_decay, optimizer.final_weight_decay),
        }

    @classmethod
    def warmups(cls, config: RunConfig) -> dict[str, float]:
        """Return what is different at the start of a run, in words, and for which fraction of the run."""
        return {"lr is in its warm-up": config.optimizer.warmup}

    def extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds besides the networks, for :meth:`load_extra_state`.

        All processes call this at the same time, and the first one's answer is saved.
        """
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`extra_state` returned."""

    # Progress

    @property
    def done(self) -> float:
        """The fraction of the run's optimizer steps done so far."""
        return self.global_step / self.total_steps

    @property
    def epochs_done(self) -> int:
        """The number of epochs done so far, including a last one that was cut short."""
        return math.ceil(self.global_step / len(self.batches))

    @property
    def logs_now(self) -> bool:
        """Whether training metrics are logged at this step."""
        return self.global_step % self.sink.log_every_n_steps == 0

    def setup(self, stage: str) -> None:
        self.batches = ShuffledBatches(
            self.num_samples,
            self.config.loader.batch_size,
            self.config.seed,
            batches_done=lambda: self.global_step,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            groups=self.shards(),
            steps_per_epoch=self.config.trainer.steps_per_epoch,
        )
        if not self.images:  # or else the validation before the training has opened them
            self.images = kept.keep(self.sources(), self.config.dataset.keep, self.trainer.strategy.root_device)
            self.sink.set_tag("data.keep", kept.describe(self.images))
        self.total_steps = self.config.trainer.total_steps(len(self.batches))

    def fixed_batches(self, positions: list[int]) -> FixedBatches:
        """Return batches for the validation, in which several processes take turns."""
        batch_size = self.config.loader.batch_size
        return FixedBatches(positions, batch_size, self.trainer.global_rank, self.trainer.world_size)

    # Training

    @property
    def draws_on_device(self) -> bool:
        """Whether views are made on the device of the model. On a CPU, the processes of the loader make them."""
        return self.trainer.strategy.root_device.type != "cpu"

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, metrics = self.step(batch)
        self.log_step(loss, metrics)
        return loss

    def log_step(self, loss: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """Record the loss and the metrics of a step, averaged over all processes, if this step is logged."""
        self.training_losses.note(loss, self.global_step)
        if self.logs_now:
            values = {"train/loss": loss.detach(), **{f"train/{name}": value for name, value in metrics.items()}}
            means = {name: self.trainer.strategy.reduce(value, reduce_op="mean") for name, value in values.items()}
            self.sink.log_metrics(means, self.global_step)

    def on_train_batch_end(self, *_: Any) -> None:
        if self.logs_now or (self.device.type == "cpu" and self.trainer.world_size == 1):
            self.require_finite_losses()

    def require_finite_losses(self) -> None:
        """Raise a UserError if a training loss was not finite in any process. All processes must call it together.

        It waits for the device, and so is called in steps that are logged, after each validation, and before each
        checkpoint. On a CPU with one process, it is called in each step.
        """
        step = self.training_losses.first_step(self.trainer.strategy)
        if step is not None:
            epoch = 1 + step // len(self.batches)
            raise NotFiniteError(f"the training loss is nan or infinite in step {step}, in epoch {epoch}; {REMEDY}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        scales_gradients = self.config.trainer.precision == "16-mixed"  # Lightning can't clip them in a fused update
        return make_optimizer(self.trained_network(), self.config.optimizer, self.lr_factors(), not scales_gradients)

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, *_: Any, **__: Any
    ) -> None:
        """Clip the norm of the gradient, also for fused optimizers in mixed precision, which Lightning refuses."""
        if gradient_clip_val is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        done = self.done
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step(done)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.require_finite_losses()
        names = not_finite(self)
        if processes.in_any(bool(names)):
            raise NotFiniteError(
                f"after {self.global_step} steps, weights are nan or infinite ({', '.join(names[:3])}); {REMEDY}"
            )
        classes = self.splits.train.classes
        checkpoint["cvexp"] = metadata(self.config, self.sink.id, self.encoder_name, classes)
        checkpoint.update(self.extra_state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["global_step"] < self.total_steps:
            reopen_epoch(checkpoint, len(self.batches))
        self.load_extra_state(checkpoint)

    # Validation

    @abstractmethod
    def log_scores(self) -> None:
        """Compute the metrics of the validation, and record them with :meth:`log_validation`."""

    @abstractmethod
    def log_pictures(self) -> None:
        """Record pictures of the validation, if they are due."""

    def on_validation_epoch_end(self) -> None:
        self.require_finite_losses()
        with progress.step("computing the scores"):
            self.log_scores()
        started = time.perf_counter()
        with progress.step("drawing the pictures"):
            self.log_pictures()
        self.picture_seconds = time.perf_counter() - started

    def log_validation(self, metrics: Mapping[str, float]) -> None:
        """Record validation metrics, and keep them for the callbacks. All processes get the first one's metrics."""
        self.check_loss(metrics["loss"])
        self.validated = processes.from_first({f"val/{name}": value for name, value in metrics.items()})
        self.sink.log_metrics(self.validated, self.global_step)

    def check_loss(self, loss: float) -> None:
        """Raise a UserError if a validation loss is not finite, because then nothing else can be measured."""
        if not math.isfinite(loss):
            raise NotFiniteError(f"the validation loss is {loss} after {self.global_step} steps; {REMEDY}")

    def warn(self, warning: str) -> None:
        """Print a warning, and keep it as the run's tag `warning`."""
        print_line(f"warning, step {self.global_step}: {warning}", style="bold yellow")
        self.sink.set_tag("warning", f"step {self.global_step}: {warning}")
