"""Masks as COCO's run lengths, made from the polygons or run lengths of annotation files, which are checked.

The bytes are the compressed "counts" of pycocotools: the lengths of the runs of 0 and 1, column by column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

MAX_PIXELS = 2**27  # maximum for an image, 134 million
MAX_OUTLINE = 2e6  # maximum length of a polygon in pixels; pycocotools needs 100 bytes per pixel


class Mask(NamedTuple):
    """The mask of one object.

    Attributes:
        counts: Compressed run lengths.
        area: Number of pixels.
        box: Left, top, width and height of the bounding box; all 0 for an empty mask.
    """

    counts: bytes
    area: int
    box: tuple[float, float, float, float]


def encode(segmentation: Any, width: int, height: int) -> Mask:
    """Convert the `segmentation` of an annotation, given as polygons or as run lengths, compressed or not.

    Polygons are clipped at the edge of the image, as in pycocotools.

    Raises:
        ValueError: if the `segmentation` is invalid. The message says what is wrong.
    """
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, width, height)
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation, dict):
        encoded = _encode_runs(segmentation, width, height)
    else:
        raise ValueError(f"`segmentation` has neither polygons nor run lengths, but {str(segmentation)[:40]!r}")
    left, top, box_width, box_height = coco_mask.toBbox(encoded).tolist()
    return Mask(encoded["counts"], int(coco_mask.area(encoded)), (left, top, box_width, box_height))


def encode_array(mask_hw: NDArray[np.bool_]) -> bytes:
    """Compress a mask (h, w) bool into run lengths."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask_hw.astype(np.uint8)))["counts"]
    return counts


def decode(counts: bytes, width: int, height: int) -> NDArray[np.bool_]:
    """Decompress valid run lengths into a mask (h, w) bool."""
    mask: NDArray[np.bool_] = coco_mask.decode({"size": [height, width], "counts": counts}).view(np.bool_)
    return mask


def _check_polygon(polygon: Any, width: int, height: int) -> None:
    """Raise a ValueError unless a polygon is valid and lies in or near the image."""
    if not isinstance(polygon, list) or not all(type(value) in (int, float) for value in polygon):
        raise ValueError(f"a polygon is not a list of numbers, but {str(polygon)[:40]!r}")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon has {len(polygon)} coordinates, but needs at least three pairs of x and y")
    x, y = polygon[0::2], polygon[1::2]
    left, top, right, bottom = min(x), min(y), max(x), max(y)
    if not math.isfinite(sum(polygon)):
        raise ValueError("a polygon has a coordinate that is infinite or NaN")
    ranges = f"of the image of {width} x {height} px: x {left:g} to {right:g}, y {top:g} to {bottom:g}"
    if right < 0 or bottom < 0 or left > width or top > height:
        raise ValueError(f"a polygon lies outside {ranges}")
    if left < -width or top < -height or right > 2 * width or bottom > 2 * height:
        raise ValueError(f"a polygon extends far out {ranges}")
    if len(x) * max(right - left, bottom - top) > MAX_OUTLINE:  # an upper bound on the length, fast to compute
        corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        if np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum() > MAX_OUTLINE:
            raise ValueError(f"the outline of a polygon is longer than {MAX_OUTLINE:g} px")


def _encode_runs(segmentation: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """Check run lengths, compressed or not, and return them compressed in pycocotools' dictionary format."""
    if segmentation.get("size") != [height, width]:
        raise ValueError(
            f"the run lengths are for a mask of size {segmentation.get('size')} (height, width), but the image "
            f"has [{height}, {width}]"
        )
    counts = segmentation.get("counts")
    if isinstance(counts, list) and all(type(value) is int and value >= 0 for value in counts):
        runs: Sequence[int] = counts
    elif isinstance(counts, str):
        runs = _runs(counts)
    else:
        raise ValueError(f"the run lengths are neither whole numbers nor compressed text, but {str(counts)[:40]!r}")
    if sum(runs) != width * height:
        raise ValueError(f"the run lengths cover {sum(runs)} pixels, but the image has {width * height}")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode()}
    encoded: dict[str, Any] = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return encoded


def _runs(text: str) -> list[int]:
    """Decompress run lengths from COCO's text format.

    Each character holds six bits: five belong to a number, and one says whether the number continues. From the fourth
    run length on, each number is the difference from the run length two places earlier. pycocotools does not check such
    text, and invalid text makes it write outside its memory.
    """
    try:
        sextets = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        sextets = np.array([-1])
    if not len(sextets) or sextets.min() < 0 or sextets.max() > 63 or sextets[-1] & 32:
        raise ValueError("the run lengths are not compressed text in COCO's format")
    ends = np.flatnonzero(sextets & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digit = np.arange(len(sextets)) - np.repeat(starts, ends - starts + 1)  # position of each character in its number
    if digit.max() > 6:
        raise ValueError("a run length is larger than any image")
    values = np.add.reduceat((sextets & 31) << (5 * digit), starts)
    is_negative = sextets[ends] & 16 != 0
    values -= is_negative.astype(np.int64) << (5 * (ends - starts + 1))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0:
        raise ValueError("a run length is negative")
    runs: list[int] = values.tolist()
    return runs
