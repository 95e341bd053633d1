"""Any COCO instance annotation file with its images (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from omegaconf import MISSING

from cvexp.config import Dataset, nearest
from cvexp.data.index import Index, Splits
from cvexp.errors import UserError


@dataclass(kw_only=True)
class Config(Dataset):
    train_annotations: str = MISSING
    train_images: str = MISSING
    val_annotations: str = MISSING
    val_images: str = MISSING
    crowds: bool = MISSING


def load(config: Config) -> Splits:
    """The index of both splits.

    Raises:
        UserError: where a file is missing, unreadable or not in COCO's format, a class does not exist, or an image is
            in both splits.
    """
    train = read(config, "train", config.train_annotations, config.train_images)
    val = read(config, "val", config.val_annotations, config.val_images)
    if (train.root, config.train_images) == (val.root, config.val_images) and (
        shared := set(train.files) & set(val.files)
    ):
        raise UserError(
            f"dataset: {len(shared)} images are in the training and in the validation split, among them "
            f"{min(shared)}; validation images must never enter training: take them out of {config.train_annotations}"
        )
    return Splits(train, val)


def read(config: Config, split: str, annotations: str, images: str) -> Index:
    """The index of one split: the objects of `config.classes`, by the order of the annotation file."""
    root = Path(config.root)
    path = root / annotations
    content = _read_json(path, f"dataset.{split}_annotations")
    if not (root / images).is_dir():
        raise UserError(f"dataset.{split}_images: there is no folder {root / images}; give dataset.{split}_images=PATH")
    try:
        categories = {category["name"]: category["id"] for category in content["categories"]}
        for name in config.classes:
            if name not in categories:
                raise UserError(f"dataset.classes: {path} has no class {name!r}; {nearest(name, categories)}")
        label_of = {categories[name]: label for label, name in enumerate(config.classes)}
        file_of = {image["id"]: image["file_name"] for image in content["images"]}
        chosen = [a for a in content["annotations"] if _is_chosen(a, label_of, config)]
        box = np.array([a["bbox"] for a in chosen], dtype=np.float32).reshape(-1, 4)
        of_image = [file_of[a["image_id"]] for a in chosen]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: this is not in COCO's instance format ({type(error).__name__}: {error}); it needs `images`, "
            "`annotations` and `categories`, see https://cocodataset.org/#format-data"
        ) from error
    names = sorted(set(of_image))
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{path}: the file name {name!r} leaves the folder {root / images}; correct it")
    position = {name: i for i, name in enumerate(names)}
    return Index(
        split=split,
        root=root,
        classes=tuple(config.classes),
        files=[f"{images}/{name}" for name in names],
        image=np.array([position[name] for name in of_image], dtype=np.int32),
        label=np.array([label_of[a["category_id"]] for a in chosen], dtype=np.int16),
        box=box,
    )


def _is_chosen(annotation: dict[str, Any], label_of: dict[int, int], config: Config) -> bool:
    return (
        annotation["category_id"] in label_of
        and (config.crowds or not annotation.get("iscrowd", 0))
        and min(annotation["bbox"][2:]) >= config.min_crop_size
    )


def _read_json(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{key}: there is no file {path}; check dataset.root= and {key}=") from error
    except OSError as error:
        raise UserError(f"{key}: {path} can't be read ({error.strerror}); check its permissions and {key}=") from error
    except ValueError as error:
        raise UserError(f"{key}: {path} is not JSON ({error}); fetch or write it again") from error
