"""Random changes of color."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ColorJitter(nn.Module):
    """Randomly change brightness, contrast, saturation and hue, or drop the color altogether.

    Brightness, contrast and saturation follow torchvision, except that values are clipped only at the end. The hue is
    rotated in the chroma plane of YIQ, not in HSV's hexagon, to preserve the luma. All changes are linear and applied
    as one 3 x 3 matrix and one offset. This is about nine times as fast as separate operations, and color changes take
    most of the time for small views.

    Args:
        strength: Maximum changes: three relative changes of brightness, contrast and saturation, and that of the hue as
            a fraction of a full turn.
        probability: Probability that brightness, contrast, saturation and hue change.
        gray: Probability that the image becomes gray.
    """

    def __init__(self, strength: Sequence[float], probability: float, gray: float) -> None:
        super().__init__()
        self.strength = strength
        self.probability = probability
        self.gray = gray

    def forward(self, image: Tensor) -> Tensor:
        """Map an image (3, h, w) uint8 to an image of the same shape and type."""
        chances = torch.rand(6, dtype=torch.float64).tolist()
        brightness = contrast = saturation = 1.0
        hue = 0.0
        if chances[0] < self.probability:
            brightness, contrast, saturation = (
                max(1 + strength * (2 * chance - 1), 0.0)
                for strength, chance in zip(self.strength[:3], chances[1:4], strict=True)
            )
            hue = self.strength[3] * (2 * chances[4] - 1)
        if chances[5] < self.gray:
            saturation = 0.0
        if (brightness, contrast, saturation, hue) == (1.0, 1.0, 1.0, 0.0):
            return image
        return change_colors(image, brightness, contrast, saturation, hue)


RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_TO_RGB = torch.linalg.inv(RGB_TO_YIQ)


def change_colors(image: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """Change the colors of an image.

    Args:
        image: (3, h, w) uint8.
        brightness, contrast, saturation: Factors; 1 changes nothing.
        hue: Fraction of a full turn.

    Returns:
        (3, h, w) uint8.
    """
    angle = 2 * math.pi * hue
    rotation = torch.tensor(
        [
            [1.0, 0.0, 0.0],
            [0.0, saturation * math.cos(angle), -saturation * math.sin(angle)],
            [0.0, saturation * math.sin(angle), saturation * math.cos(angle)],
        ]
    )
    pixels = image.flatten(1).float()
    mean_luma = brightness * float(RGB_TO_YIQ[0] @ pixels.mean(1))
    matrix = brightness * contrast * YIQ_TO_RGB @ rotation @ RGB_TO_YIQ
    changed: Tensor = matrix @ pixels + (1 - contrast) * mean_luma
    return changed.round().clamp(0, 255).to(torch.uint8).view_as(image)
