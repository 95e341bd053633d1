"""The schema: which keys there are, of which type, and which values make sense.

No field has a value here: the YAML under `conf/` is the whole configuration. Data sources and tasks add their own
keys in a `Config` of their module, so that a new one is one module and one YAML.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cvexp.errors import UserError


def nearest(word: str, known: Iterable[str]) -> str:
    """The remedy for a misspelt word: the nearest known ones, else all of them."""
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    if not close:  # "lr" for "optimizer.lr"
        close = [name for name in known if name.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]][:2]
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(known)


def require(condition: bool, key: str, got: object, needed: str) -> None:
    """Raise a UserError that names the key unless `condition` holds."""
    if not condition:
        raise UserError(f"{key}: got {got!r}, but it must be {needed}")


def require_one_of(key: str, got: str, known: Iterable[str]) -> None:
    """Raise a UserError with the nearest known value unless `got` is one of `known`."""
    if got not in (known := list(known)):
        raise UserError(f"{key}: there is no {got!r}; {nearest(got, known)}")


@dataclass(kw_only=True)
class Backbone:
    name: str = MISSING  # any timm model with feature maps
    weights: str | None = MISSING  # see cvexp/checkpoints.py
    args: dict[str, Any] = MISSING  # passed to timm.create_model


@dataclass(kw_only=True)
class Dataset:
    """What every data source has; each adds its own keys."""

    name: str = MISSING  # the module in cvexp/data
    root: str = MISSING
    cache: str = MISSING
    classes: list[str] | None = MISSING
    unlisted: str = MISSING
    empty_images: bool = MISSING
    limit: int | None = MISSING
    limit_seed: int = MISSING
    strict: bool = MISSING
    image_size: int = MISSING
    min_crop_size: int = MISSING
    mean: list[float] = MISSING
    std: list[float] = MISSING

    def __post_init__(self) -> None:
        if self.classes is not None:
            require(len(self.classes) > 0, "dataset.classes", self.classes, "null, or a list of at least one class")
            require(len(set(self.classes)) == len(self.classes), "dataset.classes", self.classes, "free of repetitions")
        require_one_of("dataset.unlisted", self.unlisted, ("background", "ignore"))
        require(self.limit is None or self.limit >= 1, "dataset.limit", self.limit, "null, or at least 1 (images)")
        require(self.limit_seed >= 0, "dataset.limit_seed", self.limit_seed, "at least 0")
        require(self.image_size >= 2, "dataset.image_size", self.image_size, "at least 2 (pixels)")
        require(self.min_crop_size >= 1, "dataset.min_crop_size", self.min_crop_size, "at least 1 (pixels)")
        require(len(self.mean) == 3, "dataset.mean", self.mean, "three numbers (red, green, blue)")
        require(len(self.std) == 3 and min(self.std) > 0, "dataset.std", self.std, "three positive numbers")


@dataclass(kw_only=True)
class Task:
    """What every task has; each adds its own keys.

    Attributes:
        works_on: Which key, `run` or `runs`, names the finished runs that a job works on; None of a task of its own.
    """

    works_on: ClassVar[str | None] = None
    name: str = MISSING  # the module in cvexp/tasks


@dataclass(kw_only=True)
class Optimizer:
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
class Trainer:
    max_epochs: int = MISSING
    max_steps: int | None = MISSING
    accelerator: str = MISSING
    devices: Any = MISSING  # 1, or a list with the number of a GPU; "auto" is 1
    num_nodes: int = MISSING
    strategy: str = MISSING
    precision: str = MISSING

    def __post_init__(self) -> None:
        require(self.max_epochs >= 1, "trainer.max_epochs", self.max_epochs, "at least 1")
        require(self.max_steps is None or self.max_steps >= 1, "trainer.max_steps", self.max_steps, "positive or null")
        is_one = self.devices in ("auto", 1, "1") or (isinstance(self.devices, list) and len(self.devices) == 1)
        if not is_one or self.num_nodes != 1 or self.strategy != "auto" or os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError(
                f"trainer: got strategy={self.strategy}, devices={self.devices}, num_nodes={self.num_nodes} and "
                f"{os.environ.get('WORLD_SIZE', '1')} processes, but training in several processes is not ready yet; "
                "start one process with trainer=default"
            )
        known = ("auto", "32-true", "bf16-mixed", "16-mixed", "64-true")
        require_one_of("trainer.precision", self.precision, known)


@dataclass(kw_only=True)
class Loader:
    batch_size: int = MISSING  # a process's
    num_workers: int = MISSING

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "loader.batch_size", self.batch_size, "at least 1")
        require(self.num_workers >= 0, "loader.num_workers", self.num_workers, "at least 0")


@dataclass(kw_only=True)
class Tracking:
    folder: str = MISSING  # run folders, generated data and, without a server, MLflow's store
    experiment: str = MISSING  # MLflow's name for a group of runs
    log_every_n_steps: int = MISSING
    system_metrics: bool = MISSING

    def __post_init__(self) -> None:
        require(self.log_every_n_steps >= 1, "tracking.log_every_n_steps", self.log_every_n_steps, "at least 1")


@dataclass(kw_only=True)
class Config:
    backbone: Backbone = MISSING
    task: Task = MISSING
    dataset: Dataset = MISSING
    optimizer: Optimizer = MISSING
    trainer: Trainer = MISSING
    tracking: Tracking = MISSING
    loader: Loader = MISSING
    seed: int = MISSING
    name: str | None = MISSING
    resume: str | None = MISSING
    run: str | None = MISSING
    runs: list[str] | None = MISSING

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "a whole number from 0 to 4294967295")


def check(composed: DictConfig) -> Config:
    """The composed YAML as typed objects.

    Raises:
        UserError: naming the key, for one that is unknown, missing, of a wrong type or out of range.
    """
    schema = OmegaConf.structured(Config)
    schema.task = _schema_of("cvexp.tasks", "task", composed)
    schema.dataset = _schema_of("cvexp.data", "dataset", composed)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(schema, composed))
    except MissingMandatoryValue as error:
        key = error.full_key or ""
        raise UserError(f"{key}: a value is needed; give one with {key}=...") from error
    except OmegaConfBaseException as error:
        got = f"got {OmegaConf.select(composed, error.full_key)!r}: " if error.full_key else ""
        raise UserError(explain(error, keys_of(schema), got)) from error
    assert isinstance(config, Config)
    for key in ("run", "runs"):
        if getattr(config, key) is not None and config.task.works_on != key:
            raise UserError(f"{key}: task={config.task.name} takes none; it is for jobs on finished runs")
    return config


def _schema_of(package: str, group: str, composed: DictConfig) -> Any:
    """The `Config` of the module that the chosen option of a group names."""
    name = composed[group].get("name")
    known = [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    require_one_of(f"{group}.name", str(name), known)
    module = importlib.import_module(f"{package}.{name}")
    if not hasattr(module, "Config"):
        raise UserError(f"{group}.name: {name!r} is no {group}; choose one with {group}=")
    return OmegaConf.structured(module.Config)


def without_passwords(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with None in place of each password."""
    return {
        key: without_passwords(value) if isinstance(value, Mapping) else None if key == "password" else value
        for key, value in values.items()
    }


def keys_of(node: DictConfig, prefix: str = "") -> list[str]:
    """All dotted keys of a config, groups included."""
    keys: list[str] = []
    for key in map(str, node):
        keys.append(f"{prefix}{key}")
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            keys += keys_of(child, f"{prefix}{key}.")
    return keys


def explain(error: OmegaConfBaseException, keys: Iterable[str], got: str = "") -> str:
    """What OmegaConf found wrong, in one line that names the key, what was got, and the remedy."""
    key = error.full_key or str(error.key)
    first = (error.msg or str(error)).splitlines()[0]
    if isinstance(error, AttributeError | KeyError):  # ConfigAttributeError, ConfigKeyError
        return f"{key}: there is no such key or group; {nearest(key, keys)}"
    return f"{key}: {got}{first}"
