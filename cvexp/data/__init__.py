"""Data sources, each a module with a `Config` and `recipes`, and the datasets built on their common index."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import get_args

from cvexp import plugins
from cvexp.config import DatasetConfig
from cvexp.data.index import Index, Splits, select
from cvexp.data.labeled import labeled_part
from cvexp.data.prepare import Recipes, Use, make_splits
from cvexp.data.problems import grouped
from cvexp.data.split import draw_splits, null_training_key
from cvexp.errors import UserError, opening

log = logging.getLogger("cvexp")


def uses(config: DatasetConfig) -> tuple[Use, ...]:
    """Return what the data of a source can be used for.

    Raises:
        UserError: if `dataset.root` can't be read.
    """
    source = plugins.load("dataset", config.name)
    with opening("dataset.root"):
        return source.uses(config) if hasattr(source, "uses") else get_args(Use)


def open_splits(config: DatasetConfig, use: Use, uses_labels: bool | None = None) -> Splits:
    """Return the indexes of the splits. Prepare the data first if necessary.

    Args:
        config: The data source, and what to select from it.
        use: ``"pretraining"`` for object crops, or ``"segmentation"`` for images with masks.
        uses_labels: Whether the labels of the training images are used. Then there are only `dataset.fraction` of these
            images. None means that segmentation uses labels and pretraining does not.

    Raises:
        UserError: if data is missing or broken.
    """
    with opening("dataset.root"):
        recipes = Recipes(*plugins.load("dataset", config.name).recipes(config, use))
        splits = make_splits(config, draw_splits(config, recipes))
    if uses_labels is None:
        uses_labels = use == "segmentation"
    return replace(splits, train=labeled_part(splits.train, config)) if uses_labels else splits


def load(config: DatasetConfig, use: Use, needs_training: bool = True, uses_labels: bool | None = None) -> Splits:
    """Return the indexes of the splits, and check that they have data for the given use.

    Args:
        config: The data source, and what to select from it.
        use: ``"pretraining"`` for object crops, or ``"segmentation"`` for images with masks.
        needs_training: Whether the training split is used. If not, this split may be empty.
        uses_labels: Whether the labels of the training images are used; see :func:`open_splits`.

    Raises:
        UserError: if data is missing or broken, or if the selection leaves nothing in a split that is used.
    """
    if needs_training and (key := null_training_key(config)):
        raise UserError(f"{key}: got null, but training needs images; give them with {key}=PATH")
    splits = open_splits(config, use, uses_labels)
    if problems := [problem for index in splits for problem in index.problems]:
        first = grouped(problems)[0]
        log.warning("data: %d files or annotations are left out; the first: %s", len(problems), first)
    if config.classes is None:
        _warn_of_untrained_classes(splits)
    for index in list(splits)[0 if needs_training else 1 :]:
        _check_index(index, config, use)
        warn_of_absent_classes(index, config, use)
    return splits


def _check_index(index: Index, config: DatasetConfig, use: Use) -> None:
    """Raise a UserError unless a split has data for the given use."""
    if index.problems and not len(index.catalog.files):
        raise UserError(f"dataset: no image of the {index.split} split is usable; {grouped(index.problems)[0]}")
    if use == "segmentation":
        if not index.catalog.has_masks:
            raise UserError(
                f"dataset: the {index.split} split of {index.place} has no masks, so only pretraining can use it"
            )
        if len(index.classes) > 254:
            raise UserError(
                f"dataset.classes: there are {len(index.classes)} classes, but a label map has room for 254; choose "
                "fewer"
            )
        if "background" in index.classes:
            raise UserError(
                "dataset.classes: a class is called background, but this name is reserved for pixels without a class; "
                "list only the other classes, and the pixels of this class become background"
            )
    if (len(index) if use == "pretraining" else len(index.images)) == 0:
        raise UserError(_why_empty(index, config, use))


def warn_of_absent_classes(index: Index, config: DatasetConfig, use: Use) -> None:
    """Warn if a split has no objects of some classes, and name those that only `dataset.limit` excludes."""
    if absent := _absent_classes(index, use):
        unlimited = set(_absent_classes(_without_limit(index, config), use))
        lost = ", ".join(name for name in absent if config.limit is not None and name not in unlimited)
        because = f"; dataset.limit={config.limit} leaves out {lost}" if lost else ""
        classes = f"class{'es' * (len(absent) > 1)} {', '.join(absent)}"
        size = f" that is at least {config.min_crop_size} px wide and high" if use == "pretraining" else ""
        log.warning("data: the %s split has no object of the %s%s%s", index.split, classes, size, because)


def _warn_of_untrained_classes(splits: Splits) -> None:
    for index in list(splits)[1:]:
        if untrained := [name for name in index.catalog.classes if name not in index.classes]:
            log.warning(
                "data: only the %s split has the class%s %s; dataset.unlisted= decides how such pixels are labeled",
                index.split,
                "es" * (len(untrained) > 1),
                ", ".join(untrained),
            )


def _without_limit(index: Index, config: DatasetConfig) -> Index:
    """Return the index of all that the split has of the selected classes, whatever was not drawn or left out."""
    return select(index.catalog, index.split, replace(config, classes=list(index.classes) or None, limit=None))


def _why_empty(index: Index, config: DatasetConfig, use: Use) -> str:
    """Return a message that explains why a split has nothing to use, and how to fix this."""
    objects = "object" + (f" of the classes {', '.join(index.classes)}" if index.classes else "")
    if use == "pretraining":
        objects += f" whose smaller side is at least {config.min_crop_size} px"
    where = f"the {index.split} split of {index.place}"
    everything = _without_limit(index, config)
    if not (len(everything) if use == "pretraining" else len(everything.images)):
        if use == "segmentation":
            return f"dataset: {where} has no image with an {objects}; choose other dataset.classes=[...]"
        return (
            f"dataset: {where} has no {objects}; choose other dataset.classes=[...] or a smaller dataset.min_crop_size="
        )
    if index.problems and (config.limit is None or not len(index.images)):
        first = grouped(index.problems)[0]
        return f"dataset: all images of {where} with an {objects} are left out; the first: {first}"
    return (
        f"dataset.limit: the {len(index.images)} images drawn from {where} have no {objects}; choose a larger "
        "dataset.limit="
    )


def _absent_classes(index: Index, use: Use) -> list[str]:
    """Return the classes without objects in the split, ignoring small objects for pretraining."""
    counts = index.counts() if use == "pretraining" else index.num_objects()
    return [name for name, count in counts.items() if count == 0]
