"""Views of images for pretraining, as in DINO (appendix C of the paper), which uses BYOL's augmentations.

A view is drawn for a whole batch in two parts. `draw` turns uniform random numbers into parameters for each image, on
the CPU. `apply` changes the pixels, on whatever device they are.

Shapes: b images, padded to h x w pixels, c channels, n random numbers for each image, views of s x s pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvexp.data.augment.blur import blur, kernels
from cvexp.data.augment.colors import ColorChange, ColorJitter, change_colors
from cvexp.data.augment.resize import Regions, resize

NUM_ATTEMPTS = 10  # at a region that fits into the image
NUM_OF_REGION = 2 * NUM_ATTEMPTS + 2  # random numbers that a region takes
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))  # logarithm of the smallest and largest ratio of width to height
SIGMA = (0.1, 2.0)  # smallest and largest standard deviation of the blur in pixels


class BatchView(ABC):
    """Makes a view of each image in a batch.

    Attributes:
        num_chances: Number of uniform random numbers that each image takes, n.
    """

    num_chances: ClassVar[int] = 0

    @abstractmethod
    def draw(self, sizes_b2: NDArray[np.int64], chances_bn: NDArray[np.float64]) -> Any:
        """Choose the parameters of the view of each image.

        Args:
            sizes_b2: Height and width of each image.
            chances_bn: Random numbers from 0 to 1, excluding 1.

        Returns:
            A NamedTuple of tensors, for `apply`.
        """

    @abstractmethod
    def apply(self, pixels_bhwc: Tensor, drawn: Any) -> Any:
        """Make the views of images (b, h, w, c) uint8, usually as (b, 3, s, s) uint8."""


class DrawnView(NamedTuple):
    """The parameters of a :class:`View` for each image of a batch.

    Attributes:
        regions: Which region is shown.
        is_flipped: (b,) bool.
        colors: The change of colors.
        blurred: The m images that are blurred, (m,) int64.
        kernels: Their kernels, (m, k).
        solarized: The images that are solarized, (m,) int64; another m.
    """

    regions: Regions
    is_flipped: Tensor
    colors: ColorChange
    blurred: Tensor
    kernels: Tensor
    solarized: Tensor


@dataclass
class View(BatchView):
    """A random view: a region of the image, resized, flipped, with other colors, blurred and solarized.

    Attributes:
        size: Side length of the view in pixels, at least 2.
        scale: Smallest and largest share of the image's area that the view shows.
        flip, gray, blur, solarize: Probability of each operation.
        jitter: Maximum change in brightness, contrast, saturation and hue.
        jitter_probability: Probability that brightness, contrast, saturation and hue change.
    """

    num_chances: ClassVar[int] = NUM_OF_REGION + ColorJitter.num_chances + 4

    size: int
    scale: Sequence[float]
    flip: float
    jitter: Sequence[float]
    jitter_probability: float
    gray: float
    blur: float
    solarize: float

    def draw(self, sizes_b2: NDArray[np.int64], chances_bn: NDArray[np.float64]) -> DrawnView:
        of_region, of_colors, others = np.split(chances_bn, (NUM_OF_REGION, NUM_OF_REGION + ColorJitter.num_chances), 1)
        flip_b, blur_b, sigma_b, solarize_b = others.T
        blurred = np.flatnonzero(blur_b < self.blur)
        sigma_m = torch.from_numpy(SIGMA[0] + (SIGMA[1] - SIGMA[0]) * sigma_b[blurred]).float()
        return DrawnView(
            regions=draw_regions(sizes_b2, self.scale, of_region, self.size),
            is_flipped=torch.from_numpy(flip_b < self.flip),
            colors=ColorJitter(self.jitter, self.jitter_probability, self.gray).draw(of_colors),
            blurred=torch.from_numpy(blurred),
            kernels=kernels(sigma_m, max(3, self.size // 10 | 1)),  # about a tenth of the view, as in SimCLR
            solarized=torch.from_numpy(np.flatnonzero(solarize_b < self.solarize)),
        )

    def apply(self, pixels_bhwc: Tensor, drawn: DrawnView) -> Tensor:
        images_bcss = flip(resize(pixels_bhwc, drawn.regions, self.size), drawn.is_flipped)
        images_bcss = change_colors(images_bcss, drawn.colors)
        if len(drawn.blurred):
            images_bcss.index_copy_(0, drawn.blurred, blur(images_bcss[drawn.blurred], drawn.kernels))
        if len(drawn.solarized):
            images_bcss.index_copy_(0, drawn.solarized, solarize(images_bcss[drawn.solarized]))
        return images_bcss


@dataclass
class CenterView(BatchView):
    """The view for evaluation: the center square of an image whose shorter side is resized to the view's size.

    Attributes:
        size: Side length of the view in pixels, at least 2.
    """

    size: int

    def draw(self, sizes_b2: NDArray[np.int64], chances_bn: NDArray[np.float64]) -> Regions:
        resized_b2 = self.size * sizes_b2 // sizes_b2.min(1, keepdims=True)
        box_b4 = np.concatenate([np.zeros_like(sizes_b2), sizes_b2], 1)
        first_b2 = np.rint((resized_b2 - self.size) / 2).astype(np.int64)
        return Regions(*map(torch.from_numpy, (box_b4, resized_b2, first_b2)))

    def apply(self, pixels_bhwc: Tensor, drawn: Regions) -> Tensor:
        return resize(pixels_bhwc, drawn, self.size)

    def show(self, pixels_hwc: Tensor) -> Tensor:
        """Map one image (h, w, 3) uint8 to its view (3, s, s) uint8."""
        sizes_b2 = np.array([pixels_hwc.shape[:2]])
        return self.apply(pixels_hwc[None], self.draw(sizes_b2, np.empty((1, 0))))[0]


def draw_regions(
    sizes_b2: NDArray[np.int64], scale: Sequence[float], chances_bn: NDArray[np.float64], size: int
) -> Regions:
    """Draw a region of each image, as torchvision's `RandomResizedCrop` does.

    Args:
        sizes_b2: Height and width of each image.
        scale: Smallest and largest share of the image's area.
        chances_bn: Random numbers (b, `NUM_OF_REGION`).
        size: Height and width to which the regions are resized.
    """
    area_ba, ratio_ba, place_b2 = np.split(chances_bn, (NUM_ATTEMPTS, 2 * NUM_ATTEMPTS), 1)
    area_ba = sizes_b2.prod(1, keepdims=True) * (scale[0] + (scale[1] - scale[0]) * area_ba)
    ratio_ba = np.exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * ratio_ba)
    drawn_ba2 = np.rint(np.sqrt(np.stack([area_ba / ratio_ba, area_ba * ratio_ba], 2))).astype(np.int64)
    fits_ba = ((drawn_ba2 > 0) & (drawn_ba2 <= sizes_b2[:, None])).all(2)
    region_b2 = drawn_ba2[np.arange(len(sizes_b2)), fits_ba.argmax(1)]
    first_b2 = (place_b2 * (sizes_b2 - region_b2 + 1)).astype(np.int64)
    if len(failed := np.flatnonzero(~fits_ba.any(1))):  # the largest central region of a permitted shape
        height_m, width_m = sizes_b2[failed].T
        smallest, largest = np.exp(LOG_RATIO)
        tallest_m, widest_m = np.rint(width_m / smallest).astype(np.int64), np.rint(height_m * largest).astype(np.int64)
        region_b2[failed] = np.stack([np.minimum(height_m, tallest_m), np.minimum(width_m, widest_m)], 1)
        first_b2[failed] = (sizes_b2[failed] - region_b2[failed]) // 2
    box_b4 = np.concatenate([first_b2, region_b2], 1)
    resized_b2 = np.full_like(sizes_b2, size)
    return Regions(*map(torch.from_numpy, (box_b4, resized_b2, np.zeros_like(sizes_b2))))


def flip(images: Tensor, is_flipped_b: Tensor) -> Tensor:
    """Flip some of the images or label maps of a batch (b, ..., w) horizontally."""
    return torch.where(is_flipped_b.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)


def solarize(images: Tensor) -> Tensor:
    """Invert the bright half of all values, from 128 on, in images (uint8)."""
    return torch.minimum(images, 255 - images)  # an inverted dark value would be larger
