"""Data sources, each a module with a `Config` and a `load(config) -> Splits`, and the datasets over their index."""

from __future__ import annotations

import importlib

from cvexp.config import Dataset
from cvexp.data.index import Splits
from cvexp.errors import UserError


def load(config: Dataset) -> Splits:
    """The index of the training and the validation images of the configured source.

    Raises:
        UserError: where the data is missing or broken, or a split holds no object of the chosen classes.
    """
    splits: Splits = importlib.import_module(f"cvexp.data.{config.name}").load(config)
    for index in (splits.train, splits.val):
        if len(index) == 0:
            raise UserError(
                f"dataset: the {index.split} split of {index.root} has no object of the classes "
                f"{', '.join(config.classes)} whose smaller side is at least {config.min_crop_size} px; "
                "choose other dataset.classes=[...] or a smaller dataset.min_crop_size="
            )
    return splits
