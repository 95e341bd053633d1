"""The style of all figures, and names as figures show them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextPath

from cvexp.colors import COLORS

# Together with the colors of classes, markers can be distinguished even without color.
MARKERS = ("o", "s", "^", "*", "P", "D", "v", "X")

# Figures are drawn at their size in print, one or two columns wide, so that their text is readable there.
COLUMN, PAGE = 3.3, 6.9  # inches
DPI = 220
SCREEN_DPI = 110  # of the pictures of each epoch in MLflow, which take time and space
SMALL = 6.5  # points, the font size of the text next to a picture

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "text.parse_math": False,  # a class may be called $x$
    "axes.titlesize": 8,
    "figure.titlesize": 8.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.dpi": DPI,
    "legend.frameon": False,
}


def marker(label: int) -> str:
    """Return the Matplotlib marker of a class."""
    return MARKERS[(label // len(COLORS) + label) % len(MARKERS)]


def shorten(name: str, max_length: int = 40) -> str:
    """Return a name on one line, without its middle if it has more than `max_length` characters."""
    name = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", name)
    head = max_length * 2 // 3
    return name if len(name) <= max_length else f"{name[:head]}…{name[len(name) - (max_length - head - 1) :]}"


def drawable(name: str, max_length: int = 24) -> str:
    """Return a shortened name for a figure, with □ for characters that the font lacks, which avoids warnings."""
    available = _font_characters()
    return "".join(c if ord(c) in available else "□" for c in shorten(name, max_length))


@lru_cache(maxsize=1024)
def fitting(name: str, inches: float) -> str:
    """Return a name for a figure, shortened until it fits a width in the font size `SMALL`."""
    texts = (drawable(name, length) for length in range(24, 3, -1))
    return next((text for text in texts if not text or _inches(text) <= inches), drawable(name, 3))


def _inches(text: str) -> float:
    return float(TextPath((0, 0), text, size=SMALL).get_extents().width) / 72


def state_of(epoch: int) -> str:
    """Return the state of training, for a title: ``untrained`` for epoch 0, else ``after epoch N``."""
    return "untrained" if epoch == 0 else f"after epoch {epoch}"


@cache
def _font_characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def add_legend(figure: Figure, handles: Sequence[Artist], loc: str = "outside lower center", **kwargs: Any) -> None:
    """Add a legend below a figure. The figure grows by its height; labels wider than the figure are shortened."""
    width, handle_width, letter_width = figure.get_figwidth(), 0.4, 0.065  # inches
    labels = [shorten(str(handle.get_label()), int((width - handle_width) / letter_width)) for handle in handles]
    for handle, label in zip(handles, labels, strict=True):
        handle.set_label(label)
    num_columns = max(1, min(len(handles), int(width / (handle_width + letter_width * max(map(len, labels))))))
    figure.set_figheight(figure.get_figheight() + 0.16 * -(-len(handles) // num_columns))
    figure.legend(handles=handles, loc=loc, ncols=num_columns, **kwargs)  # type: ignore[call-overload]
