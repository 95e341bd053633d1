"""Entries of annotation files in COCO's format (https://cocodataset.org/#format-data), which may be invalid."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvexp.data.catalog import Draft
from cvexp.data.files import rle
from cvexp.data.files.images import leaves_folder
from cvexp.errors import UserError


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: if the file can't be read or is not valid JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: it can't be read ({error.strerror}); check dataset.root= and the file's permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: this is not valid JSON ({error}); fetch or save the file again") from error


def check_image(entry: Mapping[str, Any]) -> tuple[str, int, int]:
    """Return the file name, width and height in an entry of `images`.

    Raises:
        KeyError, TypeError, ValueError: if the entry is invalid. The message says what is wrong.
    """
    file, width, height = entry["file_name"], entry["width"], entry["height"]
    if not isinstance(file, str) or not file:
        raise TypeError(f"`file_name` is not text, but {file!r}")
    file.encode()  # a lone surrogate raises a ValueError
    if leaves_folder(file):
        raise ValueError(f"the file name {file!r} leads outside the folder of the images")
    if type(width) is not int or type(height) is not int or min(width, height) < 1:
        raise ValueError(f"`width` and `height` of {file} are {width!r} and {height!r}, not positive whole numbers")
    if width * height > rle.MAX_PIXELS:
        raise ValueError(f"{file} has {width} x {height} px, more than can be decoded")
    return file, width, height


def add_object(draft: Draft, image: int, label: int, annotation: Mapping[str, Any]) -> None:
    """Add an annotation to a draft. Without `bbox`, the box of the mask is used.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: if the annotation is invalid. The message says what is wrong.
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
    """Raise a ValueError unless a box is valid and lies at least partly in the image."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        raise ValueError(f"`bbox` is not a list of four numbers, but {str(box)[:40]!r}")
    left, top, box_width, box_height = box
    if not math.isfinite(sum(box)) or min(box_width, box_height) < 0:
        raise ValueError(f"`bbox` is {box}, but its numbers must be finite, and its width and height at least 0")
    if left >= width or top >= height or left + box_width < 0 or top + box_height < 0:
        raise ValueError(f"the box {box} lies outside the image of {width} x {height} px")


def explain_entry(error: Exception) -> str:
    """Explain what is wrong with an invalid entry of an annotation file, and suggest a remedy."""
    problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return f"{problem}; correct the entry, or remove it"
