"""The data that features are probed on."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from cvexp import data
from cvexp.config import DatasetConfig, RunConfig
from cvexp.data.index import Splits
from cvexp.errors import UserError
from cvexp.tracking.finished import FinishedRun

CHOOSES_DATA = {"dataset", "dataset.name", "experiment"}  # keys that choose another data set than that of the runs

# Keys that do not decide which objects are probed, or only where they are stored.
IRRELEVANT = {
    *("mean", "std", "image_size", "cache", "keep", "download", "password", "local", "local_gb", "strict"),
    "fraction_seed",  # which follows the seed of each run
}


def choose_dataset(config: RunConfig, given: Collection[str], runs: Sequence[FinishedRun]) -> DatasetConfig:
    """Return the data set to probe on: that of the runs with the given keys, unless another one is chosen.

    Args:
        config: The configuration of the probe.
        given: The keys and groups that the command line sets.
        runs: The probed runs. If there are none, the configured data set is used.

    Raises:
        UserError: if a given key does not exist for the data set of the runs, or the runs have different data.
    """
    if not runs or not CHOOSES_DATA.isdisjoint(given):
        return config.dataset
    keys = {key.split(".")[1] for key in given if key.startswith("dataset.")}
    if not {"seed", "dataset.fraction"}.isdisjoint(given):  # otherwise, the share is that of the first run
        keys.add("fraction_seed")
    chosen = [_with_keys(run, config.dataset, keys) for run in runs]
    for run, other in zip(runs[1:], chosen[1:], strict=True):
        if differing := _differing(chosen[0], other):
            raise UserError(
                f"runs: {runs[0].id} and {run.id} were pretrained on different data ({', '.join(differing)}); choose "
                "the data to probe all of them on with dataset=..."
            )
    return chosen[0]


def _with_keys(run: FinishedRun, local: DatasetConfig, keys: Collection[str]) -> DatasetConfig:
    """Return the data set of a run with some values of the local configuration."""
    dataset = run.config.dataset
    shared = {field.name for field in fields(DatasetConfig)}
    for key in sorted(keys):
        if key not in shared and dataset.name != local.name:
            raise UserError(
                f"dataset.{key}: this is a key of dataset={local.name}, but the run {run.id} was pretrained on "
                f"dataset={dataset.name}; name the data to probe on with dataset={dataset.name} dataset.{key}=..."
            )
    return replace(dataset, **{key: getattr(local, key) for key in keys})


def _differing(first: DatasetConfig, second: DatasetConfig) -> list[str]:
    """Return the keys that make the data of two runs different."""
    one, other = _comparable(first), _comparable(second)
    return [f"dataset.{key}" for key in one.keys() | other.keys() if one.get(key) != other.get(key)]


def _comparable(dataset: DatasetConfig) -> dict[str, Any]:
    values = {key: value for key, value in asdict(dataset).items() if key not in IRRELEVANT}
    if "://" not in dataset.root:
        values["root"] = os.path.realpath(dataset.root)
    return values


def load(dataset: DatasetConfig) -> Splits:
    """Return the splits of a data set, with the share `dataset.fraction` of the training images.

    Raises:
        UserError: if the data can't be used, have no labels, or all training objects have the same class.
    """
    splits = data.load(dataset, "pretraining", uses_labels=True)
    if not splits.train.classes:
        raise UserError(
            f"dataset: {splits.train.place} has no labels, which a probe needs; choose labeled data with dataset=..."
        )
    present = [name for name, number in splits.train.counts().items() if number]
    if len(present) < 2:
        raise UserError(
            f"dataset: all {len(splits.train)} training objects in {splits.train.place} have the class {present[0]!r}, "
            "but a probe needs at least two classes; choose other dataset.classes=[...] or a larger dataset.limit="
        )
    return splits
