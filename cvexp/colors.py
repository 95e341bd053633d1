"""The colors of classes, in figures, pages and files."""

from __future__ import annotations

# The colors of Okabe and Ito can be distinguished with any kind of color vision.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
BACKGROUND_COLOR = "#E8E8E8"
IGNORED_COLOR = "#FFFFFF"


def color(label: int) -> str:
    """Return the color of a class, counted from 0, as ``#RRGGBB``."""
    return COLORS[label % len(COLORS)]


def color_of_label(label: int) -> str:
    """Return the color of a value in a label map: 0 background, then the classes, 255 ignored."""
    if label == 0:
        return BACKGROUND_COLOR
    return IGNORED_COLOR if label == 255 else color(label - 1)


def palette() -> list[int]:
    """Return the colors of all values of a label map as 256 times red, green and blue, for a palette image."""
    return [int(color_of_label(label)[at : at + 2], 16) for label in range(256) for at in (1, 3, 5)]
