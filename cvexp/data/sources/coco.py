"""Any annotation file in COCO's instance format, with its images (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from zipfile import is_zipfile

from omegaconf import MISSING

from cvexp.config import DatasetConfig
from cvexp.data.catalog import Draft
from cvexp.data.files import rle
from cvexp.data.files.annotations import add_object, check_image, explain_entry, read_json
from cvexp.data.files.archive import unpack
from cvexp.data.files.fetch import Remote, fetch_with_bar, lock_folder
from cvexp.data.prepare import Recipe, Recipes, Use
from cvexp.data.split import SplitDataset, split_recipes
from cvexp.errors import UserError


@dataclass(kw_only=True)
class Config(SplitDataset):
    split_keys: ClassVar[tuple[str, str, str]] = ("train_annotations", "val_annotations", "test_annotations")
    train_annotations: str | None = MISSING
    train_images: str | None = MISSING
    val_annotations: str | None = MISSING
    val_images: str | None = MISSING
    test_annotations: str | None = MISSING
    test_images: str | None = MISSING
    download: bool = MISSING
    annotations_url: str = MISSING
    annotations_md5: str | None = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        for split in ("train", "val", "test"):
            if getattr(self, f"{split}_annotations") is not None and getattr(self, f"{split}_images") is None:
                raise UserError(
                    f"dataset.{split}_images: got null, but dataset.{split}_annotations needs its images; give their "
                    f"folder with dataset.{split}_images=PATH"
                )


def recipes(config: Config, use: Use) -> Recipes:
    """Return the recipes of the splits. With `dataset.download`, fetch the annotation files first.

    Raises:
        UserError: if an annotation file or a folder of images is missing.
    """
    if config.download:
        _fetch_annotations(config)

    def make_recipe(split: str) -> Recipe:
        annotations, images = getattr(config, f"{split}_annotations"), getattr(config, f"{split}_images")
        return recipe(config, split, annotations, images, fetches=config.download)

    return split_recipes(config, make_recipe)


def recipe(config: DatasetConfig, split: str, annotations: str, images: str, fetches: bool = False) -> Recipe:
    """Return the recipe of one split.

    Args:
        config: Specifies the root.
        split: The name of the split.
        annotations: The annotation file, relative to the root.
        images: The folder of the images, relative to the root.
        fetches: Whether missing images are fetched.

    Raises:
        UserError: if the annotation file or the folder of the images is missing.
    """
    root = Path(config.root).absolute()
    path = root / annotations
    if not path.is_file():
        raise UserError(
            f"dataset.{split}_annotations: there is no file {path}; check dataset.root= and "
            f"dataset.{split}_annotations=, or fetch the file with dataset.download=true"
        )
    if not fetches and not (root / images).is_dir():
        raise UserError(f"dataset.{split}_images: there is no folder {root / images}; give dataset.{split}_images=PATH")
    return Recipe([str(root), images], [path], partial(_read, root, path, images), fetches)


def _fetch_annotations(config: Config) -> None:
    """Fetch the archive of annotation files, and unpack the missing files."""
    root = Path(config.root)
    files = [file for key in config.split_keys if (file := getattr(config, key)) is not None]
    with lock_folder(root):
        if all((root / file).is_file() for file in files):
            return
        archive = root / config.annotations_url.rpartition("/")[2]
        is_new = not archive.exists()
        fetch_with_bar(Remote(config.annotations_url, archive, config.annotations_md5, verify=is_zipfile))
        missing = [file for file in files if not (root / file).is_file()]
        unpacked = root / ".cvexp-annotations"
        shutil.rmtree(unpacked, ignore_errors=True)  # remains of a run that was killed
        try:
            unpack(archive, unpacked, is_wanted=lambda name: name in missing)
            for file in missing:
                if not (unpacked / file).is_file():
                    raise UserError(f"{archive}: the archive has no {file}; correct dataset.annotations_url=")
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (unpacked / file).replace(root / file)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
        if is_new:
            archive.unlink()


class _Content(NamedTuple):
    """The content of an annotation file. Individual images and annotations may still be invalid."""

    names: dict[object, str]  # of the categories, by id
    images: list[Any]
    annotations: list[Any]


def _read(root: Path, path: Path, images: str) -> Draft:
    """Read an annotation file: all its images, and the objects of all its classes.

    Args:
        root: The folder that `images` is relative to.
        path: The annotation file.
        images: The folder of the images.

    Raises:
        UserError: if the file as a whole is invalid. An invalid entry is recorded as a problem in the draft.
    """
    content = _read_content(path)
    draft = Draft(root, list(content.names.values()))
    position_of = _add_images(draft, path, images, content.images)
    content.images.clear()  # to free its memory
    label_of = {category: label for label, category in enumerate(content.names)}
    _add_annotations(draft, path, position_of, label_of, content.annotations)
    return draft


def _read_content(path: Path) -> _Content:
    content = read_json(path)
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        entries, annotations = content["images"], content["annotations"]
        if not isinstance(entries, list) or not isinstance(annotations, list):
            raise TypeError("`images` and `annotations` must be lists")
        if not all(isinstance(name, str) for name in names.values()):
            raise TypeError("the names of `categories` must be text")
        if len(set(names.values())) < len(names):
            raise ValueError("two categories have the same name")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: this is not in COCO's instance format ({type(error).__name__}: {error}); it needs `images`, "
            "`annotations` and `categories`, see https://cocodataset.org/#format-data"
        ) from error
    return _Content(names, entries, annotations)


def _add_images(draft: Draft, path: Path, images: str, entries: Sequence[Any]) -> dict[object, int]:
    """Add the entries of `images` to a draft.

    Returns:
        The position of each image in the draft, by id; -1 for an invalid image.
    """
    position_of: dict[object, int] = {}
    files: set[str] = set()
    for number, entry in enumerate(entries):
        try:
            file, width, height = check_image(entry)
            if entry["id"] in position_of or file in files:
                raise ValueError(f"the id {entry['id']} or the file {file!r} appears twice")
            position_of[entry["id"]] = draft.add_image(
                posixpath.normpath(f"{images}/{file}"), width, height, url=_url(entry)
            )
            files.add(file)
        except (KeyError, TypeError, ValueError) as error:
            draft.add_problem(f"{path}: images[{number}]", explain_entry(error))
            if isinstance(entry, dict) and isinstance(entry.get("id"), int | str):
                position_of.setdefault(entry["id"], -1)
    return position_of


def _add_annotations(
    draft: Draft,
    path: Path,
    position_of: Mapping[object, int],
    label_of: Mapping[object, int],
    annotations: list[Any],
) -> None:
    """Add annotations to a draft, and empty the list along the way, because it takes most of the memory."""
    annotations.reverse()  # so that popping from the end keeps the order
    num_annotations = len(annotations)
    while annotations:
        annotation = annotations.pop()
        try:
            position = position_of[annotation["image_id"]]
            label = label_of[annotation["category_id"]]
            if position >= 0:
                add_object(draft, position, label, annotation)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            number = num_annotations - len(annotations) - 1
            draft.add_problem(f"{path}: annotations[{number}]", _explain_annotation(error, annotation))
            _ignore_image(draft, position_of, label_of, annotation)


def _ignore_image(
    draft: Draft, position_of: Mapping[object, int], label_of: Mapping[object, int], annotation: Any
) -> None:
    """Ignore all pixels of an image with an invalid annotation, because any of them may belong to the object."""
    try:
        position, label = position_of[annotation["image_id"]], label_of[annotation["category_id"]]
    except (KeyError, TypeError):
        return
    if position >= 0:
        width, height = draft.sizes[position]
        everything = rle.encode({"size": [height, width], "counts": [0, width * height]}, width, height)
        draft.add_object(position, label, everything.box, everything.area, everything.counts, crowd=True)


def _url(entry: Mapping[str, Any]) -> str:
    url = entry.get("coco_url", "")
    return url if isinstance(url, str) and url.isascii() else ""


def _explain_annotation(error: Exception, annotation: Any) -> str:
    """Explain what is wrong with an invalid annotation, such as a missing image, and suggest a remedy."""
    if isinstance(annotation, dict) and isinstance(error, KeyError):
        for key, where in (("image_id", "images"), ("category_id", "categories")):
            if error.args[0] == annotation.get(key):
                return f"its {key} {error.args[0]!r} is not in `{where}`; correct the annotation, or remove it"
    return explain_entry(error)
