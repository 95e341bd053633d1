"""Images ranked by how well they were segmented."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cvexp.metrics.iou import Counts, mean_iou


def best_median_worst(counts: Sequence[Counts], areas: NDArray[np.int64], num_images: int) -> dict[str, list[int]]:
    """Return positions of images that have a class, by the mean of the runs' mIoU of that image.

    Images that are mostly ignored are left out, because their mIoU says little, unless all images are like that.

    Args:
        counts: Of each run, (images, 1 + c, 3).
        areas: The number of pixels of each image, ignored ones included, (images,).
        num_images: How many of each kind; fewer if there are not enough images.
    """
    scores = np.mean([mean_iou(of_run[:, 1:]) for of_run in counts], axis=0)
    labeled = counts[0][:, 1:, 2].any(axis=1)
    is_judged = labeled & (2 * counts[0][:, :, 2].sum(axis=1) >= areas)
    ranked = set(np.flatnonzero(is_judged if is_judged.any() else labeled).tolist())
    order = [int(i) for i in np.argsort(-scores, kind="stable") if i in ranked]
    num_images = max(1, min(num_images, len(order) // 3))
    middle = (len(order) - num_images) // 2
    return {"best": order[:num_images], "median": order[middle : middle + num_images], "worst": order[-num_images:]}
