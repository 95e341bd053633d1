"""One look for all figures."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; markers for print without colour.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "*", "P", "D", "v", "X")

STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.dpi": 120,
    "legend.frameon": False,
}


def color(label: int) -> str:
    return COLORS[label % len(COLORS)]


def marker(label: int) -> str:
    return MARKERS[(label // len(COLORS) + label) % len(MARKERS)]
