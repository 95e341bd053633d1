"""Normalization of images with the mean and standard deviation of each channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalize images (..., 3, h, w) uint8 to float32 with about zero mean and unit variance, on the same device."""
    mean_, std_ = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images.float() / 255 - mean_) / std_


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Invert :func:`normalize`, and round to uint8."""
    mean_, std_ = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return ((images * std_ + mean_) * 255).round().clamp(0, 255).byte()
