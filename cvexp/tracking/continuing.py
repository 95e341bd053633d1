"""Configurations of runs that continue finished ones. They are those of the finished runs, with a few changes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict

from omegaconf import DictConfig, OmegaConf

from cvexp.composition import check
from cvexp.config import RunConfig, flatten
from cvexp.data.loaders import ShuffledBatches
from cvexp.errors import UserError
from cvexp.redaction import VARIABLE
from cvexp.tracking.description import resume_command
from cvexp.tracking.finished import FinishedRun
from cvexp.tracking.resume import FOLDERS, named_keys, recorded_config
from cvexp.tracking.store import Store, connect

MAY_CHANGE = ("name", "trainer.", "optimizer.", "loader.", "tracking.", *(f"dataset.{key}" for key in FOLDERS))
MUST_STAY = ("optimizer.name", "optimizer.args", "trainer.steps_per_epoch")  # of these
BY_NAME = ("task", "dataset")  # groups that may be repeated, whatever their options set


def continued_config(config: RunConfig, composed: DictConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the configuration of a run that continues the finished run `config.run`.

    Args:
        config: The newly composed configuration, which says where the store is.
        composed: The same configuration as YAML.
        overrides: The command line.

    Raises:
        UserError: if that run can't be continued, an override changes what must stay, or no step is left to make.
    """
    store = connect(config.tracking)
    source = _source(store, config)
    before = source_config(store, config)
    named = named_keys(overrides)
    continued = recorded_config(store, source.id, config, named)
    for key in named:
        if _may_change(key, before):
            OmegaConf.update(continued, key, OmegaConf.select(composed, key))
    _refuse_changes(source.id, before, config, named)
    continued.run, continued.resume = source.id, config.resume
    continued.tracking.experiment = config.tracking.experiment  # where a sweep looks for its runs
    if "password" in continued.dataset:  # the only key that is not recorded
        continued.dataset.password = OmegaConf.select(composed, "dataset.password") or os.environ.get(VARIABLE)
    after = check(continued)
    _require_further_steps(source, before, after)
    return after


def source_config(store: Store, config: RunConfig) -> RunConfig:
    """Return the recorded configuration of the finished run `config.run`, whose folders may no longer exist."""
    return check(recorded_config(store, str(config.run), config, [f"dataset.{key}" for key in FOLDERS]))


def _source(store: Store, config: RunConfig) -> FinishedRun:
    run = store.run(str(config.run), "run")
    source = FinishedRun(store, run, config)
    if source.role not in ("pretraining", "segmentation"):
        raise UserError(
            f"run: {source.id} is a run of task={source.task}, so it has no training to continue; name a run that "
            "trained, or the task that should work on this one, such as task=report"
        )
    if run.info.status != "FINISHED":
        raise UserError(
            f"run: {source.id} has not finished (its status is {run.info.status}), so it can't be continued yet; "
            f"finish it with: {resume_command(source.id, config.tracking.folder)}"
        )
    return source


def _may_change(key: str, before: RunConfig) -> bool:
    if key == "loader.batch_size":  # or else an epoch would have another number of steps
        return before.trainer.steps_per_epoch is not None
    return key.startswith(MAY_CHANGE) and not key.startswith(MUST_STAY)


def _refuse_changes(run_id: str, before: RunConfig, config: RunConfig, named: Sequence[str]) -> None:
    """Raise a UserError if the command line changes what must stay as it was."""
    old, new = flatten(asdict(before)), flatten(asdict(config))
    left_alone = {"run", "resume", "dataset.password", "trainer.strategy"}  # the processes decide on the strategy
    left_alone |= {key for key in named if _may_change(key, before)}
    changed = [f"{key}=..." for key in named if key.partition(".")[0] not in asdict(config)]  # such as an experiment
    for key in named:
        inner = [f"{key}.name"] if key in BY_NAME else [k for k in old | new if k == key or k.startswith(f"{key}.")]
        differing = [k for k in inner if k not in left_alone and old.get(k) != new.get(k)]
        if differing and f"{key}." in MAY_CHANGE:
            changed.append(f"{key}=..., which sets all keys of {key}; set only those that change")
        else:
            changed += [f"{k} was {old.get(k)}, now {new.get(k)}" for k in differing]
    if changed:
        raise UserError(
            f"run: a continued run keeps its settings, except for those of trainer, optimizer, loader and tracking; "
            f"this can't change: {'; '.join(dict.fromkeys(changed))}; leave it out, or start a new run from the "
            f"weights of this one with backbone.weights=runs:/{run_id}/checkpoints/last.ckpt"
        )


def _require_further_steps(source: FinishedRun, before: RunConfig, after: RunConfig) -> None:
    """Raise a UserError unless the new configuration has more steps than the old one."""
    if "train" not in source.data:
        raise UserError(f"run: {source.id} has no record of its training data, so it can't be continued; name another")
    train = source.data["train"]
    num_samples = train.num_objects if source.role == "pretraining" else train.num_images
    size, per_epoch = before.loader.batch_size, before.trainer.steps_per_epoch
    num_batches = len(ShuffledBatches(num_samples, size, before.seed, lambda: 0, steps_per_epoch=per_epoch))
    made, steps = (config.trainer.total_steps(num_batches) for config in (before, after))
    if steps <= made:
        trainer = after.trainer
        limit = "" if trainer.max_steps is None else f" with trainer.max_steps={trainer.max_steps}"
        raise UserError(
            f"run: {source.id} has made {made} steps, {num_batches} an epoch, and trainer.max_epochs="
            f"{trainer.max_epochs}{limit} gives {steps}, including those; give more"
        )
