"""Sources with a key for each split, and splits without data of their own, which are drawn from another one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

import numpy as np

from cvexp.config import DatasetConfig
from cvexp.data.catalog import Content, Draft
from cvexp.data.draw import name_fraction
from cvexp.data.prepare import Recipe, Recipes
from cvexp.errors import UserError
from cvexp.keys import number, require


@dataclass(kw_only=True)
class SplitDataset(DatasetConfig):
    """Base class for the configurations of sources with a key for each split.

    Attributes:
        split_keys: The keys that name the training, validation and test data. One of the first two values may be None,
            and so may the third.
    """

    split_keys: ClassVar[tuple[str, str, str]]
    val_fraction: float = number(above=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        train, val, test = self.split_keys
        if getattr(self, train) is None and getattr(self, val) is None:
            raise UserError(
                f"dataset.{train}, dataset.{val}: got null for both, but at least one is needed; give "
                f"dataset.{train}=PATH"
            )
        if getattr(self, test) is not None:
            needed = f"null, because dataset.{test} already names the test data"
            require(self.test_fraction is None, "dataset.test_fraction", self.test_fraction, needed)


def null_training_key(config: DatasetConfig) -> str | None:
    """Return the key that is null because there is no training data, or None if there is training data."""
    if isinstance(config, SplitDataset) and getattr(config, config.split_keys[0]) is None:
        return f"dataset.{config.split_keys[0]}"
    return None


def split_recipes(config: SplitDataset, make_recipe: Callable[[str], Recipe]) -> Recipes:
    """Return the recipes of the splits that have data of their own.

    Args:
        config: Specifies which data exists.
        make_recipe: Makes the recipe of ``"train"``, ``"val"`` or ``"test"``. It is called only for splits with data.
    """
    keys = zip(("train", "val", "test"), config.split_keys, strict=True)
    return Recipes(*(None if getattr(config, key) is None else make_recipe(split) for split, key in keys))


def draw_splits(config: DatasetConfig, recipes: Recipes) -> Recipes:
    """Return the recipes with those of the splits that are drawn from others.

    The test split is drawn from the validation images or, if there are none, from the training images. The validation
    split is drawn from the remaining training images. The draws are independent: an image does not move between
    training and validation when there is a test split.

    Args:
        config: Specifies the shares, `test_fraction` and `val_fraction`.
        recipes: The recipes of the splits with data of their own. At most one of training and validation is None.
    """
    train, val, test = recipes
    if config.test_fraction is not None:
        if val is not None:
            val, test = _divide(val, "test_fraction", config.test_fraction, "test ")
        elif train is not None:
            train, test = _divide(train, "test_fraction", config.test_fraction, "test ")
    if val is None:
        assert train is not None
        assert isinstance(config, SplitDataset)
        train, val = _divide(train, "val_fraction", config.val_fraction)
    return Recipes(train, val, test)


def _divide(recipe: Recipe, key: str, fraction: float, prefix: str = "") -> tuple[Recipe, Recipe]:
    """Return the recipe of the remaining images, and that of the share that is held out.

    Args:
        recipe: The recipe of all images.
        key: The key that sets the share.
        fraction: The share.
        prefix: What is put before each name, to make this draw independent of others.
    """
    make_draft = cache(recipe.make_draft)  # shared by both parts
    settings = [*recipe.settings, key, fraction]
    rest, held_out = (
        recipe._replace(
            settings=settings,
            make_draft=partial(_part, make_draft, fraction, prefix, is_held_out),
            pool=recipe.pool or make_draft,
        )
        for is_held_out in (False, True)
    )
    return rest, held_out


def _part(make_draft: Callable[[], Draft | Content], fraction: float, prefix: str, is_held_out: bool) -> Draft:
    """Return the images of one part. The held-out part gets at least one image, the other one all problems."""
    whole = make_draft()
    assert isinstance(whole, Draft)
    fractions = np.array([name_fraction(os.fsencode(prefix + file)) for file in whole.files])
    held_out = fractions <= max(fraction, fractions.min(initial=1.0))
    part = whole.subset((held_out if is_held_out else ~held_out).tolist())
    part.problems = [] if is_held_out else whole.problems
    return part
