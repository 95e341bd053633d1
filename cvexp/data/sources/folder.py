"""The user's own images: a folder tree of images, or images with one mask each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING
from PIL import Image

from cvexp.data.catalog import UNLABELED, Draft
from cvexp.data.files.components import add_masked_images
from cvexp.data.files.images import FORMATS, SUFFIXES, explain, upright_size
from cvexp.data.files.listing import walk
from cvexp.data.mask_survey import propose_values
from cvexp.data.mask_table import MaskTable, parse_table
from cvexp.data.prepare import Recipe, Recipes, Use
from cvexp.data.split import SplitDataset, split_recipes
from cvexp.errors import UserError


@dataclass(kw_only=True)
class Config(SplitDataset):
    split_keys: ClassVar[tuple[str, str, str]] = ("train_images", "val_images", "test_images")
    train_images: str | None = MISSING
    val_images: str | None = MISSING
    test_images: str | None = MISSING
    train_masks: str | None = MISSING
    val_masks: str | None = MISSING
    test_masks: str | None = MISSING
    folder_classes: bool = True  # also of runs from before this key
    image_suffix: str | None = MISSING
    mask_suffix: str = MISSING
    mask_values: dict[str, Any] | None = MISSING
    background_value: Any = MISSING
    ignore_value: Any = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        values = self.mask_values or {}
        if "background" in values:
            raise UserError(
                "dataset.mask_values: background is no class; leave it out, and set dataset.background_value="
                f"{values['background']}"
            )
        mask_table(self)

    @property
    def has_background(self) -> bool:
        unchosen = set() if self.classes is None else set(self.mask_values or ()) - set(self.classes)
        return mask_table(self).has_background or (bool(unchosen) and self.unlisted == "background")


def mask_table(config: Config) -> MaskTable:
    """Return the table of the values in the masks.

    Raises:
        UserError: if a value has a wrong form, or stands for two things.
    """
    return parse_table(config.mask_values or {}, config.background_value, config.ignore_value)


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
        files[split] = list_images(
            root, folders[split], key, masks[split], config.mask_suffix, config.image_suffix or ""
        )
    if _has_masks(config):
        given = next(split for split in masks if masks[split] is not None)
        for split in masks:
            if masks[split] is None:
                raise UserError(f"dataset.{split}_masks: got null, but dataset.{given}_masks is a folder; give both")
        mask_files = {split: _mask_files(config, split, root, files[split], folders[split]) for split in masks}
        if not config.mask_values:
            raise UserError(propose_values([root / file for of_split in mask_files.values() for file in of_split]))
        return split_recipes(config, lambda split: _masked_recipe(config, split, root, files[split], mask_files[split]))
    names: dict[str, set[str]] = {split: set() for split in files}
    if config.folder_classes:
        names = {split: {name for file in files[split] if (name := label_of(file, folders[split]))} for split in files}
    classes = sorted(names.get("train", set()) | names.get("val", set()))
    classes_of = dict.fromkeys(files, classes)
    if classes and "test" in files:  # which has no influence on the labels of the classes
        classes_of["test"] = classes + sorted(names["test"] - set(classes))
    return split_recipes(config, lambda split: tree_recipe(root, files[split], folders[split], classes_of[split]))


def list_images(
    root: Path, folder: str, key: str, masks: str | None = None, mask_suffix: str = "", image_suffix: str = ""
) -> list[str]:
    """List the image files in and below a folder, relative to the root, in alphabetical order.

    Args:
        root: The root of the data set.
        folder: The folder, relative to the root.
        key: The configuration key that names the folder.
        masks: The folder of the masks, relative to the root. Masks are not listed, even if this folder is
            `folder` itself or lies below it.
        mask_suffix: The suffix of the masks.
        image_suffix: The suffix of the images. Others are not listed.

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
            if name.endswith(image_suffix) and not (mask_start == folder and name.endswith(mask_suffix)):
                files.append(name if relative == "." else f"{relative}/{name}")
    if not files:
        but_masks = f" except those that end in {mask_suffix}, the masks" if mask_start == folder else ""
        raise UserError(
            f"{key}: there are no images in {start}{but_masks}; the names of images end in "
            f"{image_suffix or ', '.join(SUFFIXES)}"
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


def _mask_files(config: Config, split: str, root: Path, files: Sequence[str], images: str) -> list[str]:
    """Return the mask of each image of a split, relative to the root.

    Args:
        config: Specifies the masks.
        split: The name of the split.
        root: The root of the data set.
        files: The images, relative to the root.
        images: The folder of the images, relative to the root.

    Raises:
        UserError: if the folder of the masks is missing, or none of the masks is there.
    """
    key, folder = f"dataset.{split}_masks", Path(getattr(config, f"{split}_masks"))
    if not (root / folder).is_dir():
        raise UserError(f"{key}: there is no folder {root / folder}; check dataset.root=")
    names = [file.removesuffix(config.image_suffix or Path(file).suffix) for file in files]
    stems = [(folder / Path(name).relative_to(images)).as_posix() for name in names]
    masks = [stem + config.mask_suffix for stem in stems]
    if not any((root / mask).exists() for mask in masks):
        raise UserError(
            f"{key}: the images have no masks; for {files[0]}, there is no {root / masks[0]}; "
            + _suffix_hint(root / stems[0], root / files[0])
        )
    return masks


def _suffix_hint(stem: Path, image: Path) -> str:
    """Say which suffix masks seem to have, from the files whose names start with `stem` and are not the image."""
    candidates = sorted(stem.parent.glob(f"{escape(stem.name)}*")) if stem.parent.is_dir() else []
    for candidate in candidates:
        if candidate != image:
            suffix = candidate.name.removeprefix(stem.name)
            return f"but there is {candidate.name}, so set dataset.mask_suffix={suffix}"
    return "a mask has its image's name, with dataset.mask_suffix instead of the suffix, and lies in the same subfolder"


def _masked_recipe(config: Config, split: str, root: Path, files: Sequence[str], mask_files: Sequence[str]) -> Recipe:
    """Return the recipe of images with masks, all relative to the root."""
    table = mask_table(config)
    settings = [str(root), list(config.mask_values or ()), asdict(table), list(files), list(mask_files)]
    inputs = [root / file for file in mask_files]
    return Recipe(settings, inputs, partial(_read_masked, config, root, files, mask_files))


def _read_masked(config: Config, root: Path, files: Sequence[str], mask_files: Sequence[str]) -> Draft:
    """Read images with masks."""
    table = mask_table(config)
    draft = Draft(root, list(config.mask_values or ()), table)
    this = "" if table.has_colors else "dataset.ignore_value={value}, or "
    others = "dataset.ignore_value=others for all values that are not listed"
    remedy = f"name its class in dataset.mask_values, or set {this}{others}"
    add_masked_images(draft, files, mask_files, remedy)
    return draft
