"""Random changes of color.

Shapes: b images, c channels, h x w pixels, p = h * w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)


class ColorChange(NamedTuple):
    """A linear change of the colors of each image: matrix @ color + offset @ (mean color of the image).

    Attributes:
        matrix: (b, 3, 3) float32.
        offset: (b, 3) float32, a multiple of the weights of the luma.
    """

    matrix: Tensor
    offset: Tensor


@dataclass
class ColorJitter:
    """Randomly change brightness, contrast, saturation and hue, or drop the color altogether.

    Brightness, contrast and saturation follow torchvision, except that values are clipped only at the end. The hue is
    rotated in the chroma plane of YIQ, not in HSV's hexagon, to preserve the luma. All changes are linear and applied
    as one 3 x 3 matrix and one offset, which is much faster than separate operations.

    Attributes:
        strength: Maximum changes: three relative changes of brightness, contrast and saturation, and that of the hue as
            a fraction of a full turn.
        probability: Probability that brightness, contrast, saturation and hue change.
        gray: Probability that the image becomes gray.
    """

    num_chances: ClassVar[int] = 6

    strength: Sequence[float]
    probability: float
    gray: float

    def draw(self, chances_bn: NDArray[np.float64]) -> ColorChange:
        """Draw the changes of b images from uniform random numbers (b, `num_chances`)."""
        changes_b4 = np.asarray(self.strength) * (2 * chances_bn[:, 1:5] - 1)
        changes_b4[chances_bn[:, 0] >= self.probability] = 0
        factors_b3 = np.maximum(1 + changes_b4[:, :3], 0)
        factors_b3[chances_bn[:, 5] < self.gray, 2] = 0
        brightness_b, contrast_b, saturation_b = factors_b3.T
        return color_change(brightness_b, contrast_b, saturation_b, changes_b4[:, 3])


def color_change(
    brightness_b: NDArray[np.float64],
    contrast_b: NDArray[np.float64],
    saturation_b: NDArray[np.float64],
    hue_b: NDArray[np.float64],
) -> ColorChange:
    """Compute the linear change for factors of brightness, contrast and saturation, and a hue in turns, each (b,)."""
    angle_b = 2 * np.pi * hue_b
    chroma_b33 = np.zeros((len(hue_b), 3, 3))
    chroma_b33[:, 0, 0] = 1
    chroma_b33[:, 1, 1] = chroma_b33[:, 2, 2] = saturation_b * np.cos(angle_b)
    chroma_b33[:, 2, 1] = saturation_b * np.sin(angle_b)
    chroma_b33[:, 1, 2] = -chroma_b33[:, 2, 1]
    matrix_b33 = (brightness_b * contrast_b)[:, None, None] * (YIQ_TO_RGB @ chroma_b33 @ RGB_TO_YIQ)
    offset_b3 = ((1 - contrast_b) * brightness_b)[:, None] * RGB_TO_YIQ[0]
    return ColorChange(torch.from_numpy(matrix_b33).float(), torch.from_numpy(offset_b3).float())


def change_colors(images_bchw: Tensor, change: ColorChange) -> Tensor:
    """Change the colors of images (b, 3, h, w) uint8."""
    pixels_bcp = images_bchw.flatten(2).float()
    offset_b = (change.offset * pixels_bcp.mean(2)).sum(1)
    changed_bcp = torch.baddbmm(offset_b[:, None, None], change.matrix, pixels_bcp)
    return changed_bcp.round_().clamp_(0, 255).byte().view_as(images_bchw)
