"""PASCAL VOC 2007 and 2012, with VOC's own masks or SBD's augmented masks
(http://host.robots.ox.ac.uk/pascal/VOC/)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from omegaconf import MISSING

from cvexp.data.catalog import Draft
from cvexp.data.files.components import add_masked_images
from cvexp.data.files.images import leaves_folder
from cvexp.data.mask_table import MaskTable
from cvexp.data.prepare import Recipe, Recipes, Use
from cvexp.data.split import SplitDataset, split_recipes
from cvexp.errors import UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

REMEDY = "VOC's classes are 1 to 20; correct the masks, or read them with dataset=folder and dataset.mask_values"


@dataclass(kw_only=True)
class Config(SplitDataset):
    split_keys: ClassVar[tuple[str, str, str]] = ("train_list", "val_list", "test_list")
    train_list: str | None = MISSING
    val_list: str | None = MISSING
    test_list: str | None = MISSING
    images: str = MISSING
    masks: str = MISSING


def recipes(config: Config, use: Use) -> Recipes:
    """Return the recipes of the splits.

    Raises:
        UserError: if a list or a folder is missing.
    """
    return split_recipes(config, lambda split: _recipe(config, split, getattr(config, f"{split}_list")))


def _recipe(config: Config, split: str, list_file: str) -> Recipe:
    root = Path(config.root).absolute()
    path = root / list_file
    if not path.is_file():
        elsewhere = [*root.glob(f"*/{list_file}"), *root.glob(f"*/*/{list_file}")]  # VOCdevkit/VOC2012
        hint = f"but there is {elsewhere[0]}, so check dataset.root=" if elsewhere else "check dataset.root="
        raise UserError(f"dataset.{split}_list: there is no file {path}; {hint}")
    for key, folder in (("images", config.images), ("masks", config.masks)):
        if not (root / folder).is_dir():
            raise UserError(f"dataset.{key}: there is no folder {root / folder}; give dataset.{key}=PATH")
    names = [line.split()[0] for line in path.read_text(errors="replace").splitlines() if line.strip()]
    masks = [root / config.masks / f"{name}.png" for name in names if not leaves_folder(name)]
    settings = [str(root), list_file, config.images, config.masks]
    return Recipe(settings, [path, *masks], partial(_read, root, path, names, config.images, config.masks))


def _read(root: Path, path: Path, names: Sequence[str], images: str, masks: str) -> Draft:
    """Read the images named in a list, and their masks.

    Args:
        root: The folder that `images` and `masks` are relative to.
        path: The list.
        names: The entries of the list.
        images, masks: The folders of the images and the masks.
    """
    draft = Draft(root, CLASSES, MaskTable(tuple(range(1, 21))))
    valid_names: dict[str, None] = {}  # an ordered set
    for number, name in enumerate(names, 1):
        if leaves_folder(name):
            draft.add_problem(f"{path}: entry {number}", f"{name!r} leads outside the folder of the images; remove it")
        elif name in valid_names:
            draft.add_problem(f"{path}: entry {number}", f"{name!r} appears twice; remove one of them")
        else:
            valid_names[name] = None
    mask_files = [f"{masks}/{name}.png" for name in valid_names]
    add_masked_images(draft, [f"{images}/{name}.jpg" for name in valid_names], mask_files, REMEDY)
    return draft
