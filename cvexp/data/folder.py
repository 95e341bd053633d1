"""The user's own pictures: a tree of images, or images with a mask beside each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import MISSING
from PIL import Image

from cvexp.config import Dataset, require
from cvexp.data.catalog import UNLABELLED, Draft
from cvexp.data.components import add_masked_images
from cvexp.data.images import FORMATS, SUFFIXES, explain, upright_size
from cvexp.data.prepare import Recipe, Use
from cvexp.errors import UserError


@dataclass(kw_only=True)
class Config(Dataset):
    train_images: str = MISSING
    val_images: str | None = MISSING
    val_fraction: float = MISSING
    train_masks: str | None = MISSING
    val_masks: str | None = MISSING
    mask_suffix: str = MISSING
    mask_values: dict[str, int] | None = MISSING
    ignore_value: int = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.val_fraction < 1, "dataset.val_fraction", self.val_fraction, "between 0 and 1")
        if self.train_masks is not None:
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


def uses(config: Config) -> tuple[Use, ...]:
    """What the data can be used for."""
    return ("pretraining",) if config.train_masks is None else ("pretraining", "segmentation")


def recipes(config: Config, use: Use) -> tuple[Recipe, Recipe]:
    """How the catalogs of both splits are made.

    Raises:
        UserError: where a folder is missing, or has no images.
    """
    root = Path(config.root).absolute()
    train_images = os.path.relpath(root / config.train_images, root)
    train = list_images(root, train_images, "dataset.train_images", config.train_masks, config.mask_suffix)
    if config.val_images is None:
        val_images, val_masks = train_images, config.train_masks
        most = max(config.val_fraction, min(map(_chance, train)))  # one at least
        val = [file for file in train if _chance(file) <= most]
        train = [file for file in train if _chance(file) > most]
    else:
        val_images, val_masks = os.path.relpath(root / config.val_images, root), config.val_masks
        val = list_images(root, val_images, "dataset.val_images", val_masks, config.mask_suffix)
    if config.train_masks is not None:
        if val_masks is None:
            raise UserError("dataset.val_masks: got null, but it must be a folder, as dataset.train_masks is")
        return (
            _masked_recipe(config, root, train, train_images, config.train_masks),
            _masked_recipe(config, root, val, val_images, val_masks),
        )
    names = {label_of(file, train_images) for file in train} | {label_of(file, val_images) for file in val}
    classes = sorted(name for name in names if name is not None)
    by_chance = config.val_fraction if config.val_images is None else None
    return (
        tree_recipe(root, train, train_images, classes, by_chance),
        tree_recipe(root, val, val_images, classes, by_chance),
    )


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


def _chance(file: str) -> float:
    """A number from 0 to 1 that a name always has, so that an image stays in its split when others come."""
    return int.from_bytes(hashlib.sha256(file.encode()).digest()[:8], "big") / 2**64


def label_of(file: str, folder: str) -> str | None:
    """The first folder below `folder` on the way to a file; None for a file that lies in it directly."""
    parts = Path(file).relative_to(Path(folder)).parts
    return parts[0] if len(parts) > 1 else None


def tree_recipe(
    root: Path, files: Sequence[str], folder: str, classes: Sequence[str] = (), val_fraction: float | None = None
) -> Recipe:
    """How the catalog of a tree of images is made, each of which is one object."""
    return Recipe(
        [str(root), folder, list(classes), val_fraction],
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
        label = classes.index(name) if name is not None else UNLABELLED
        draft.add_object(draft.add_image(file, width, height), label, (0, 0, width, height), width * height)
    return draft


def _masked_recipe(config: Config, root: Path, files: Sequence[str], images: str, masks: str) -> Recipe:
    if not (root / masks).is_dir():
        raise UserError(f"dataset.train_masks, val_masks: there is no folder {root / masks}; check dataset.root=")
    mask_files = [
        (Path(masks) / Path(file).relative_to(images).with_suffix("")).as_posix() + config.mask_suffix for file in files
    ]
    inputs = [root / file for file in mask_files]
    settings = [str(root), images, masks, config.mask_suffix, config.mask_values, config.ignore_value, list(files)]
    return Recipe(settings, inputs, partial(_read_masked, config, root, files, mask_files))


def _read_masked(config: Config, root: Path, files: Sequence[str], mask_files: Sequence[str]) -> Draft:
    values = config.mask_values or {}
    draft = Draft(root, list(values), list(values.values()), config.ignore_value)
    add_masked_images(draft, files, mask_files)
    return draft
