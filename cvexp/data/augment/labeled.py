"""Views of images together with their label maps, for segmentation. Labels are never interpolated.

The pixels of an image have four channels: red, green, blue, and the label. Shapes: see
:mod:`cvexp.data.augment.views`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cvexp.data.augment.colors import ColorChange, ColorJitter, change_colors
from cvexp.data.augment.resize import Regions, resize, take_nearest
from cvexp.data.augment.views import NUM_OF_REGION, BatchView, draw_regions, flip
from cvexp.data.index import IGNORE


class DrawnLabeledView(NamedTuple):
    """The parameters of a :class:`LabeledView` for each image of a batch; see `DrawnView`."""

    regions: Regions
    is_flipped: Tensor
    colors: ColorChange


@dataclass
class LabeledView(BatchView):
    """A random view of an image, and the same region of its label map.

    Attributes:
        size: Side length of the view in pixels, at least 2.
        scale: Smallest and largest share of the image's area that the view shows.
        flip: Probability of a horizontal flip.
        jitter, jitter_probability: See :class:`cvexp.data.augment.views.View`.
    """

    num_chances: ClassVar[int] = NUM_OF_REGION + ColorJitter.num_chances + 1

    size: int
    scale: Sequence[float]
    flip: float
    jitter: Sequence[float]
    jitter_probability: float

    def draw(self, sizes_b2: NDArray[np.int64], chances_bn: NDArray[np.float64]) -> DrawnLabeledView:
        of_region, of_colors, of_flip = np.split(chances_bn, (NUM_OF_REGION, self.num_chances - 1), 1)
        return DrawnLabeledView(
            regions=draw_regions(sizes_b2, self.scale, of_region, self.size),
            is_flipped=torch.from_numpy(of_flip[:, 0] < self.flip),
            colors=ColorJitter(self.jitter, self.jitter_probability, gray=0.0).draw(of_colors),
        )

    def apply(self, pixels_bhwc: Tensor, drawn: DrawnLabeledView) -> tuple[Tensor, Tensor]:
        """Make views (b, 3, s, s) and label maps (b, s, s), both uint8."""
        images = change_colors(resize(pixels_bhwc[..., :3], drawn.regions, self.size), drawn.colors)
        labels = take_nearest(pixels_bhwc[..., 3], drawn.regions, self.size)
        return flip(images, drawn.is_flipped), flip(labels, drawn.is_flipped)


class NothingDrawn(NamedTuple):
    """The parameters of a view that has none."""


class SquareView(BatchView):
    """All of each image, if all images are squares of the same size."""

    def draw(self, sizes_b2: NDArray[np.int64], chances_bn: NDArray[np.float64]) -> NothingDrawn:
        return NothingDrawn()

    def apply(self, pixels_bhwc: Tensor, drawn: NothingDrawn) -> tuple[Tensor, Tensor]:
        """Return images (b, 3, s, s) and label maps (b, s, s), both uint8."""
        return pixels_bhwc[..., :3].permute(0, 3, 1, 2).contiguous(), pixels_bhwc[..., 3].contiguous()


def fit_in_square(pixels_hwc: Tensor, size: int) -> Tensor:
    """Make the view for evaluation: the whole image and its label map in the top left corner of a square.

    The longer side of the image fills the square. The remaining pixels are black and ignored.

    Args:
        pixels_hwc: (h, w, 4) uint8.
        size: Side length of the square in pixels, at least 2.

    Returns:
        (size, size, 4) uint8.
    """
    height, width = fit(pixels_hwc.shape[:2], size)
    out = torch.empty(size, size, 4, dtype=torch.uint8)
    out[..., 3] = IGNORE
    out[..., :3] = fit_image(pixels_hwc[..., :3], size).permute(1, 2, 0)
    labels_hw = pixels_hwc[..., 3]
    out[:height, :width, 3] = F.interpolate(labels_hw[None, None], (height, width), mode="nearest-exact")[0, 0]
    return out


def fit_image(pixels_hwc: Tensor, size: int) -> Tensor:
    """Make the view for evaluation of an image without labels, (h, w, 3) to (3, size, size); see `fit_in_square`."""
    height, width = fit(pixels_hwc.shape[:2], size)
    out = torch.zeros(3, size, size, dtype=torch.uint8)
    out[:, :height, :width] = resize_image(pixels_hwc, (height, width))
    return out


def resize_image(pixels_hwc: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an image (h, w, 3) uint8 with an antialiased bicubic filter to (3, *size)."""
    image_chw = pixels_hwc.permute(2, 0, 1).contiguous()  # PyTorch rounds differently in other memory formats
    return F.interpolate(image_chw[None], size, mode="bicubic", antialias=True)[0]


def fit(sides: Sequence[int], size: int) -> tuple[int, int]:
    """Return the two sides of an image, in the same order, scaled to make the longer one `size`."""
    first, second = (max(1, round(side * size / max(sides))) for side in sides)
    return first, second
