"""Figures of many small pictures, composed as one image, which is faster than a plot for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cvexp.report.style import DPI, PAGE, SMALL, STYLE, add_legend, fitting

SIDES = (0.5, 1.12)  # inches, the smallest and largest side of a tile
GAP = 0.03  # inches between the tiles
MIN_WIDTH = 3.6  # inches, for the title
LINE = 0.13  # inches, the height of a line of text
LETTER = 0.06  # inches, about the width of a letter


class Tile(NamedTuple):
    """A picture of any size, with a short text below it.

    Attributes:
        picture: (h, w, 3).
        caption: The text, whose lines are shortened to the width of a tile.
        is_smooth: Whether to interpolate when the picture is enlarged, which hides its pixels.
        color: The color of the text.
    """

    picture: NDArray[np.uint8]
    caption: str = ""
    is_smooth: bool = True
    color: str = "black"


def draw_tiles(
    rows: Sequence[Sequence[Tile]],
    columns: Sequence[str],
    title: str,
    dpi: int = DPI,
    *,
    sides: tuple[float, float] = SIDES,
    names: Sequence[str] = (),
    legend: Sequence[Artist] = (),
) -> Figure:
    """Draw pictures in rows and columns. Each fills a square as far as its aspect ratio permits.

    Args:
        rows: The pictures.
        columns: The title of each column.
        title: The title of the figure.
        dpi: Resolution of the figure.
        sides: The smallest and largest side of a tile in inches.
        names: A text to the left of each row; none by default.
        legend: The entries of a legend below the tiles; none by default.
    """
    names = names or [""] * len(rows)
    beside = LINE * _num_lines(names)
    side = min(max((PAGE - beside) / len(columns), sides[0]), sides[1]) - GAP
    above = LINE * (1.7 + 1.1 * title.count("\n") + _num_lines(columns))
    heights = [
        max(side * max(_shape(tile)[0] for tile in row), LETTER * max(map(len, name.split("\n"))))
        for row, name in zip(rows, names, strict=True)
    ]
    below = [GAP + LINE * _num_lines([tile.caption for tile in row]) for row in rows]
    lefts = [beside + column * (side + GAP) + GAP / 2 for column in range(len(columns))]
    tops = [above + sum(heights[:number]) + sum(below[:number]) for number in range(len(rows))]
    width, height = beside + (side + GAP) * len(columns), above + sum(heights) + sum(below)
    text: dict[str, Any] = {"ha": "center", "fontsize": SMALL}
    with rc_context(STYLE):
        ax = _create_axes(width, height, title, dpi, legend)
        pixels = np.full((round(height * dpi), round(width * dpi), 3), 255, np.uint8)
        for row, top, high in zip(rows, tops, heights, strict=True):
            for tile, left in zip(row, lefts, strict=False):  # the last row may have fewer
                _paste(pixels, tile, (left * dpi, top * dpi), (side * dpi, high * dpi))
                caption = _fitted(tile.caption, side)
                ax.text(left + side / 2, top + high + 0.02, caption, va="top", color=tile.color, **text)
        for name, left in zip(columns, lefts, strict=True):
            ax.text(left + side / 2, above - 0.04, _fitted(name, side), va="bottom", **text)
        for name, top, high in zip(names, tops, heights, strict=True):
            ax.text(beside / 2, top + high / 2, name, va="center", rotation=90, **text)
        ax.imshow(pixels, extent=(0, width, height, 0), interpolation="none", aspect="auto")
    return cast(Figure, ax.figure)


def _create_axes(width: float, height: float, title: str, dpi: int, legend: Sequence[Artist]) -> Axes:
    """Create a figure around an area of a size in inches, and return the axes of that area, in inches from its top."""
    page = max(width, MIN_WIDTH)
    figure = Figure(figsize=(page, height), dpi=dpi)
    if legend:
        add_legend(
            figure, legend, loc="lower center", fontsize=7, handlelength=1.4, handletextpad=0.5, columnspacing=1.2
        )
    total = figure.get_figheight()
    ax = figure.add_axes(((1 - width / page) / 2, 1 - height / total, width / page, height / total))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    figure.suptitle(title, y=1 - 0.03 / total, va="top")
    return ax


def _fitted(text: str, inches: float) -> str:
    return "\n".join(fitting(line, inches) for line in text.split("\n"))


def _num_lines(texts: Sequence[str]) -> int:
    """Return the number of lines of the longest text."""
    return max((text.count("\n") + 1 for text in texts if text), default=0)


def _shape(tile: Tile) -> tuple[float, float]:
    """Return the height and width of a picture in a square of side 1."""
    height, width = tile.picture.shape[:2]
    return height / max(height, width), width / max(height, width)


def _paste(pixels: NDArray[np.uint8], tile: Tile, corner: tuple[float, float], place: tuple[float, float]) -> None:
    """Resize a picture to fill a square as wide as its place, and put it into the middle of the place."""
    size = [max(1, round(place[0] * length)) for length in reversed(_shape(tile))]
    resampling = Image.Resampling.BICUBIC if tile.is_smooth else Image.Resampling.NEAREST
    resized = np.asarray(Image.fromarray(tile.picture).resize((size[0], size[1]), resampling))
    x, y = (round(start + (room - length) / 2) for start, room, length in zip(corner, place, size, strict=True))
    target = pixels[y : y + size[1], x : x + size[0]]
    target[:] = resized[: target.shape[0], : target.shape[1]]
