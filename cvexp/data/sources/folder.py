"""The user's own images: a folder tree of images, or images with one mask each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from omegaconf import MISSING
from PIL import Image

from cvexp.data.catalog import UNLABELED, Draft
from cvexp.data.files.components import add_masked_images
from cvexp.data.files.images import FORMATS, SUFFIXES, explain, upright_size
from cvexp.data.files.listing import walk
from cvexp.data.prepare import Recipe, Recipes, Use
from cvexp.data.split import SplitDataset, split_recipes
from cvexp.errors import UserError
from cvexp.keys import require


@dataclass(kw_only=True)
class Config(SplitDataset):
    split_keys: ClassVar[tuple[str, str, str]] = ("train_images", "val_images", "test_images")
    train_images: str | None = MISSING
    val_images: str | None = MISSING
    test_images: str | None = MISSING
    train_masks: str | None = MISSING
    val_masks: str | None = MISSING
    test_masks: str | None = MISSING
    mask_suffix: str = MISSING
    mask_values: dict[str, int] | None = MISSING
    ignore_value: int = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if _has_masks(self):
            numbers = list((self.mask_values or {}).values())
            fits = numbers and len({*numbers, 0, self.ignore_value}) == len(numbers) + 2
            fits = fits and min(numbers) > 0 and max(*numbers, self.ignore_value) < 2**16
            require(
                bool(fits),
                "dataset.mask_values",
                self.mask_values,
                "the number of each class in the masks, such as {cat: 1, dog: 2}: different numbers from 1 to 65535, "
                "other than dataset.ignore_value",
            )


def _has_masks(config: Config) -> bool:
    """Return whether any split has masks."""
    return any(masks is not None for masks in _masks(config).values())


def _masks(config: Config) -> dict[str, str | None]:
    """Return the folder of the masks of each split that has a folder of images; None if there are no masks."""
    splits = [split for split in ("train", "val", "test") if getattr(config, f"{split}_images") is not None]
    return {split: getattr(config, f"{split}_masks") for split in splits}


def uses(config: Config) -> tuple[Use, ...]:
    """Return what the data can be used for."""
    return ("pretraining", "segmentation") if _has_masks(config) else ("pretraining",)


def recipes(config: Config, use: Use) -> Recipes:
    """Return the recipes of the splits.

    Raises:
        UserError: if a folder is missing or has no images.
    """
    root = Path(config.root).absolute()
    masks = _masks(config)
    folders, files = {}, {}
    for split in masks:
        key = f"dataset.{split}_images"
        folders[split] = os.path.relpath(root / getattr(config, f"{split}_images"), root)
        files[split] = list_images(root, folders[split], key, masks[split], config.mask_suffix)
    if _has_masks(config):
        given = next(split for split in masks if masks[split] is not None)
        for split in masks:
            if masks[split] is None:
                raise UserError(f"dataset.{split}_masks: got null, but dataset.{given}_masks is a folder; give both")
        return split_recipes(config, lambda split: _masked_recipe(config, split, root, files[split], folders[split]))
    names = {split: {name for file in files[split] if (name := label_of(file, folders[split]))} for split in files}
    classes = sorted(names.get("train", set()) | names.get("val", set()))
    classes_of = dict.fromkeys(files, classes)
    if classes and "test" in files:  # which has no influence on the labels of the classes
        classes_of["test"] = classes + sorted(names["test"] - set(classes))
    return split_recipes(config, lambda split: tree_recipe(root, files[split], folders[split], classes_of[split]))


def list_images(root: Path, folder: str, key: str, masks: str | None = None, mask_suffix: str = "") -> list[str]:
    """List the image files in and below a folder, relative to the root, in alphabetical order.

    Args:
        root: The root of the data set.
        folder: The folder, relative to the root.
        key: The configuration key that names the folder.
        masks: The folder of the masks, relative to the root. Masks are not listed, even if this folder is
            `folder` itself or lies below it.
        mask_suffix: The suffix of the masks.

    Raises:
        UserError: if the folder is missing or has no images.
    """
    start = root / folder
    if not start.is_dir():
        raise UserError(f"{key}: there is no folder {start}; check dataset.root=")
    mask_start = None if masks is None else os.path.relpath(root / masks, root)
    files = []
    for path, folders, names in walk(start):
        relative = os.path.relpath(path, root)
        if relative == mask_start and path != str(start):
            folders.clear()
            continue
        for name in names:
            if not (mask_start == folder and name.endswith(mask_suffix)):
                files.append(name if relative == "." else f"{relative}/{name}")
    if not files:
        but_masks = f" except those that end in {mask_suffix}, the masks" if mask_start == folder else ""
        raise UserError(
            f"{key}: there are no images in {start}{but_masks}; the names of images end in {', '.join(SUFFIXES)}"
        )
    return files


def label_of(file: str, folder: str) -> str | None:
    """Return the subfolder of `folder` that contains a file, or None if the file is in `folder` itself."""
    parts = Path(file).relative_to(Path(folder)).parts
    return parts[0] if len(parts) > 1 else None


def tree_recipe(root: Path, files: Sequence[str], folder: str, classes: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a folder tree of images, each of which is one object.

    Args:
        root: The root of the data set.
        files: The images, relative to the root.
        folder: The folder of the tree, relative to the root.
        classes: Names of the subfolders; empty if the images have no labels.
    """
    return Recipe(
        [str(root), folder, list(classes)],
        [root / file for file in files],
        partial(_read_tree, root, files, folder, classes),
    )


def _read_tree(root: Path, files: Sequence[str], folder: str, classes: Sequence[str]) -> Draft:
    """Read a folder tree of images; see :func:`tree_recipe`."""
    draft = Draft(root, classes)
    for file in files:
        name = label_of(file, folder)
        if classes and name is None:
            draft.add_problem(root / file, "it is not in the folder of a class; move it into one, or remove it")
            continue
        try:
            with Image.open(root / file, formats=FORMATS) as image:
                width, height = upright_size(image)
        except Exception as error:  # Pillow may raise anything for a broken file
            draft.add_problem(root / file, explain(error))
            continue
        label = classes.index(name) if classes else UNLABELED
        draft.add_object(draft.add_image(file, width, height), label, (0, 0, width, height), width * height)
    return draft


def _masked_recipe(config: Config, split: str, root: Path, files: Sequence[str], images: str) -> Recipe:
    """Return the recipe of images with masks.

    Args:
        config: Specifies the masks.
        split: The name of the split.
        root: The root of the data set.
        files: The images, relative to the root.
        images: The folder of the images, relative to the root.

    Raises:
        UserError: if the folder of the masks is missing.
    """
    masks = getattr(config, f"{split}_masks")
    if not (root / masks).is_dir():
        raise UserError(f"dataset.{split}_masks: there is no folder {root / masks}; check dataset.root=")
    mask_files = [
        (Path(masks) / Path(file).relative_to(images).with_suffix("")).as_posix() + config.mask_suffix for file in files
    ]
    inputs = [root / file for file in mask_files]
    settings = [str(root), images, masks, config.mask_suffix, config.mask_values, config.ignore_value, list(files)]
    return Recipe(settings, inputs, partial(_read_masked, config, root, files, mask_files))


def _read_masked(config: Config, root: Path, files: Sequence[str], mask_files: Sequence[str]) -> Draft:
    """Read images with masks."""
    values = config.mask_values or {}
    draft = Draft(root, list(values), list(values.values()), config.ignore_value)
    add_masked_images(
        draft, files, mask_files, "name its class in dataset.mask_values, or set dataset.ignore_value={number}"
    )
    return draft
