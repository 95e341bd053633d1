"""Pictures that are much smaller than their views: enlarging them takes time and adds no detail."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cvexp.data.index import Index

CONSIDERABLE = 2.0
STEP = 16  # suggested sizes are multiples of this many pixels, the size of a vision transformer's patches
SMALLEST = 32  # pixels, which networks that halve the resolution five times need


def suitable_size(sides: NDArray[np.number], size: int) -> int | None:
    """Return a size that suits pictures that views would enlarge considerably; None if most are large enough.

    Args:
        sides: (n,) of the pictures, in pixels.
        size: The side of the views, in pixels.
    """
    if not len(sides) or size < CONSIDERABLE * (side := float(np.median(sides))):
        return None
    suitable = max(SMALLEST, STEP * round(side / STEP))
    return suitable if suitable < size else None


def crop_advice(train: Index, sizes: Mapping[str, int]) -> str | None:
    """Return a line to print if a pretraining enlarges its crops considerably, and otherwise None.

    Args:
        train: The training crops.
        sizes: Side lengths of its views in pixels, by the configuration key that sets them.
    """
    sides = train.box[:, 2:].max(axis=1)
    largest = max(sizes.values())
    if (suitable := suitable_size(sides, largest)) is None:
        return None
    # In proportion, but no view becomes smaller than half of the smallest global one, unless it is.
    suited = {key: max(suitable * size // largest, min(size, SMALLEST // 2)) for key, size in sizes.items()}
    keys = " ".join(f"{key}={size}" for key, size in suited.items())
    return _advice("crops", sides, largest, keys)


def image_advice(train: Index, size: int) -> str | None:
    """Return a line to print if segmentation enlarges its images considerably to `dataset.image_size`."""
    sides = train.catalog.size[train.images].max(axis=1)
    if (suitable := suitable_size(sides, size)) is None:
        return None
    return _advice("images", sides, size, f"dataset.image_size={suitable}")


def _advice(pictures: str, sides: NDArray[np.number], size: int, keys: str) -> str:
    return (
        f"warning: the training {pictures} (median side: {np.median(sides):.0f} px) are enlarged to {size} px, which "
        f"takes time and adds no detail; {keys} would suit them"
    )
