"""Pictures much smaller than the views made of them: enlarging them takes time and adds no detail."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cvexp.data.index import Index

CONSIDERABLE = 2.0
STEP = 16  # pixels, of the sizes that are suggested: what a vision transformer's patches have
SMALLEST = 32  # pixels; networks that halve the resolution five times need as many


def suitable_size(sides: NDArray[np.number], size: int) -> int | None:
    """A size that suits pictures that views would enlarge considerably; None where most are large enough.

    Args:
        sides: (n,) of the pictures, in pixels.
        size: The side of the views, in pixels.
    """
    if not len(sides) or size < CONSIDERABLE * (side := float(np.median(sides))):
        return None
    suitable = max(SMALLEST, STEP * round(side / STEP))
    return suitable if suitable < size else None


def crop_advice(train: Index, size: int) -> str | None:
    """The line to print where pretraining enlarges its crops considerably.

    Args:
        train: The training crops.
        size: The side of the largest views, in pixels.
    """
    sides = train.box[:, 2:].max(axis=1)
    if (suitable := suitable_size(sides, size)) is None:
        return None
    keys = f"task.global_size={suitable} task.local_size={suitable // 2} task.eval_size={suitable}"
    return _advice("crops", sides, size, keys)


def image_advice(train: Index, size: int) -> str | None:
    """The line to print where segmentation enlarges its images considerably; `size` is `dataset.image_size`."""
    sides = train.catalog.size[train.images].max(axis=1)
    if (suitable := suitable_size(sides, size)) is None:
        return None
    return _advice("images", sides, size, f"dataset.image_size={suitable}")


def _advice(pictures: str, sides: NDArray[np.number], size: int, keys: str) -> str:
    return (
        f"warning: the training {pictures} (median side: {np.median(sides):.0f} px) are enlarged to {size} px, which "
        f"takes time and adds no detail; {keys} would suit them"
    )
