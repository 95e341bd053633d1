"""Masks as COCO's run lengths: from polygons and from run lengths that nobody has checked yet.

The bytes are pycocotools' compressed "counts": the lengths of the runs of 0 and 1, column by column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

MOST_PIXELS = 2**27  # of an image: 134 million
LONGEST_OUTLINE = 2e6  # in pixels: pycocotools takes 100 bytes for each


class Mask(NamedTuple):
    """One object's mask.

    Attributes:
        counts: Compressed run lengths.
        area: In pixels.
        box: Left, top, width and height of the smallest box around it; all 0 for an empty mask.
    """

    counts: bytes
    area: int
    box: tuple[float, float, float, float]


def encode(segmentation: Any, width: int, height: int) -> Mask:
    """The mask of an annotation's `segmentation`: polygons, or run lengths, compressed or not.

    What reaches over the image's edge is cut off there, as pycocotools does.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, width, height)
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation, dict):
        encoded = _encode_runs(segmentation, width, height)
    else:
        raise ValueError(f"`segmentation` is neither polygons nor run lengths, but {str(segmentation)[:40]!r}")
    left, top, box_width, box_height = coco_mask.toBbox(encoded).tolist()
    return Mask(encoded["counts"], int(coco_mask.area(encoded)), (left, top, box_width, box_height))


def encode_array(mask_hw: NDArray[np.bool_]) -> bytes:
    """(h, w) bool as compressed run lengths."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask_hw.astype(np.uint8)))["counts"]
    return counts


def decode(counts: bytes, width: int, height: int) -> NDArray[np.bool_]:
    """Compressed run lengths that were checked to (h, w) bool."""
    mask: NDArray[np.bool_] = coco_mask.decode({"size": [height, width], "counts": counts}).view(np.bool_)
    return mask


def _check_polygon(polygon: Any, width: int, height: int) -> None:
    if not isinstance(polygon, list) or not all(type(value) in (int, float) for value in polygon):
        raise ValueError(f"a polygon is no list of numbers, but {str(polygon)[:40]!r}")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon has {len(polygon)} coordinates; it needs pairs of x and y, at least three")
    x, y = polygon[0::2], polygon[1::2]
    least, most = (min(x), min(y)), (max(x), max(y))
    if not math.isfinite(sum(polygon)):
        raise ValueError("a polygon has a coordinate that is infinite or no number")
    size = f"of the image of {width} x {height} px"
    if most[0] < 0 or most[1] < 0 or least[0] > width or least[1] > height:
        raise ValueError(f"a polygon lies outside {size}: x {least[0]:g} to {most[0]:g}, y {least[1]:g} to {most[1]:g}")
    if least[0] < -width or least[1] < -height or most[0] > 2 * width or most[1] > 2 * height:
        raise ValueError(
            f"a polygon reaches far out {size}: x {least[0]:g} to {most[0]:g}, y {least[1]:g} to {most[1]:g}"
        )
    if len(x) * max(most[0] - least[0], most[1] - least[1]) > LONGEST_OUTLINE:  # it may be, so count
        corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        if np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum() > LONGEST_OUTLINE:
            raise ValueError(f"the outline of a polygon is longer than {LONGEST_OUTLINE:g} px")


def _encode_runs(segmentation: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    if segmentation.get("size") != [height, width]:
        raise ValueError(
            f"the run lengths are of a mask of (height, width) {segmentation.get('size')}, "
            f"the image is [{height}, {width}]"
        )
    counts = segmentation.get("counts")
    if isinstance(counts, list) and all(type(value) is int and value >= 0 for value in counts):
        runs: Sequence[int] = counts
    elif isinstance(counts, str):
        runs = _runs(counts)
    else:
        raise ValueError(f"the run lengths are neither whole numbers nor compressed text, but {str(counts)[:40]!r}")
    if sum(runs) != width * height:
        raise ValueError(f"the run lengths cover {sum(runs)} pixels, the image has {width * height}")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode()}
    encoded: dict[str, Any] = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return encoded


def _runs(text: str) -> list[int]:
    """The run lengths in COCO's compressed text: six bits a character, each from the third on as a difference.

    pycocotools reads such a text too, but doesn't check it: it would write outside its memory.
    """
    try:
        sextets = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        sextets = np.array([-1])
    if not len(sextets) or sextets.min() < 0 or sextets.max() > 63 or sextets[-1] & 32:
        raise ValueError("the run lengths are no compressed text of COCO's")
    ends = np.flatnonzero(sextets & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digit = np.arange(len(sextets)) - np.repeat(starts, ends - starts + 1)
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
