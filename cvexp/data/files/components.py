"""Objects from masks that name only the class of each pixel: what hangs together is one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cvexp.data.catalog import Draft, Problem
from cvexp.data.files.images import read_mask
from cvexp.data.files.progress import in_parallel
from cvexp.errors import UserError

Component = tuple[int, tuple[int, int, int, int], int]


def components(numbers_hw: NDArray[np.uint16], values: Sequence[int]) -> list[Component]:
    """The 4-connected components of each class.

    Args:
        numbers_hw: (h, w), the class number of each pixel.
        values: The numbers of the classes; all others are no objects.

    Returns:
        Of each component: its class as a position in `values`; left, top, width and height; its area.
    """
    found: list[Component] = []
    present = set(np.unique(numbers_hw).tolist())
    for label, value in enumerate(values):
        if value not in present:
            continue
        parts, _ = ndimage.label(numbers_hw == value)
        areas = np.bincount(parts.ravel())[1:].tolist()
        for (rows, columns), area in zip(ndimage.find_objects(parts), areas, strict=True):
            box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            found.append((label, box, area))
    return found


def add_masked_images(draft: Draft, files: Sequence[str], mask_files: Sequence[str], remedy: str) -> None:
    """Add images with their mask files, and the components in these as objects.

    Args:
        draft: Has the classes and the numbers that they have in the masks.
        files: The images, relative to the draft's root.
        mask_files: Their masks, likewise.
        remedy: What to do about a number that is no class, `{number}` in it.
    """
    known = {0, draft.ignore_value, *draft.mask_values}

    def look(mask_file: str) -> tuple[tuple[int, int], list[Component]] | Problem:
        try:
            numbers = read_mask(draft.root / mask_file)
        except UserError as error:
            where, _, what = str(error).partition(": ")
            return Problem(where, what)
        if unknown := set(np.unique(numbers).tolist()) - known:
            what = "the number {number}, which is no class, nor 0 (background), nor "
            what += f"{draft.ignore_value} (ignored); {remedy}"
            return Problem(str(draft.root / mask_file), what, tuple(sorted(unknown)))
        return (numbers.shape[1], numbers.shape[0]), components(numbers, draft.mask_values)

    looks = in_parallel(ThreadPoolExecutor(os.cpu_count()), look, mask_files, "reading masks")
    for file, mask_file, seen in zip(files, mask_files, looks, strict=True):
        if isinstance(seen, Problem):
            draft.problems.append(seen)
            continue
        (width, height), objects = seen
        image = draft.add_image(file, width, height, mask_file=mask_file)
        for label, box, area in objects:
            draft.add_object(image, label, box, area)
