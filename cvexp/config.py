"""The schema of the configuration: the keys, their types, and the values that make sense.

No field has a default here: the YAML files under `conf/` are the whole configuration. Each data source
and each task adds its own keys in the `Config` of its module, so a new one takes one module and one YAML file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from omegaconf import MISSING

from cvexp.errors import UserError, nearest


def require(condition: bool, key: str, got: object, needed: str) -> None:
    """Raise a UserError that names the key unless the condition holds."""
    if not condition:
        raise UserError(f"{key}: got {got!r}, but it must be {needed}")


def require_one_of(key: str, got: str, known: Iterable[str]) -> None:
    """Raise a UserError with the nearest known value unless `got` is one of `known`."""
    if got not in (known := list(known)):
        raise UserError(f"{key}: there is no {got!r}; {nearest(got, known)}")


def require_fraction(key: str, got: float) -> None:
    """Raise a UserError unless a value is from 0 to 1."""
    require(0 <= got <= 1, key, got, "from 0 to 1")


def require_scale(key: str, got: list[float]) -> None:
    """Raise a UserError unless a value is a range of shares of an area."""
    fits = len(got) == 2 and 0 < got[0] <= got[1] <= 1
    require(fits, key, got, "two shares of the area, 0 < smallest <= largest <= 1")


def require_equal_parts(batch_size: int, num_processes: int, num_samples: int | None = None) -> None:
    """Raise a UserError with the nearest sizes that work, unless the processes can share a batch equally.

    Args:
        batch_size: `loader.batch_size`.
        num_processes: Number of processes that train together.
        num_samples: Number of training samples, to which a larger batch is reduced; None if it is unknown.
    """
    size = batch_size if num_samples is None else min(batch_size, num_samples)
    rest = size % num_processes
    if not rest:
        return
    few = f", with {num_samples} training samples" if size < batch_size else ""
    sizes = [size - rest] if size > rest else []
    sizes += [] if few else [size - rest + num_processes]
    choices = [" or ".join(map(str, sizes)), "another number of processes"]
    raise UserError(
        f"loader.batch_size: got {batch_size}{few}, which {num_processes} processes can't share equally; choose "
        + ", or ".join(choice for choice in choices if choice)
    )


def require_jitter(key: str, got: list[float]) -> None:
    """Raise a UserError unless a value is the strength of a color jitter."""
    fits = len(got) == 4 and min(got) >= 0 and got[3] <= 0.5
    require(fits, key, got, "brightness, contrast, saturation >= 0, and hue from 0 to 0.5")


@dataclass(kw_only=True)
class BackboneConfig:
    name: str = MISSING  # any timm model with feature maps
    weights: str | None = MISSING  # see cvexp/weights/locate.py
    args: dict[str, Any] = MISSING  # passed to timm.create_model


@dataclass(kw_only=True)
class DatasetConfig:
    """Keys of every data source; each source adds its own."""

    name: str = MISSING  # the module in cvexp/data/sources
    root: str = MISSING
    cache: str = MISSING
    keep: str = MISSING
    classes: list[str] | None = MISSING
    unlisted: str = MISSING
    empty_images: bool = MISSING
    limit: int | None = MISSING
    limit_seed: int = MISSING
    fraction: float = MISSING
    fraction_seed: int = MISSING
    test_fraction: float | None = MISSING
    strict: bool = MISSING
    image_size: int = MISSING
    min_crop_size: int = MISSING
    mean: list[float] = MISSING
    std: list[float] = MISSING

    @property
    def has_background(self) -> bool:
        """Whether pixels of label maps may belong to no class."""
        return True

    def __post_init__(self) -> None:
        if self.classes is not None:
            require(len(self.classes) > 0, "dataset.classes", self.classes, "null, or a list of at least one class")
            require(len(set(self.classes)) == len(self.classes), "dataset.classes", self.classes, "free of repetitions")
        require_one_of("dataset.keep", self.keep, ("auto", "none", "ram", "device"))
        require_one_of("dataset.unlisted", self.unlisted, ("background", "ignore"))
        require(self.limit is None or self.limit >= 1, "dataset.limit", self.limit, "null, or at least 1 (images)")
        require(self.limit_seed >= 0, "dataset.limit_seed", self.limit_seed, "at least 0")
        require(0 < self.fraction <= 1, "dataset.fraction", self.fraction, "greater than 0, and at most 1")
        require(self.fraction_seed >= 0, "dataset.fraction_seed", self.fraction_seed, "at least 0")
        fits = self.test_fraction is None or 0 < self.test_fraction < 1
        require(fits, "dataset.test_fraction", self.test_fraction, "null, or between 0 and 1")
        require(self.image_size >= 2, "dataset.image_size", self.image_size, "at least 2 (pixels)")
        require(self.min_crop_size >= 1, "dataset.min_crop_size", self.min_crop_size, "at least 1 (pixels)")
        require(len(self.mean) == 3, "dataset.mean", self.mean, "three numbers (red, green, blue)")
        require(len(self.std) == 3 and min(self.std) > 0, "dataset.std", self.std, "three positive numbers")


@dataclass(kw_only=True)
class TaskConfig:
    """Keys of every task; each task adds its own.

    Attributes:
        role: ``"pretraining"``, ``"segmentation"`` or ``"job"``. It is recorded as a tag, by which jobs find runs.
        works_on: The key that names the finished runs that a job works on: `run`, `runs`, or None if it needs no runs.
        is_recorded: Whether a run is recorded. If not, the task's `main` gets the store instead of a run.
    """

    role: ClassVar[str] = "job"
    works_on: ClassVar[str | None] = None
    is_recorded: ClassVar[bool] = True
    name: str = MISSING  # the module in cvexp/tasks


@dataclass(kw_only=True)
class OptimizerConfig:
    name: str = MISSING  # a class of torch.optim
    args: dict[str, Any] = MISSING  # passed to it
    lr: float = MISSING
    final_lr: float = MISSING
    warmup: float = MISSING  # fraction of all steps
    weight_decay: float = MISSING
    final_weight_decay: float = MISSING
    clip_norm: float | None = MISSING

    def __post_init__(self) -> None:
        for key in ("lr", "final_lr", "weight_decay", "final_weight_decay"):
            value = getattr(self, key)
            require(math.isfinite(value) and value >= 0, f"optimizer.{key}", value, "a finite number, at least 0")
        require(0 <= self.warmup <= 1, "optimizer.warmup", self.warmup, "a fraction of all steps, from 0 to 1")
        require(self.clip_norm is None or self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm, "positive or null")


@dataclass(kw_only=True)
class TrainerConfig:
    max_epochs: int = MISSING
    max_steps: int | None = MISSING
    steps_per_epoch: int | None = MISSING
    accelerator: str = MISSING
    devices: Any = MISSING  # 1, or a list with the number of a GPU; with several processes, torchrun decides
    num_nodes: int = MISSING
    strategy: str = MISSING
    precision: str = MISSING
    compile: bool = MISSING
    sync_batchnorm: bool = MISSING

    def __post_init__(self) -> None:
        require(self.max_epochs >= 1, "trainer.max_epochs", self.max_epochs, "at least 1")
        require(self.max_steps is None or self.max_steps >= 1, "trainer.max_steps", self.max_steps, "positive or null")
        steps = self.steps_per_epoch
        require(steps is None or steps >= 1, "trainer.steps_per_epoch", steps, "positive or null")
        is_one = self.devices in ("auto", 1, "1") or (isinstance(self.devices, list) and len(self.devices) == 1)
        require(
            is_one and self.num_nodes == 1,
            "trainer.devices",
            f"{self.devices} on {self.num_nodes} nodes",
            "one device for each process; start several processes with: torchrun --nproc-per-node=2 -m cvexp "
            "trainer=ddp",
        )
        known = ("auto", "32-true", "bf16-mixed", "16-mixed", "64-true")
        require_one_of("trainer.precision", self.precision, known)

    def total_steps(self, steps_of_epoch: int) -> int:
        """Return the number of steps of a run, given that of an epoch."""
        steps = self.max_epochs * steps_of_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


@dataclass(kw_only=True)
class LoaderConfig:
    batch_size: int = MISSING  # of all processes together
    num_workers: int = MISSING

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "loader.batch_size", self.batch_size, "at least 1")
        require(self.num_workers >= 0, "loader.num_workers", self.num_workers, "at least 0")


@dataclass(kw_only=True)
class TrackingConfig:
    folder: str = MISSING  # run folders, generated data and, without a server, MLflow's store
    experiment: str = MISSING  # MLflow's name for a group of runs
    log_every_n_steps: int = MISSING
    system_metrics: bool = MISSING
    upload_checkpoints: str = MISSING
    progress_seconds: float | None = MISSING

    def __post_init__(self) -> None:
        require_one_of("tracking.upload_checkpoints", self.upload_checkpoints, ("end", "epoch"))
        require(self.log_every_n_steps >= 1, "tracking.log_every_n_steps", self.log_every_n_steps, "at least 1")
        seconds = self.progress_seconds
        require(seconds is None or seconds > 0, "tracking.progress_seconds", seconds, "positive or null")


@dataclass(kw_only=True)
class RunConfig:
    backbone: BackboneConfig = MISSING
    task: TaskConfig = MISSING
    dataset: DatasetConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    trainer: TrainerConfig = MISSING
    tracking: TrackingConfig = MISSING
    loader: LoaderConfig = MISSING
    seed: int = MISSING
    name: str | None = MISSING
    resume: str | None = MISSING
    benchmark: bool = MISSING
    run: str | None = MISSING
    runs: list[str] | None = MISSING

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "a whole number from 0 to 4294967295")
        for key in ("run", "runs"):
            is_used = self.task.works_on == key or (key == "run" and self.continues)
            if getattr(self, key) is not None and not is_used:
                raise UserError(
                    f"{key}: task={self.job} does not use it; it is for jobs on finished runs, and run= also for "
                    "training one further"
                )

    @property
    def job(self) -> str:
        """The name of the task that is run: the configured one, or the benchmark of it."""
        return "benchmark" if self.benchmark else self.task.name

    @property
    def role(self) -> str:
        """The role of the task that is run."""
        return "job" if self.benchmark else self.task.role

    @property
    def continues(self) -> bool:
        """Whether the run trains further what the finished run `run` has trained."""
        return self.run is not None and self.role != "job"


def without_passwords(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace each password in nested values by None."""
    return {
        key: without_passwords(value) if isinstance(value, Mapping) else None if key == "password" else value
        for key, value in values.items()
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested values into MLflow's parameters: ``{"loader.batch_size": "64"}``, with lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
