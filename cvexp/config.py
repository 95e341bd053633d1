"""The schema of the configuration: the keys, their types, and the values that make sense.

No field has a default here: the YAML files under `conf/` are the whole configuration. Each data source
and each task adds its own keys in the `Config` of its module, so a new one takes one module and one YAML file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

from omegaconf import MISSING

from cvexp.errors import UserError
from cvexp.keys import check_values, choice, number, numbers, require, share


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


@dataclass(kw_only=True)
class BackboneConfig:
    name: str = MISSING
    weights: str | None = MISSING
    args: dict[str, Any] = MISSING


@dataclass(kw_only=True)
class DatasetConfig:
    """Keys of every data source; each source adds its own."""

    name: str = MISSING  # the module in cvexp/data/sources
    root: str = MISSING
    cache: str = MISSING
    keep: str = choice("auto", "none", "ram", "device")
    classes: list[str] | None = MISSING
    unlisted: str = choice("background", "ignore")
    empty_images: bool = MISSING
    limit: int | None = number(1, unit="images")
    limit_seed: int = number(0)
    fraction: float = number(above=0, at_most=1)
    fraction_seed: int = number(0)
    test_fraction: float | None = number(above=0, below=1)
    strict: bool = MISSING
    image_size: int = number(2, unit="pixels")
    min_crop_size: int = number(1, unit="pixels")
    mean: list[float] = numbers(3, "three numbers (red, green, blue)")
    std: list[float] = numbers(3, "three positive numbers (red, green, blue)", above=0)

    @property
    def has_background(self) -> bool:
        """Whether pixels of label maps may belong to no class."""
        return True

    def __post_init__(self) -> None:
        if self.classes is not None:
            require(len(self.classes) > 0, "dataset.classes", self.classes, "null, or a list of at least one class")
            require(len(set(self.classes)) == len(self.classes), "dataset.classes", self.classes, "free of repetitions")


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
    name: str = MISSING
    args: dict[str, Any] = MISSING
    lr: float = number(0)
    final_lr: float = number(0)
    warmup: float = share()
    weight_decay: float = number(0)
    final_weight_decay: float = number(0)
    clip_norm: float | None = number(above=0)


@dataclass(kw_only=True)
class TrainerConfig:
    max_epochs: int = number(1)
    max_steps: int | None = number(1)
    steps_per_epoch: int | None = number(1)
    accelerator: str = MISSING
    devices: Any = MISSING
    num_nodes: int = MISSING
    strategy: str = MISSING
    precision: str = choice("auto", "32-true", "bf16-mixed", "16-mixed", "64-true")
    compile: bool = MISSING
    sync_batchnorm: bool = MISSING

    def __post_init__(self) -> None:
        is_one = self.devices in ("auto", 1, "1") or (isinstance(self.devices, list) and len(self.devices) == 1)
        require(
            is_one and self.num_nodes == 1,
            "trainer.devices",
            f"{self.devices} on {self.num_nodes} nodes",
            "one device for each process; start several processes with: torchrun --nproc-per-node=2 -m cvexp "
            "trainer=ddp",
        )

    def total_steps(self, steps_of_epoch: int) -> int:
        """Return the number of steps of a run, given that of an epoch."""
        steps = self.max_epochs * steps_of_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


@dataclass(kw_only=True)
class LoaderConfig:
    batch_size: int = number(1)
    num_workers: int = number(0)


@dataclass(kw_only=True)
class TrackingConfig:
    folder: str = MISSING
    experiment: str = MISSING
    log_every_n_steps: int = number(1)
    system_metrics: bool = MISSING
    upload_checkpoints: str = choice("end", "epoch")
    progress_seconds: float | None = number(above=0, unit="seconds")


@dataclass(kw_only=True)
class RunConfig:
    backbone: BackboneConfig = MISSING
    task: TaskConfig = MISSING
    dataset: DatasetConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    trainer: TrainerConfig = MISSING
    tracking: TrackingConfig = MISSING
    loader: LoaderConfig = MISSING
    seed: int = number(0, at_most=2**32 - 1)
    name: str | None = MISSING
    resume: str | None = MISSING
    benchmark: bool = MISSING
    run: str | None = MISSING
    runs: list[str] | None = MISSING

    def __post_init__(self) -> None:
        check_values(self)
        for group in fields(self):
            if is_dataclass(own := getattr(self, group.name)):
                check_values(own, f"{group.name}.")
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
