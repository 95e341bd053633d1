"""Advice for images that are much smaller than their views: enlarging them takes time and adds no detail."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cvexp.data.index import Index

MIN_FACTOR = 2.0  # smaller enlargements are not worth a warning
STEP = 16  # suggested sizes are multiples of this many pixels, the patch size of vision transformers
MIN_SIZE = 32  # pixels; networks that halve the resolution five times need at least this size


def suitable_size(sides: NDArray[np.number], size: int) -> int | None:
    """Return a smaller size for views if the given size enlarges most images considerably, and None otherwise.

    Args:
        sides: (n,) side lengths of the images in pixels.
        size: Side length of the views in pixels.
    """
    if not len(sides) or size < MIN_FACTOR * (side := float(np.median(sides))):
        return None
    suitable = max(MIN_SIZE, STEP * round(side / STEP))
    return suitable if suitable < size else None


def crop_advice(train: Index, sizes: Mapping[str, int]) -> str | None:
    """Return a line to print if pretraining enlarges its crops considerably, and None otherwise.

    Args:
        train: The training crops.
        sizes: Side lengths of the views in pixels, by the configuration key that sets each.
    """
    sides = train.box[:, 2:].max(axis=1)
    largest = max(sizes.values())
    if (suitable := suitable_size(sides, largest)) is None:
        return None
    # Keep the proportions, but avoid views smaller than half of MIN_SIZE, which networks may not accept.
    suited = {key: max(suitable * size // largest, min(size, MIN_SIZE // 2)) for key, size in sizes.items()}
    keys = " ".join(f"{key}={size}" for key, size in suited.items())
    return _advice("crops", sides, largest, keys)


def image_advice(train: Index, size: int) -> str | None:
    """Return a line to print if segmentation enlarges its images considerably, and None otherwise.

    Args:
        train: The training images.
        size: `dataset.image_size`.
    """
    sides = train.catalog.size[train.images].max(axis=1)
    if (suitable := suitable_size(sides, size)) is None:
        return None
    return _advice("images", sides, size, f"dataset.image_size={suitable}")


def _advice(images: str, sides: NDArray[np.number], size: int, keys: str) -> str:
    return (
        f"warning: the training {images} (median side: {np.median(sides):.0f} px) are enlarged to {size} px, which "
        f"takes time and adds no detail; {keys} would suit them"
    )
