"""Sources with a key for each split. Without validation data, some of the training images are held out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

import numpy as np
from omegaconf import MISSING

from cvexp.config import DatasetConfig, require
from cvexp.data.catalog import Content, Draft
from cvexp.data.draw import name_fraction
from cvexp.data.prepare import Recipe
from cvexp.errors import UserError


@dataclass(kw_only=True)
class SplitDataset(DatasetConfig):
    """Base class for the configurations of sources with a key for each split.

    Attributes:
        split_keys: The keys that name the training and the validation data. The value of one key may be None.
    """

    split_keys: ClassVar[tuple[str, str]]
    val_fraction: float = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.val_fraction < 1, "dataset.val_fraction", self.val_fraction, "between 0 and 1")
        train, val = (f"dataset.{key}" for key in self.split_keys)
        if all(getattr(self, key) is None for key in self.split_keys):
            raise UserError(f"{train}, {val}: got null for both, but at least one is needed; give {train}=PATH")


def null_training_key(config: DatasetConfig) -> str | None:
    """Return the key that is null because there is no training data, or None if there is training data."""
    if isinstance(config, SplitDataset) and getattr(config, config.split_keys[0]) is None:
        return f"dataset.{config.split_keys[0]}"
    return None


def split_recipes(config: SplitDataset, make_recipe: Callable[[str], Recipe]) -> tuple[Recipe | None, Recipe]:
    """Return the recipes of both splits; the training recipe is None if there is no training data.

    Args:
        config: Specifies which data exists.
        make_recipe: Makes the recipe of ``"train"`` or ``"val"``. It is called only for splits with data.
    """
    train_key, val_key = config.split_keys
    train = None if getattr(config, train_key) is None else make_recipe("train")
    if getattr(config, val_key) is not None:
        return train, make_recipe("val")
    assert train is not None
    make_draft = cache(train.make_draft)  # shared by both parts
    settings = [*train.settings, "val_fraction", config.val_fraction]
    parts = [
        train._replace(settings=settings, make_draft=partial(_part, make_draft, config.val_fraction, is_val))
        for is_val in (False, True)
    ]
    return parts[0], parts[1]


def _part(make_draft: Callable[[], Draft | Content], val_fraction: float, is_val: bool) -> Draft:
    """Return the images of one split. The validation split gets at least one image, the training split all problems."""
    whole = make_draft()
    assert isinstance(whole, Draft)
    fractions = np.array([name_fraction(os.fsencode(file)) for file in whole.files])
    held_out = fractions <= max(val_fraction, fractions.min(initial=1.0))
    part = whole.subset((held_out if is_val else ~held_out).tolist())
    part.problems = [] if is_val else whole.problems
    return part
