"""One look for all figures."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; markers for print without colour.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "*", "P", "D", "v", "X")

# Figures are drawn as large as they stand in print, in one or both of two columns, so that they can be read there.
COLUMN, PAGE = 3.3, 6.9  # inches
DPI = 220
SMALL = 6.5  # points: what stands below a picture

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


def color(label: int) -> str:
    return COLORS[label % len(COLORS)]


def marker(label: int) -> str:
    return MARKERS[(label // len(COLORS) + label) % len(MARKERS)]
