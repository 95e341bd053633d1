"""Which values masks have, and a proposal for `dataset.mask_values`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cvexp.data.files.images import FORMATS, read_mask
from cvexp.data.files.parallel import in_parallel
from cvexp.data.mask_table import MaskTable
from cvexp.errors import UserError

MAX_MASKS = 200  # that are read
MAX_VALUES = 40  # more are no classes

Pixels = dict[int, int]


def propose_values(paths: Sequence[Path]) -> str:
    """Return a message with the values in masks, their shares of the pixels, and settings that name them.

    Args:
        paths: The masks. Of many, only some are read.

    Raises:
        UserError: if none of them can be read.
    """
    needed = "dataset.mask_values: got null, but it must name the class of each value in the masks"
    chosen = sorted({paths[i] for i in np.linspace(0, len(paths) - 1, min(MAX_MASKS, len(paths))).astype(int)})
    has_colors = False
    counted = _count(chosen, has_colors)
    if None in counted:
        with_colors = _count(chosen, has_colors=True)
        if has_colors := counted.count(None) > with_colors.count(None):
            counted = with_colors
    pixels: Counter[int] = Counter()
    for of_mask in counted:
        pixels.update(of_mask or {})
    if not pixels:
        read_mask(chosen[0], has_colors)  # raises what is wrong
        raise UserError(f"{needed}; none of the {len(chosen)} masks could be read")
    table = MaskTable(ignored=0xFFFFFF if has_colors else 255, has_colors=has_colors)
    palette = {} if has_colors else _palette(chosen)
    num_read, kind = len(counted) - counted.count(None), "colors" if has_colors else "numbers"
    shares = [
        f"{table.name(value)}{palette.get(value, '')} ({count / pixels.total():.1%})"
        for value, count in sorted(pixels.items(), key=lambda item: item if not has_colors else (-item[1], item[0]))
    ]
    masks = f"{num_read} mask{'s' * (num_read > 1)}, such as {chosen[0]}, {'have' if num_read > 1 else 'has'}"
    if len(shares) > MAX_VALUES:
        return (
            f"{needed}; but {masks} {len(shares)} {kind}, which are too many for classes, such as "
            f"{', '.join(shares[:5])}; check dataset.train_masks and dataset.mask_suffix, and save masks as PNG, "
            "resized without smoothing"
        )
    return (
        f"{needed}; {masks} these {kind} (with their shares of the pixels): {', '.join(shares)}; {_line(pixels, table)}"
    )


def _line(pixels: Pixels, table: MaskTable) -> str:
    """Return settings to paste, which name the values that are neither background nor ignored by default."""
    values = sorted(set(pixels) - {table.background, table.ignored})
    quote = '"' if table.has_colors else ""
    named = ", ".join(f"class_{i}: {quote}{table.name(value)}{quote}" for i, value in enumerate(values, 1))
    settings = [f"'dataset.mask_values={{{named}}}'"]
    if table.background not in pixels:
        settings.append("dataset.background_value=null")
    by_default = [
        f"{table.name(value)} is {meaning} unless you name it and set dataset.{key} to another value or to null"
        for value, meaning, key in (
            (table.background, "the background", "background_value"),
            (table.ignored, "ignored", "ignore_value"),
        )
        if value in pixels and value is not None
    ]
    return f"rename the classes in these settings, and add them: {' '.join(settings)}" + "".join(
        f"; {sentence}" for sentence in by_default
    )


def _count(paths: Sequence[Path], has_colors: bool) -> list[Pixels | None]:
    """Count the pixels of each value in masks; None for those that can't be read as numbers or colors."""
    return list(in_parallel(ThreadPoolExecutor(os.cpu_count()), partial(_pixels, has_colors), paths, "reading masks"))


def _pixels(has_colors: bool, path: Path) -> Pixels | None:
    try:
        values, counts = np.unique(read_mask(path, has_colors), return_counts=True)
    except UserError:
        return None
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _palette(paths: Sequence[Path]) -> dict[int, str]:
    """Return the colors of palette masks, to add to the numbers, from the first mask."""
    with suppress(OSError), Image.open(paths[0], formats=FORMATS) as image:
        if image.mode == "P" and (palette := image.getpalette("RGB")):
            colors = np.array(palette, dtype=np.uint8).reshape(-1, 3)
            return {i: f" #{bytes(color).hex()}".upper() for i, color in enumerate(colors)}
    return {}
