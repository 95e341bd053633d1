"""Sources whose splits are named by two keys: without validation data a part of the training images validates."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

import numpy as np
from omegaconf import MISSING

from cvexp.config import DatasetConfig, require
from cvexp.data.catalog import Draft
from cvexp.data.draw import name_fraction
from cvexp.data.prepare import Recipe
from cvexp.errors import UserError


@dataclass(kw_only=True)
class SplitDataset(DatasetConfig):
    """What these sources have in common.

    Attributes:
        split_keys: The keys that name the training and the validation data; one of them may be null.
    """

    split_keys: ClassVar[tuple[str, str]]
    val_fraction: float = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.val_fraction < 1, "dataset.val_fraction", self.val_fraction, "between 0 and 1")
        train, val = (f"dataset.{key}" for key in self.split_keys)
        if all(getattr(self, key) is None for key in self.split_keys):
            raise UserError(f"{train}, {val}: got null for both, but there must be some data; give {train}=PATH")


def null_training_key(config: DatasetConfig) -> str | None:
    """The key by which a configuration says that there are no training data; None where there are some."""
    if isinstance(config, SplitDataset) and getattr(config, config.split_keys[0]) is None:
        return f"dataset.{config.split_keys[0]}"
    return None


def split_recipes(config: SplitDataset, make: Callable[[str], Recipe]) -> tuple[Recipe | None, Recipe]:
    """The recipes of both splits; None where there are no training data.

    Args:
        config: Says which data there are.
        make: Makes the recipe of "train" or "val".
    """
    train_key, val_key = config.split_keys
    train = None if getattr(config, train_key) is None else make("train")
    if getattr(config, val_key) is not None:
        return train, make("val")
    assert train is not None
    draft = cache(train.read)  # both parts are of one reading
    settings = [*train.settings, "val_fraction", config.val_fraction]
    parts = [
        train._replace(settings=settings, read=partial(_part, draft, config.val_fraction, validates))
        for validates in (False, True)
    ]
    return parts[0], parts[1]


def _part(read: Callable[[], Draft], val_fraction: float, validates: bool) -> Draft:
    """The images of one split, at least one of them for validation; the problems are listed in training alone."""
    whole = read()
    fractions = np.array([name_fraction(os.fsencode(file)) for file in whole.files])
    is_val = fractions <= max(val_fraction, fractions.min(initial=1.0))
    part = whole.subset((is_val if validates else ~is_val).tolist())
    part.problems = [] if validates else whole.problems
    return part
