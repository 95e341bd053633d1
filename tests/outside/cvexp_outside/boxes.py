"""`dataset=boxes`: images with labeled boxes, listed in the file boxes.csv; the mask of an object is its whole box."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cvexp.config import DatasetConfig
from cvexp.data.catalog import Draft
from cvexp.data.files.rle import encode_array
from cvexp.data.prepare import Recipe, Use
from cvexp.errors import UserError


@dataclass(kw_only=True)
class Config(DatasetConfig):
    pass


def recipes(config: Config, use: Use) -> tuple[Recipe, Recipe]:
    """Return how the catalogs of both splits are made."""
    root = Path(config.root).absolute()
    path = root / "boxes.csv"
    if not path.is_file():
        raise UserError(f"dataset.root: there is no {path}; check dataset.root=")
    train, val = (Recipe([str(root)], [path], partial(_read, root, path, split)) for split in ("train", "val"))
    return train, val


def _read(root: Path, path: Path, split: str) -> Draft:
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
        classes = sorted({row["class"] for row in rows})
    draft = Draft(root, classes)
    images: dict[str, int] = {}
    for row in rows:
        width, height = int(row["image_width"]), int(row["image_height"])
        left, top, right, bottom = (int(row[key]) for key in ("left", "top", "right", "bottom"))
        if row["file"] not in images:
            images[row["file"]] = draft.add_image(row["file"], width, height)
        mask = np.zeros((height, width), dtype=np.bool_)
        mask[top:bottom, left:right] = True
        box = (left, top, right - left, bottom - top)
        draft.add_object(images[row["file"]], classes.index(row["class"]), box, int(mask.sum()), encode_array(mask))
    return draft
