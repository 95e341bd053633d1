"""PASCAL VOC 2007 and 2012, with the masks of VOC itself or those augmented by SBD
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
from cvexp.data.prepare import Recipe, Use
from cvexp.data.split import SplitDataset, split_recipes
from cvexp.errors import UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

REMEDY = "VOC's classes are 1 to 20: correct the masks, or read them with dataset=folder and dataset.mask_values"


@dataclass(kw_only=True)
class Config(SplitDataset):
    split_keys: ClassVar[tuple[str, str]] = ("train_list", "val_list")
    train_list: str | None = MISSING
    val_list: str | None = MISSING
    images: str = MISSING
    masks: str = MISSING


def recipes(config: Config, use: Use) -> tuple[Recipe | None, Recipe]:
    """How the catalogs of both splits are made.

    Raises:
        UserError: where a list or a folder is missing.
    """
    return split_recipes(config, lambda split: _recipe(config, split, getattr(config, f"{split}_list")))


def _recipe(config: Config, split: str, list_file: str) -> Recipe:
    root = Path(config.root).absolute()
    path = root / list_file
    if not path.is_file():
        found = [*root.glob(f"*/{list_file}"), *root.glob(f"*/*/{list_file}")]  # VOCdevkit/VOC2012
        hint = f"there is {found[0]}, so check dataset.root=" if found else "check dataset.root="
        raise UserError(f"dataset.{split}_list: there is no file {path}; {hint}")
    for key, folder in (("images", config.images), ("masks", config.masks)):
        if not (root / folder).is_dir():
            raise UserError(f"dataset.{key}: there is no folder {root / folder}; give dataset.{key}=PATH")
    names = [line.split()[0] for line in path.read_text(errors="replace").splitlines() if line.strip()]
    masks = [root / config.masks / f"{name}.png" for name in names if not leaves_folder(name)]
    settings = [str(root), list_file, config.images, config.masks]
    return Recipe(settings, [path, *masks], partial(read, root, path, names, config.images, config.masks))


def read(root: Path, path: Path, names: Sequence[str], images: str, masks: str) -> Draft:
    """The catalog of the images that a list names."""
    draft = Draft(root, CLASSES, mask_values=range(1, 21))
    good: dict[str, None] = {}  # an ordered set
    for number, name in enumerate(names, 1):
        if leaves_folder(name):
            draft.add_problem(f"{path}: entry {number}", f"{name!r} leaves the folder of the images; take it out")
        elif name in good:
            draft.add_problem(f"{path}: entry {number}", f"{name!r} is there twice; take one out")
        else:
            good[name] = None
    mask_files = [f"{masks}/{name}.png" for name in good]
    add_masked_images(draft, [f"{images}/{name}.jpg" for name in good], mask_files, REMEDY)
    return draft
