"""Data sources, each a module with a `Config` and `recipes`, and the datasets over the index that all of them give."""

from __future__ import annotations

import importlib
import logging
from dataclasses import replace
from typing import get_args

from cvexp.config import Dataset
from cvexp.data.index import Index, Splits, select
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
        if use == "segmentation" and not index.catalog.has_masks:
            raise UserError(
                f"dataset: the {index.split} split of {index.root} has no masks, so only task=dino can use it"
            )
        if use == "segmentation" and len(index.classes) > 254:
            raise UserError(
                f"dataset.classes: {len(index.classes)} classes, but a label map has room for 254; choose fewer"
            )
        whole = _without_limit(index, config)
        if _is_empty(index, use):
            raise UserError(_why_empty(index, whole, config, use))
        if absent := _absent_classes(index, use):
            lost = [name for name in absent if name not in _absent_classes(whole, use)]
            because = f"; dataset.limit={config.limit} leaves out {', '.join(lost)}" if lost else ""
            classes = f"class{'es' * (len(absent) > 1)} {', '.join(absent)}"
            log.warning("data: the %s split has no object of the %s%s", index.split, classes, because)
    return splits


def _without_limit(index: Index, config: Dataset) -> Index:
    """What the split would have without `dataset.limit`, as far as that is known without reading its images."""
    if config.limit is None:
        return index
    return select(index.catalog, index.split, replace(config, classes=list(index.classes) or None, limit=None))


def _is_empty(index: Index, use: Use) -> bool:
    return len(index) == 0 if use == "pretraining" else len(index.images) == 0


def _why_empty(index: Index, whole: Index, config: Dataset, use: Use) -> str:
    objects = "object" + (f" of the classes {', '.join(index.classes)}" if index.classes else "")
    where = f"the {index.split} split of {index.root} has no"
    if use == "segmentation":
        return f"dataset: {where} image with an {objects}; choose other dataset.classes=[...]"
    objects += f" whose smaller side is at least {config.min_crop_size} px"
    if len(whole):
        return (
            f"dataset.limit: the {len(index.images)} images drawn from the {index.split} split of {index.root} have no "
            f"{objects}; choose a larger dataset.limit="
        )
    return f"dataset: {where} {objects}; choose other dataset.classes=[...] or a smaller dataset.min_crop_size="


def _absent_classes(index: Index, use: Use) -> list[str]:
    """The classes of which the split has nothing to use."""
    counts = index.counts() if use == "pretraining" else index.num_objects()
    return [name for name, count in counts.items() if count == 0]
