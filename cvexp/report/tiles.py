"""Figures of many small pictures, composed as one image, which is faster than a plot for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cvexp.report.style import DPI, NARROW, PAGE, SMALL, STYLE, drawable

SIDES = (0.5, 1.12)  # inches, the smallest and largest side of a tile
GAP = 0.03  # inches between the tiles
MIN_WIDTH = 3.6  # inches, for the title
LINE = 0.13  # inches, the height of a line of text


class Tile(NamedTuple):
    """A picture of any size, with a short text below it.

    Attributes:
        picture: (h, w, 3).
        caption: The text.
        is_smooth: Whether to interpolate when the picture is enlarged, which hides its pixels.
    """

    picture: NDArray[np.uint8]
    caption: str = ""
    is_smooth: bool = True


def draw_tiles(rows: Sequence[Sequence[Tile]], columns: Sequence[str], title: str, dpi: int = DPI) -> Figure:
    """Draw pictures in rows and columns. Each fills a square as far as its aspect ratio permits.

    Args:
        rows: The pictures.
        columns: The title of each column.
        title: The title of the figure.
        dpi: Resolution of the figure.
    """
    side = min(max(PAGE / len(columns), SIDES[0]), SIDES[1]) - GAP
    below = GAP + LINE * any(tile.caption for row in rows for tile in row)
    above = LINE * (2.7 + 1.1 * title.count("\n"))
    width, height = (side + GAP) * len(columns), (side + below) * len(rows) + above
    page = max(width, MIN_WIDTH)
    with rc_context(STYLE):
        figure = Figure(figsize=(page, height), dpi=dpi)
        ax = figure.add_axes(((1 - width / page) / 2, 0, width / page, 1))
        ax.set(xlim=(0, width), ylim=(height, 0))
        ax.axis("off")
        pixels = np.full((round(height * dpi), round(width * dpi), 3), 255, np.uint8)
        for number, row in enumerate(rows):
            top = above + number * (side + below)
            for column, tile in enumerate(row):
                left = column * (side + GAP) + GAP / 2
                _paste(pixels, tile.picture, tile.is_smooth, (left * dpi, top * dpi), side * dpi)
                caption = drawable(tile.caption, NARROW + 4)
                ax.text(left + side / 2, top + side + 0.02, caption, ha="center", va="top", fontsize=SMALL)
        ax.imshow(pixels, extent=(0, width, height, 0), interpolation="none", aspect="auto")
        for column, name in enumerate(columns):
            ax.text((column + 0.5) * (side + GAP), above - 0.04, name, ha="center", va="bottom", fontsize=7)
        figure.suptitle(title, y=1 - 0.03 / height, va="top")
    return figure


def _paste(
    pixels: NDArray[np.uint8], picture: NDArray[np.uint8], is_smooth: bool, corner: tuple[float, float], side: float
) -> None:
    """Resize a picture to fill a square of `side` pixels in one direction, and put it into the middle of the square."""
    height, width = picture.shape[:2]
    size = [max(1, round(side * length / max(width, height))) for length in (width, height)]
    resampling = Image.Resampling.BICUBIC if is_smooth else Image.Resampling.NEAREST
    resized = np.asarray(Image.fromarray(picture).resize((size[0], size[1]), resampling))
    x, y = (round(start + (side - length) / 2) for start, length in zip(corner, size, strict=True))
    target = pixels[y : y + size[1], x : x + size[0]]
    target[:] = resized[: target.shape[0], : target.shape[1]]
