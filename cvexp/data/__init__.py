"""Data sources, each a module with a `Config` and `recipes`, and the datasets over the index that all of them give."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import get_args

from cvexp import plugins
from cvexp.config import DatasetConfig
from cvexp.data.catalog import grouped
from cvexp.data.index import Index, Splits, select
from cvexp.data.prepare import Use, make_splits
from cvexp.data.split import null_training_key
from cvexp.errors import UserError, opening

log = logging.getLogger("cvexp")


def uses(config: DatasetConfig) -> tuple[Use, ...]:
    """What the data of a source can be used for."""
    source = plugins.load("dataset", config.name)
    return source.uses(config) if hasattr(source, "uses") else get_args(Use)


def open_splits(config: DatasetConfig, use: Use) -> Splits:
    """The index of the training and the validation images, made ready first where they are not.

    Args:
        config: The source and what is chosen of it.
        use: Objects to crop (`pretraining`) or images with masks (`segmentation`).

    Raises:
        UserError: where data is missing or broken.
    """
    with opening("dataset.root"):
        return make_splits(config, *plugins.load("dataset", config.name).recipes(config, use))


def load(config: DatasetConfig, use: Use, needs_training: bool = True) -> Splits:
    """Like `open_splits`, for use.

    Args:
        config: The source and what is chosen of it.
        use: Objects to crop, or images with masks.
        needs_training: Whether the training split is used; otherwise it may be empty.

    Raises:
        UserError: also where a split that is used has nothing of what was chosen.
    """
    if needs_training and (key := null_training_key(config)):
        raise UserError(f"{key}: got null, but training needs images; give them with {key}=PATH")
    splits = open_splits(config, use)
    if problems := [problem for index in splits for problem in index.problems]:
        log.warning("data: %d broken things are left out, the first: %s", len(problems), grouped(problems)[0])
    if config.classes is None:
        _warn_of_untrained_classes(splits)
    for index in splits if needs_training else (splits.val,):
        if index.problems and not len(index.catalog.files):
            raise UserError(f"dataset: nothing of the {index.split} split is left; {grouped(index.problems)[0]}")
        if use == "segmentation" and not index.catalog.has_masks:
            raise UserError(
                f"dataset: the {index.split} split of {index.root} has no masks, so only task=dino can use it"
            )
        if use == "segmentation" and len(index.classes) > 254:
            raise UserError(
                f"dataset.classes: {len(index.classes)} classes, but a label map has room for 254; choose fewer"
            )
        if use == "segmentation" and "background" in index.classes:
            raise UserError(
                "dataset.classes: a class is called background, but that is the name of all pixels without a class; "
                "list the other classes, so that it becomes part of them"
            )
        if (len(index) if use == "pretraining" else len(index.images)) == 0:
            raise UserError(_why_empty(index, config, use))
        warn_of_absent_classes(index, config, use)
    return splits


def warn_of_absent_classes(index: Index, config: DatasetConfig, use: Use) -> None:
    """Warn where a split has nothing of some classes to use, and say which of them `dataset.limit` leaves out."""
    if absent := _absent_classes(index, use):
        there = set(absent) - set(_absent_classes(_without_limit(index, config), use))
        lost = ", ".join(name for name in absent if name in there)
        because = f"; dataset.limit={config.limit} leaves out {lost}" if lost else ""
        classes = f"class{'es' * (len(absent) > 1)} {', '.join(absent)}"
        size = f" that is at least {config.min_crop_size} px wide and high" if use == "pretraining" else ""
        log.warning("data: the %s split has no object of the %s%s%s", index.split, classes, size, because)


def _warn_of_untrained_classes(splits: Splits) -> None:
    if unknown := [name for name in splits.val.catalog.classes if name not in splits.val.classes]:
        log.warning(
            "data: only the val split has the class%s %s; dataset.unlisted= says what becomes of its objects",
            "es" * (len(unknown) > 1),
            ", ".join(unknown),
        )


def _without_limit(index: Index, config: DatasetConfig) -> Index:
    """What the split would have without `dataset.limit`, as far as that is known without reading its images."""
    if config.limit is None:
        return index
    return select(index.catalog, index.split, replace(config, classes=list(index.classes) or None, limit=None))


def _why_empty(index: Index, config: DatasetConfig, use: Use) -> str:
    objects = "object" + (f" of the classes {', '.join(index.classes)}" if index.classes else "")
    where = f"the {index.split} split of {index.root} has no"
    if use == "segmentation":
        return f"dataset: {where} image with an {objects}; choose other dataset.classes=[...]"
    objects += f" whose smaller side is at least {config.min_crop_size} px"
    if len(_without_limit(index, config)):
        return (
            f"dataset.limit: the {len(index.images)} images drawn from the {index.split} split of {index.root} have no "
            f"{objects}; choose a larger dataset.limit="
        )
    return f"dataset: {where} {objects}; choose other dataset.classes=[...] or a smaller dataset.min_crop_size="


def _absent_classes(index: Index, use: Use) -> list[str]:
    """The classes without anything to use in the split."""
    counts = index.counts() if use == "pretraining" else index.num_objects()
    return [name for name, count in counts.items() if count == 0]
