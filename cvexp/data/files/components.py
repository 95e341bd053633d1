"""Objects from masks that give only the class of each pixel: every connected component is one object."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cvexp.data.catalog import Draft
from cvexp.data.files.images import read_mask
from cvexp.data.files.parallel import in_parallel
from cvexp.data.problems import Problem
from cvexp.errors import UserError

Component = tuple[int, tuple[int, int, int, int], int]


class _Mask(NamedTuple):
    """The content of a mask file: its width, its height and its components."""

    width: int
    height: int
    components: list[Component]


def components(numbers_hw: NDArray[np.uint16], values: Sequence[int]) -> list[Component]:
    """Find the 4-connected components of each class.

    Args:
        numbers_hw: (h, w), the class number of each pixel.
        values: The numbers of the classes. Pixels with other numbers belong to no object.

    Returns:
        For each component: its class, as a position in `values`; its left, top, width and height; its area in pixels.
    """
    all_components: list[Component] = []
    present = set(np.unique(numbers_hw).tolist())
    for label, value in enumerate(values):
        if value not in present:
            continue
        parts, _ = ndimage.label(numbers_hw == value)
        areas = np.bincount(parts.ravel())[1:].tolist()
        for (rows, columns), area in zip(ndimage.find_objects(parts), areas, strict=True):
            box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            all_components.append((label, box, area))
    return all_components


def add_masked_images(draft: Draft, files: Sequence[str], mask_files: Sequence[str], remedy: str) -> None:
    """Add images with mask files to a draft, with the components of the masks as objects.

    Args:
        draft: Specifies the classes and their numbers in the masks.
        files: The images, relative to the draft's root.
        mask_files: Their masks, relative to the draft's root.
        remedy: What to do about an unknown number, with the placeholder `{number}`.
    """
    known = {0, draft.ignore_value, *draft.mask_values}

    def read(mask_file: str) -> _Mask | Problem:
        try:
            numbers = read_mask(draft.root / mask_file)
        except UserError as error:
            where, _, what = str(error).partition(": ")
            return Problem(where, what)
        if unknown := set(np.unique(numbers).tolist()) - known:
            what = "the number {number}, which is neither a class nor 0 (background) nor "
            what += f"{draft.ignore_value} (ignored); {remedy}"
            return Problem(str(draft.root / mask_file), what, tuple(sorted(unknown)))
        return _Mask(numbers.shape[1], numbers.shape[0], components(numbers, draft.mask_values))

    masks = in_parallel(ThreadPoolExecutor(os.cpu_count()), read, mask_files, "reading masks")
    for file, mask_file, mask in zip(files, mask_files, masks, strict=True):
        if isinstance(mask, Problem):
            draft.problems.append(mask)
            continue
        image = draft.add_image(file, mask.width, mask.height, mask_file=mask_file)
        for label, box, area in mask.components:
            draft.add_object(image, label, box, area)
