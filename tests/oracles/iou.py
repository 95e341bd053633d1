"""Intersection over union by plain loops over pixels, to test ours against."""

from collections.abc import Sequence


def class_iou(predicted: Sequence[int], labels: Sequence[int], value: int, ignore: int) -> float | None:
    """The IoU of one value over flat label maps; None where it is neither predicted nor labeled."""
    intersection = union = 0
    for p, y in zip(predicted, labels, strict=True):
        if y == ignore:
            continue
        if p == value and y == value:
            intersection += 1
        if p == value or y == value:
            union += 1
    return intersection / union if union else None
