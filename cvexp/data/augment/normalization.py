"""Normalization of images with the mean and standard deviation of each channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalization(nn.Module):
    """Normalizes images with the mean and standard deviation of a data set.

    Args:
        mean, std: Mean and standard deviation of red, green and blue, for values from 0 to 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) uint8 to float32 with about zero mean and unit variance, in channels-last format.

        Convolutions are faster in this format.
        """
        return images.float().sub_(self.mean).div_(self.std).contiguous(memory_format=torch.channels_last)

    def invert(self, images: Tensor) -> Tensor:
        """Map normalized images back to uint8."""
        return (images * self.std + self.mean).round().clamp(0, 255).byte()
