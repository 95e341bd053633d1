"""Ranking of images by their mIoU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cvexp.metrics.iou import Counts, mean_iou


def best_median_worst(counts: Sequence[Counts], areas: NDArray[np.int64], num_images: int) -> dict[str, list[int]]:
    """Return positions of the images with the best, median and worst mIoU, averaged over the runs.

    Images without labeled classes are left out. So are images with more ignored than labeled pixels, because their
    mIoU is unreliable, unless there are no others.

    Args:
        counts: Pixel counts of each run (images, 1 + c, 3), see `cvexp.metrics.iou`.
        areas: Number of pixels of each image, including ignored pixels, (images,).
        num_images: Number of images of each category; fewer if there are not enough images.

    Returns:
        Positions of `best`, `median` and `worst` images.
    """
    scores = np.mean([mean_iou(run_counts[:, 1:]) for run_counts in counts], axis=0)
    is_labeled = counts[0][:, 1:, 2].any(axis=1)
    is_reliable = is_labeled & (2 * counts[0][:, :, 2].sum(axis=1) >= areas)
    ranked = set(np.flatnonzero(is_reliable if is_reliable.any() else is_labeled).tolist())
    order = [int(i) for i in np.argsort(-scores, kind="stable") if i in ranked]
    num_images = max(1, min(num_images, len(order) // 3))
    middle = (len(order) - num_images) // 2
    return {"best": order[:num_images], "median": order[middle : middle + num_images], "worst": order[-num_images:]}
