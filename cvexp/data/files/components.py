"""Objects from masks that give only the class of each pixel: every connected component is one object."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cvexp.data.catalog import Draft
from cvexp.data.files.images import read_mask
from cvexp.data.files.parallel import in_parallel
from cvexp.data.mask_table import MaskTable, Values
from cvexp.data.problems import Problem
from cvexp.errors import UserError

MAX_COLORS = 40  # unknown ones in a mask that are named one by one

Component = tuple[int, tuple[int, int, int, int], int]


class _Mask(NamedTuple):
    """The content of a mask file: its width, its height, its components, and the number of ignored pixels."""

    width: int
    height: int
    components: list[Component]
    num_ignored: int


def components(values_hw: Values, values: Sequence[int]) -> list[Component]:
    """Find the 4-connected components of each class.

    Args:
        values_hw: (h, w), the value of each pixel; see :class:`MaskTable`.
        values: The values of the classes. Pixels with other values belong to no object.

    Returns:
        For each component: its class, as a position in `values`; its left, top, width and height; its area in pixels.
    """
    all_components: list[Component] = []
    present = set(np.unique(values_hw).tolist())
    for label, value in enumerate(values):
        if value not in present:
            continue
        parts, _ = ndimage.label(values_hw == value)
        areas = np.bincount(parts.ravel())[1:].tolist()
        for (rows, columns), area in zip(ndimage.find_objects(parts), areas, strict=True):
            box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            all_components.append((label, box, area))
    return all_components


def add_masked_images(draft: Draft, files: Sequence[str], mask_files: Sequence[str], remedy: str) -> None:
    """Add images with mask files to a draft, with the components of the masks as objects.

    Args:
        draft: Specifies the classes and the table of the values in the masks.
        files: The images, relative to the draft's root.
        mask_files: Their masks, relative to the draft's root.
        remedy: What to do about an unknown value. It may have the placeholder `{value}`.
    """
    table = draft.mask_table

    def read(mask_file: str) -> _Mask | Problem:
        try:
            values = read_mask(draft.root / mask_file, table.has_colors)
        except UserError as error:
            where, _, what = str(error).partition(": ")
            return Problem(where, what)
        if unknown := table.unknown(values):
            return _unknown_values(str(draft.root / mask_file), values, unknown, table, remedy)
        found = components(values, table.classes)
        return _Mask(values.shape[1], values.shape[0], found, table.num_ignored(values))

    masks = in_parallel(ThreadPoolExecutor(os.cpu_count()), read, mask_files, "reading masks")
    for file, mask_file, mask in zip(files, mask_files, masks, strict=True):
        if isinstance(mask, Problem):
            draft.problems.append(mask)
            continue
        image = draft.add_image(file, mask.width, mask.height, mask_file=mask_file, ignored=mask.num_ignored)
        for label, box, area in mask.components:
            draft.add_object(image, label, box, area)


def _unknown_values(where: str, values: Values, unknown: Sequence[int], table: MaskTable, remedy: str) -> Problem:
    """Return the problem with a mask that has unknown values."""
    if table.has_colors and not (values % 0x10101).any():  # a gray image
        numbers = tuple(str(value // 0x10101) for value in unknown)
        what = "the gray {value}, but dataset.mask_values lists colors; for gray masks, list numbers, such as {road: 1}"
        return Problem(where, what, numbers)
    if table.has_colors and len(unknown) > MAX_COLORS:
        return Problem(
            where,
            f"the mask has {len(unknown)} colors that stand for nothing, such as {table.name(unknown[0])}; JPEG and "
            f"smooth resizing mix colors, so save masks as PNG and resize them without smoothing, or {remedy}",
        )
    kind = "color" if table.has_colors else "number"
    meanings = [
        f"{table.name(value)} ({meaning})"
        for value, meaning in ((table.background, "background"), (table.ignored, "ignored"))
        if value is not None
    ]
    neither = f"neither a class nor {' nor '.join(meanings)}" if meanings else "no class"
    what = f"the {kind} {{value}}, which is {neither}; {remedy}"
    return Problem(where, what, tuple(map(table.name, unknown)))
