"""Intersection over union from pixel counts, computed in the same way for all methods.

Counts are (..., c, 3) int64. For each class, they are the number of pixels in the intersection of prediction and label,
in the prediction, and in the label. Counts of several images can be summed. Ignored pixels are not counted.

Shapes: b images of h x w pixels, c classes, q queried classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvexp.metrics.names import safe_name

Counts = NDArray[np.int64]


def count_labels(predicted: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count the pixels of each image, from label maps.

    Args:
        predicted: Predicted label maps (b, h, w): 0 background, then the classes.
        labels: Label maps (b, h, w), with `ignore_index` at ignored pixels.
        num_classes: Number of classes without the background.
        ignore_index: Label of ignored pixels.

    Returns:
        (b, 1 + num_classes, 3), the background first.
    """
    size = 1 + num_classes
    row = labels.long().where(labels != ignore_index, size)  # one more row for ignored pixels, which is left out
    cell = (row * size + predicted.long()).flatten(1)
    counts = torch.zeros(len(labels), (size + 1) * size, dtype=torch.int64, device=labels.device)
    # Unlike bincount and a selection of pixels, this does not wait for the device.
    confusion = counts.scatter_add_(1, cell, torch.ones_like(cell)).view(-1, size + 1, size)[:, :size]
    return torch.stack([confusion.diagonal(dim1=1, dim2=2), confusion.sum(1), confusion.sum(2)], dim=-1)


def count_masks(predicted: Tensor, labels: Tensor, queries: Tensor, ignore_index: int) -> Tensor:
    """Count the pixels of each image and queried class, independently of other classes.

    Args:
        predicted: Predicted masks (b, q, h, w) bool.
        labels: Label maps (b, h, w): 0 background, then the classes, with `ignore_index` at ignored pixels.
        queries: The class of each mask, counted from 0, (b, q).
        ignore_index: Label of ignored pixels.

    Returns:
        (b, q, 3).
    """
    valid = (labels != ignore_index)[:, None]
    labeled = labels[:, None].long() == queries[:, :, None, None] + 1
    predicted = predicted & valid
    return torch.stack([mask.flatten(2).sum(-1) for mask in (predicted & labeled, predicted, labeled)], dim=-1)


def iou(counts: Counts) -> NDArray[np.float64]:
    """Compute the IoU of each class, (..., c, 3) to (..., c); NaN for a class that is neither predicted nor labeled."""
    intersection, predicted, labeled = np.moveaxis(counts, -1, 0)
    union = predicted + labeled - intersection
    values: NDArray[np.float64] = np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)
    return values


def mean_iou(counts: Counts) -> NDArray[np.float64]:
    """Compute the mean over the classes whose IoU is not NaN, (..., c, 3) to (...); NaN if there are none."""
    values = iou(counts)
    is_defined = ~np.isnan(values)
    num_defined = is_defined.sum(axis=-1)
    total = np.asarray(np.where(is_defined, values, 0.0).sum(axis=-1))
    nan = np.full(num_defined.shape, np.nan)
    mean: NDArray[np.float64] = np.divide(total, num_defined, out=nan, where=num_defined > 0)
    return mean


def image_iou(counts: Counts) -> float:
    """Compute the mean of intersection / (union + 1) over all pairs of an image and a class: the course's formula.

    Pairs are left out if neither prediction nor label has a pixel of the class. The course computed the formula for
    batches instead of images.

    Args:
        counts: (images, c, 3).
    """
    intersection, predicted, labeled = np.moveaxis(counts, -1, 0)
    union = predicted + labeled - intersection
    pairs = union > 0
    return float((intersection[pairs] / (union[pairs] + 1)).mean()) if pairs.any() else float("nan")


def presence_f1(counts: Counts) -> float:
    """Compute the F1 score of class presence, over all pairs of an image and a class.

    A class is present in a prediction or label that has any pixel of it.

    Args:
        counts: (images, c, 3).
    """
    predicted, labeled = counts[..., 1] > 0, counts[..., 2] > 0
    num_wrong = (predicted != labeled).sum()
    num_right = (predicted & labeled).sum()
    return float(2 * num_right / (2 * num_right + num_wrong)) if num_right + num_wrong else float("nan")


def count_constant(counts: Counts, label: int) -> Counts:
    """Return the counts of a prediction of the same label for every pixel.

    Args:
        counts: Counts (images, 1 + c, 3) of any prediction for the same images, the background first.
        label: 0 for background, then the classes.
    """
    labeled = counts[..., 2]
    constant = np.zeros_like(counts)
    constant[..., 2] = labeled
    constant[:, label, 0] = labeled[:, label]
    constant[:, label, 1] = labeled.sum(axis=1)
    return constant


def summarize(counts: Counts, classes: Sequence[str]) -> dict[str, float]:
    """Compute all scores of a data set by name, without those that are undefined.

    Args:
        counts: (images, 1 + c, 3), the background first. It has no pixels if the data have no background.
        classes: The names of the c classes.

    Returns:
        `miou` (mean over the classes), `miou_all` (including the background), `pixel_accuracy`, `miou_image` (the
        course's formula), `presence_f1`, and `iou/NAME` for each class and the background, where NAME is the
        `safe_name` of the class. Without a background, `miou_all` equals `miou`.
    """
    total = counts.sum(axis=0)
    scores = {
        "miou": float(mean_iou(total[1:])),
        "miou_all": float(mean_iou(total)),
        "pixel_accuracy": float(total[:, 0].sum() / total[:, 2].sum()) if total[:, 2].any() else float("nan"),
        "miou_image": image_iou(counts[:, 1:]),
        "presence_f1": presence_f1(counts[:, 1:]),
        **{
            f"iou/{safe_name(name)}": float(value)
            for name, value in zip(("background", *classes), iou(total), strict=True)
        },
    }
    return {name: value for name, value in scores.items() if not np.isnan(value)}
