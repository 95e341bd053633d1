"""Data sources, each a module with a `Config` and `recipes`, and the datasets over the index that all of them give."""

from __future__ import annotations

import importlib
import logging
from typing import get_args

from cvexp.config import Dataset
from cvexp.data.index import Splits
from cvexp.data.prepare import Use, make_splits
from cvexp.errors import UserError

log = logging.getLogger("cvexp")


def uses(config: Dataset) -> tuple[Use, ...]:
    """What the data of a source can be used for."""
    source = importlib.import_module(f"cvexp.data.{config.name}")
    return source.uses(config) if hasattr(source, "uses") else get_args(Use)


def open_splits(config: Dataset, use: Use) -> Splits:
    """The index of the training and the validation images, made ready first where they are not.

    Args:
        config: The source and what is chosen of it.
        use: Objects to crop (`pretraining`) or images with masks (`segmentation`).

    Raises:
        UserError: where data is missing or broken.
    """
    return make_splits(config, *importlib.import_module(f"cvexp.data.{config.name}").recipes(config, use))


def load(config: Dataset, use: Use) -> Splits:
    """Like `open_splits`, for use.

    Raises:
        UserError: also where a split has nothing of what was chosen.
    """
    splits = open_splits(config, use)
    if problems := [problem for index in splits for problem in index.problems]:
        log.warning("data: %d broken things are left out, the first: %s", len(problems), problems[0])
    for index in splits:
        of_classes = f" of the classes {', '.join(index.classes)}" if index.classes else ""
        if use == "segmentation" and not index.catalog.has_masks:
            raise UserError(
                f"dataset: the {index.split} split of {index.root} has no masks, so only task=dino can use it"
            )
        if use == "segmentation" and len(index.classes) > 254:
            raise UserError(
                f"dataset.classes: {len(index.classes)} classes, but a label map has room for 254; choose fewer"
            )
        if use == "segmentation" and len(index.images) == 0:
            raise UserError(
                f"dataset: the {index.split} split of {index.root} has no image with an object{of_classes}; choose "
                "other dataset.classes=[...]"
            )
        if use == "pretraining" and len(index) == 0:
            raise UserError(
                f"dataset: the {index.split} split of {index.root} has no object{of_classes} whose smaller side is at "
                f"least {config.min_crop_size} px; choose other dataset.classes=[...] or a smaller "
                "dataset.min_crop_size="
            )
    return splits
