"""Any COCO instance annotation file with its images (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import math
import posixpath
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from zipfile import is_zipfile

from omegaconf import MISSING

from cvexp.config import DatasetConfig
from cvexp.data.catalog import Draft
from cvexp.data.files import rle
from cvexp.data.files.archive import unpack
from cvexp.data.files.fetch import Remote, alone, fetch_with_bar
from cvexp.data.files.images import leaves_folder
from cvexp.data.prepare import Recipe, Use
from cvexp.data.split import SplitDataset, split_recipes
from cvexp.errors import UserError

FORMAT = "see https://cocodataset.org/#format-data"


@dataclass(kw_only=True)
class Config(SplitDataset):
    split_keys: ClassVar[tuple[str, str]] = ("train_annotations", "val_annotations")
    train_annotations: str | None = MISSING
    train_images: str | None = MISSING
    val_annotations: str | None = MISSING
    val_images: str | None = MISSING
    download: bool = MISSING
    annotations_url: str = MISSING
    annotations_md5: str | None = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        for split in ("train", "val"):
            if getattr(self, f"{split}_annotations") is not None and getattr(self, f"{split}_images") is None:
                raise UserError(
                    f"dataset.{split}_images: got null, but dataset.{split}_annotations needs its images; give their "
                    f"folder with dataset.{split}_images=PATH"
                )


def recipes(config: Config, use: Use) -> tuple[Recipe | None, Recipe]:
    """How the catalogs of both splits are made; the annotation files are fetched first where that is asked for."""
    if config.download:
        _fetch_annotations(config)

    def make(split: str) -> Recipe:
        annotations, images = getattr(config, f"{split}_annotations"), getattr(config, f"{split}_images")
        return recipe(config, split, annotations, images, fetches=config.download)

    return split_recipes(config, make)


def recipe(config: DatasetConfig, split: str, annotations: str, images: str, fetches: bool = False) -> Recipe:
    """How the catalog of one split is made.

    Raises:
        UserError: where the annotation file or the folder of the images is missing.
    """
    root = Path(config.root).absolute()
    path = root / annotations
    where = f"check dataset.root= and dataset.{split}_annotations=, or fetch it with dataset.download=true"
    if not path.is_file():
        raise UserError(f"dataset.{split}_annotations: there is no file {path}; {where}")
    if not fetches and not (root / images).is_dir():
        raise UserError(f"dataset.{split}_images: there is no folder {root / images}; give dataset.{split}_images=PATH")
    return Recipe([str(root), images], [path], partial(read, root, path, images), fetches)


def _fetch_annotations(config: Config) -> None:
    root = Path(config.root)
    files = [file for file in (config.train_annotations, config.val_annotations) if file is not None]
    with alone(root):
        if all((root / file).is_file() for file in files):
            return
        archive = root / config.annotations_url.rpartition("/")[2]
        is_mine = not archive.exists()
        fetch_with_bar(Remote(config.annotations_url, archive, config.annotations_md5, verify=is_zipfile))
        missing = [file for file in files if not (root / file).is_file()]
        unpacked = root / ".cvexp-annotations"
        shutil.rmtree(unpacked, ignore_errors=True)  # what a former start left
        try:
            unpack(archive, unpacked, wanted=lambda name: name in missing)
            for file in missing:
                if not (unpacked / file).is_file():
                    raise UserError(f"{archive}: there is no {file} in it; correct dataset.annotations_url=")
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (unpacked / file).replace(root / file)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
        if is_mine:
            archive.unlink()


def read(root: Path, path: Path, images: str) -> Draft:
    """The catalog of an annotation file: all its images, and the objects of all its classes.

    Raises:
        UserError: when it is not in COCO's format as a whole; what is wrong with a part of it is noted in the draft.
    """
    content = read_json(path)
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        entries, annotations = content["images"], content["annotations"]
        classes = list(names.values())
        if not all(isinstance(value, list) for value in (entries, annotations)) or not all(map(_is_text, classes)):
            raise TypeError("`images` and `annotations` must be lists, and the names of `categories` text")
        if len(set(classes)) < len(classes):
            raise ValueError("two categories have the same name")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: this is not in COCO's instance format ({type(error).__name__}: {error}); it needs `images`, "
            f"`annotations` and `categories`, {FORMAT}"
        ) from error
    label_of = {category: label for label, category in enumerate(names)}
    draft = Draft(root, classes)
    position_of: dict[object, int] = {}  # -1 of an image that is left out
    files: set[str] = set()
    for number, entry in enumerate(entries):
        try:
            file, width, height = check_image(entry)
            if entry["id"] in position_of or file in files:
                raise ValueError(f"the id {entry['id']} or the file {file!r} is there twice; take one out")
            position_of[entry["id"]] = draft.add_image(
                posixpath.normpath(f"{images}/{file}"), width, height, url=_url(entry)
            )
            files.add(file)
        except (KeyError, TypeError, ValueError) as error:
            draft.add_problem(f"{path}: images[{number}]", say(error))
            if isinstance(entry, dict) and isinstance(entry.get("id"), int | str):
                position_of.setdefault(entry["id"], -1)
    entries.clear()
    annotations.reverse()  # so that each can be let go once it is read: they are most of the memory
    count = len(annotations)
    while annotations:
        annotation = annotations.pop()
        try:
            position = position_of[annotation["image_id"]]
            label = label_of[annotation["category_id"]]
            if position >= 0:
                add_object(draft, position, label, annotation)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            number = count - len(annotations) - 1
            draft.add_problem(f"{path}: annotations[{number}]", _explain(error, annotation))
            _ignore_image(draft, position_of, label_of, annotation)
    return draft


def _ignore_image(
    draft: Draft, position_of: Mapping[object, int], label_of: Mapping[object, int], annotation: Any
) -> None:
    """Where an object of a class lies in an image is not known: none of it may count as background."""
    try:
        position, label = position_of[annotation["image_id"]], label_of[annotation["category_id"]]
    except (KeyError, TypeError):
        return
    if position >= 0:
        width, height = draft.sizes[position]
        everything = rle.encode({"size": [height, width], "counts": [0, width * height]}, width, height)
        draft.add_object(position, label, everything.box, everything.area, everything.counts, crowd=True)


def check_image(entry: Mapping[str, Any]) -> tuple[str, int, int]:
    """File name, width and height of an entry of `images`.

    Raises:
        KeyError, TypeError, ValueError: saying what is wrong with it.
    """
    file, width, height = entry["file_name"], entry["width"], entry["height"]
    if not _is_text(file) or not file:
        raise TypeError(f"`file_name` is no text, but {file!r}")
    file.encode()  # half a character of UTF-16 is a ValueError
    if leaves_folder(file):
        raise ValueError(f"the file name {file!r} leaves the folder of the images")
    if type(width) is not int or type(height) is not int or min(width, height) < 1:
        raise ValueError(f"`width` and `height` of {file} are {width!r} and {height!r}, not positive whole numbers")
    if width * height > rle.MOST_PIXELS:
        raise ValueError(f"{file} has {width} x {height} px, more than can be decoded")
    return file, width, height


def add_object(draft: Draft, image: int, label: int, annotation: Mapping[str, Any]) -> None:
    """Add an annotation to a draft; its box is that of its mask where it names none.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: saying what is wrong with it.
    """
    width, height = draft.sizes[image]
    mask = rle.Mask(b"", 0, (0, 0, 0, 0))
    if annotation.get("segmentation") not in (None, []):
        mask = rle.encode(annotation["segmentation"], width, height)
    elif "bbox" not in annotation:
        raise KeyError("bbox")
    box: Sequence[float] = annotation.get("bbox", mask.box)
    _check_box(box, width, height)
    left, top = max(box[0], 0), max(box[1], 0)
    box = [left, top, max(min(box[0] + box[2], width) - left, 0), max(min(box[1] + box[3], height) - top, 0)]
    area = mask.area if mask.counts else round(box[2] * box[3])
    draft.add_object(image, label, box, area, mask.counts, annotation.get("iscrowd", 0) == 1)


def _check_box(box: Any, width: int, height: int) -> None:
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        raise ValueError(f"`bbox` is no list of four numbers, but {str(box)[:40]!r}")
    left, top, box_width, box_height = box
    if not math.isfinite(sum(box)) or min(box_width, box_height) < 0:
        raise ValueError(f"`bbox` is {box}; it needs numbers, left, top, and a width and height of at least 0")
    if left >= width or top >= height or left + box_width < 0 or top + box_height < 0:
        raise ValueError(f"the box {box} lies outside the image of {width} x {height} px")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _url(entry: Mapping[str, Any]) -> str:
    url = entry.get("coco_url", "")
    return url if isinstance(url, str) and url.isascii() else ""


def say(error: Exception) -> str:
    what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return f"{what}; correct it, or take it out"


def _explain(error: Exception, annotation: Any) -> str:
    if isinstance(annotation, dict) and isinstance(error, KeyError):
        for key, where in (("image_id", "images"), ("category_id", "categories")):
            if error.args[0] == annotation.get(key):
                return f"its {key} {error.args[0]!r} is not in `{where}`; correct it, or take it out"
    return say(error)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: when it can't be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: it can't be read ({error.strerror}); check dataset.root= and its permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: this is not JSON ({error}); fetch or write it again") from error
