"""Intersection over union, from counts of pixels, so that one number means the same for every method.

Counts are (..., c, 3) int64: of each class the pixels in which prediction and label agree, those predicted, those
labeled. Counts of several images add up. Ignored pixels count nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvexp.metrics.names import safe_name

Counts = NDArray[np.int64]


def count_labels(predicted: Tensor, labels: Tensor, classes: int, ignore: int) -> Tensor:
    """Counts of each image, from label maps.

    Args:
        predicted: (b, h, w), 0 background, then the classes.
        labels: The same, and `ignore` where nothing counts.
        classes: How many there are without the background.
        ignore: The value in `labels` of pixels that don't count.

    Returns:
        (b, 1 + classes, 3), the background first.
    """
    size = 1 + classes
    valid = labels != ignore
    image = torch.arange(len(labels), device=labels.device)[:, None, None].expand(labels.shape)
    cell = (image[valid] * size + labels[valid].long()) * size + predicted[valid].long()
    confusion = torch.bincount(cell, minlength=len(labels) * size * size).view(-1, size, size)  # (b, label, predicted)
    return torch.stack([confusion.diagonal(dim1=1, dim2=2), confusion.sum(1), confusion.sum(2)], dim=-1)


def count_masks(predicted: Tensor, labels: Tensor, asked: Tensor, ignore: int) -> Tensor:
    """Counts of each image and class asked for, each mask by itself.

    Args:
        predicted: (b, q, h, w) bool.
        labels: (b, h, w), 0 background, then the classes; `ignore` where nothing counts.
        asked: (b, q), which class each mask is of, counted from 0.
        ignore: The value in `labels` of pixels that don't count.

    Returns:
        (b, q, 3).
    """
    valid = (labels != ignore)[:, None]
    labeled = labels[:, None].long() == asked[:, :, None, None] + 1
    predicted = predicted & valid
    return torch.stack([(mask.flatten(2).sum(-1)) for mask in (predicted & labeled, predicted, labeled)], dim=-1)


def iou(counts: Counts) -> NDArray[np.float64]:
    """The IoU of each class, (..., c, 3) to (..., c); NaN for one that is neither predicted nor labeled."""
    intersection, predicted, labeled = np.moveaxis(counts, -1, 0)
    union = predicted + labeled - intersection
    values: NDArray[np.float64] = np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)
    return values


def mean_iou(counts: Counts) -> NDArray[np.float64]:
    """The mean over the classes that have an IoU, (..., c, 3) to (...); NaN where none has."""
    values = iou(counts)
    defined = ~np.isnan(values)
    number = defined.sum(axis=-1)
    total = np.asarray(np.where(defined, values, 0.0).sum(axis=-1))
    mean: NDArray[np.float64] = np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)
    return mean


def image_iou(counts: Counts) -> float:
    """The course's formula: intersection / (union + 1) of each image and class, and the mean of all these.

    The course took batches instead of images; pairs of which neither prediction nor label has a pixel are left out.

    Args:
        counts: (images, c, 3).
    """
    intersection, predicted, labeled = np.moveaxis(counts, -1, 0)
    union = predicted + labeled - intersection
    pairs = union > 0
    return float((intersection[pairs] / (union[pairs] + 1)).mean()) if pairs.any() else float("nan")


def presence_f1(counts: Counts) -> float:
    """How well it is told which classes are in which image: F1 over all images and classes, of non-empty masks.

    Args:
        counts: (images, c, 3).
    """
    predicted, labeled = counts[..., 1] > 0, counts[..., 2] > 0
    wrong = (predicted != labeled).sum()
    right = (predicted & labeled).sum()
    return float(2 * right / (2 * right + wrong)) if right + wrong else float("nan")


def count_constant(counts: Counts, label: int) -> Counts:
    """The counts that predicting one label for every pixel would give.

    Args:
        counts: (images, 1 + c, 3) of any prediction of the same images, the background first.
        label: 0 for background, then the classes.
    """
    labeled = counts[..., 2]
    constant = np.zeros_like(counts)
    constant[..., 2] = labeled
    constant[:, label, 0] = labeled[:, label]
    constant[:, label, 1] = labeled.sum(axis=1)
    return constant


def summarize(counts: Counts, classes: Sequence[str]) -> dict[str, float]:
    """All scores of a data set by name; those that are not defined are left out.

    Args:
        counts: (images, 1 + c, 3), the background first.
        classes: The c names.

    Returns:
        `miou` (mean over the classes), `miou_all` (with the background), `pixel_accuracy`, `miou_image` (the course's
        formula), `presence_f1`, and `iou/CLASS` for each class and the background, with `safe_name` of its name.
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
