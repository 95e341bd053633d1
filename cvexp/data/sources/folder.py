"""The user's own pictures: a tree of images, or images with a mask beside each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from omegaconf import MISSING
from PIL import Image

from cvexp.config import require
from cvexp.data.catalog import UNLABELED, Draft
from cvexp.data.files.components import add_masked_images
from cvexp.data.files.images import FORMATS, SUFFIXES, explain, upright_size
from cvexp.data.prepare import Recipe, Use
from cvexp.data.split import SplitDataset, split_recipes
from cvexp.errors import UserError


@dataclass(kw_only=True)
class Config(SplitDataset):
    split_keys: ClassVar[tuple[str, str]] = ("train_images", "val_images")
    train_images: str | None = MISSING
    val_images: str | None = MISSING
    train_masks: str | None = MISSING
    val_masks: str | None = MISSING
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
                "the number of each class in the masks, such as {cat: 1, dog: 2}: different ones from 1 to 65535, and "
                "none of them dataset.ignore_value",
            )


def _has_masks(config: Config) -> bool:
    """Whether any images that are used have masks."""
    masks = {"train": config.train_masks, "val": config.val_masks}
    return any(masks[split] is not None for split in _splits(config))


def _splits(config: Config) -> list[str]:
    """The splits that have a folder of their own."""
    return [split for split in ("train", "val") if getattr(config, f"{split}_images") is not None]


def uses(config: Config) -> tuple[Use, ...]:
    """What the data can be used for."""
    return ("pretraining", "segmentation") if _has_masks(config) else ("pretraining",)


def recipes(config: Config, use: Use) -> tuple[Recipe | None, Recipe]:
    """How the catalogs of both splits are made.

    Raises:
        UserError: where a folder is missing, or has no images.
    """
    root = Path(config.root).absolute()
    masks = {"train": config.train_masks, "val": config.val_masks}
    folders, files = {}, {}
    for split in _splits(config):
        key = f"dataset.{split}_images"
        folders[split] = os.path.relpath(root / getattr(config, f"{split}_images"), root)
        files[split] = list_images(root, folders[split], key, masks[split], config.mask_suffix)
    if _has_masks(config):
        for split, other in (("train", "val"), ("val", "train")):
            if split in files and masks[split] is None:
                raise UserError(
                    f"dataset.{split}_masks: got null, but it must be a folder, as dataset.{other}_masks is"
                )
        return split_recipes(config, lambda split: _masked_recipe(config, split, root, files[split], folders[split]))
    names = {label_of(file, folders[split]) for split in files for file in files[split]}
    classes = sorted(name for name in names if name is not None)
    return split_recipes(config, lambda split: tree_recipe(root, files[split], folders[split], classes))


def list_images(root: Path, folder: str, key: str, masks: str | None = None, mask_suffix: str = "") -> list[str]:
    """The image files in and below a folder, relative to the root, in the order of their names.

    Args:
        root: What they are relative to.
        folder: Where they lie, relative to the root.
        key: What names the folder in the configuration.
        masks: The folder of their masks, which are not listed, wherever it lies.
        mask_suffix: The ending of the masks.

    Raises:
        UserError: where the folder is missing, or has no images.
    """
    start = root / folder
    if not start.is_dir():
        raise UserError(f"{key}: there is no folder {start}; check dataset.root= and {key}=")
    mask_start = None if masks is None else os.path.relpath(root / masks, root)
    files = []
    seen: set[str] = set()
    for path, folders, names in os.walk(start, followlinks=True, onerror=_refuse):
        below = os.path.relpath(path, root)
        if (real := os.path.realpath(path)) in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(real)
        if below == mask_start and path != str(start):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            is_mask = mask_start == folder and name.endswith(mask_suffix)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and not is_mask:
                files.append(name if below == "." else f"{below}/{name}")
    if not files:
        beside = f" that don't end in {mask_suffix}, as masks do" if mask_start == folder else ""
        raise UserError(f"{key}: there are no images in {start}{beside}; they end in {', '.join(SUFFIXES)}")
    return files


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: it can't be read ({error.strerror}); check its permissions")


def label_of(file: str, folder: str) -> str | None:
    """The first folder below `folder` on the way to a file; None for a file that lies in it directly."""
    parts = Path(file).relative_to(Path(folder)).parts
    return parts[0] if len(parts) > 1 else None


def tree_recipe(root: Path, files: Sequence[str], folder: str, classes: Sequence[str] = ()) -> Recipe:
    """How the catalog of a tree of images is made, each of which is one object."""
    return Recipe(
        [str(root), folder, list(classes)],
        [root / file for file in files],
        partial(read_tree, root, files, folder, classes),
    )


def read_tree(root: Path, files: Sequence[str], folder: str, classes: Sequence[str]) -> Draft:
    """The catalog of a tree of images; where there are classes, each image is in the folder of one."""
    draft = Draft(root, classes)
    for file in files:
        name = label_of(file, folder)
        if classes and name is None:
            draft.add_problem(root / file, "it lies in no class's folder; move it into one, or take it out")
            continue
        try:
            with Image.open(root / file, formats=FORMATS) as image:
                width, height = upright_size(image)
        except Exception as error:  # what a broken file makes Pillow raise is not limited
            draft.add_problem(root / file, explain(error))
            continue
        label = classes.index(name) if name is not None else UNLABELED
        draft.add_object(draft.add_image(file, width, height), label, (0, 0, width, height), width * height)
    return draft


def _masked_recipe(config: Config, split: str, root: Path, files: Sequence[str], images: str) -> Recipe:
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
    values = config.mask_values or {}
    draft = Draft(root, list(values), list(values.values()), config.ignore_value)
    add_masked_images(
        draft, files, mask_files, "name its class in dataset.mask_values, or set dataset.ignore_value={number}"
    )
    return draft
