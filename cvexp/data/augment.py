"""Random views: those that DINO compares (appendix C of the paper; the augmentations are BYOL's), and those of images
with their label maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cvexp.data.index import IGNORE


def view(
    size: int,
    scale: Sequence[float],
    flip: float,
    jitter: Sequence[float],
    jitter_probability: float,
    gray: float,
    blur: float,
    solarize: float,
) -> v2.Transform:
    """A random view of an image.

    Args:
        size: Its side in pixels; at least 2, as PyTorch fails at making images of one pixel.
        scale: The least and the largest share of the image's area that it shows.
        flip, gray, blur, solarize: The probability of each.
        jitter: How far brightness, contrast, saturation and hue may change.
        jitter_probability: How probable it is that they do.

    Returns:
        A transform from (3, h, w) uint8 to (3, size, size) uint8.
    """
    kernel = max(3, size // 10 | 1)  # a tenth of the view, odd, as in SimCLR
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, tuple(scale), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(flip),
            ColorJitter(jitter, jitter_probability, gray),
            v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], blur),
            v2.RandomSolarize(threshold=128, p=solarize),
        ]
    )


class ColorJitter(nn.Module):
    """Random brightness, contrast, saturation, hue and greyness, as one 3 x 3 matrix and one offset for the image.

    Brightness, contrast and saturation are torchvision's, but for what it clips in between. The hue turns in the plane
    of chroma (I and Q of YIQ) instead of HSV's hexagon, so that it leaves the luma as it is. All of it is linear in the
    colours, which is about nine times as fast as one operation after another: with small views most of the work.

    Args:
        strength: How far brightness, contrast and saturation may change, as a fraction, and hue, as a fraction of the
            full turn.
        probability: How probable it is that they do.
        gray: How probable it is that the colours go.
    """

    def __init__(self, strength: Sequence[float], probability: float, gray: float) -> None:
        super().__init__()
        self.strength = strength
        self.probability = probability
        self.gray = gray

    def forward(self, image: Tensor) -> Tensor:
        """(3, h, w) uint8 to the same."""
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
    """(3, h, w) uint8 to the same; the first three are factors, hue is the fraction of a turn."""
    angle = 2 * math.pi * hue
    turn = torch.tensor(
        [
            [1.0, 0.0, 0.0],
            [0.0, saturation * math.cos(angle), -saturation * math.sin(angle)],
            [0.0, saturation * math.sin(angle), saturation * math.cos(angle)],
        ]
    )
    pixels = image.flatten(1).float()
    mean_luma = brightness * float(RGB_TO_YIQ[0] @ pixels.mean(1))
    matrix = brightness * contrast * YIQ_TO_RGB @ turn @ RGB_TO_YIQ
    changed: Tensor = matrix @ pixels + (1 - contrast) * mean_luma
    return changed.round().clamp(0, 255).to(torch.uint8).view_as(image)


class LabelledView(nn.Module):
    """A random view of an image and, of the same place, of its label map, whose labels are never mixed.

    Args:
        size: Its side in pixels; at least 2, as PyTorch fails at making images of one pixel.
        scale: The least and the largest share of the image's area that it shows.
        flip: The probability that left and right change places.
        jitter, jitter_probability: See `view`.
    """

    def __init__(
        self, size: int, scale: Sequence[float], flip: float, jitter: Sequence[float], jitter_probability: float
    ) -> None:
        super().__init__()
        bicubic = v2.InterpolationMode.BICUBIC  # of the image; of tv_tensors.Mask it is the nearest, whatever is asked
        crop = v2.RandomResizedCrop(size, tuple(scale), interpolation=bicubic, antialias=True)
        self.place = v2.Compose([crop, v2.RandomHorizontalFlip(flip)])
        self.colors = ColorJitter(jitter, jitter_probability, gray=0.0)

    def forward(self, image: tv_tensors.Image, labels: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        """(3, h, w) and (h, w), both uint8, to the same of (size, size)."""
        image, labels = self.place(image, labels)
        return self.colors(image.as_subclass(Tensor)), labels.as_subclass(Tensor)


class PlainLabelledView(nn.Module):
    """The view for evaluation: the whole image and its label map, the longer side `size`, in a square's upper left.

    What lies beside is black, and ignored.

    Args:
        size: At least 2.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: tv_tensors.Image, labels: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        """(3, h, w) and (h, w), both uint8, to the same of (size, size)."""
        height, width = fit(image.shape[-2:], self.size)
        beside = [0, 0, self.size - width, self.size - height]
        image = F.resize(image, [height, width], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        labels = F.resize(labels, [height, width], interpolation=v2.InterpolationMode.NEAREST_EXACT)
        return F.pad(image, beside).as_subclass(Tensor), F.pad(labels, beside, fill=IGNORE).as_subclass(Tensor)


def fit(sides: Sequence[int], size: int) -> list[int]:
    """Height and width of an image, or the other way round, as the longer one becomes `size`."""
    return [max(1, round(side * size / max(sides))) for side in sides]


def plain_view(size: int) -> v2.Transform:
    """The view for evaluation: the whole image's middle square, (3, h, w) uint8 to (3, size, size) uint8."""
    return v2.Compose(
        [v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(size)]
    )


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., 3, h, w) uint8 to float32 of about zero mean and unit variance; done on the device, by the batch."""
    mean_, std_ = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images.float() / 255 - mean_) / std_


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What `normalize` was given, as far as uint8 tells."""
    mean_, std_ = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return ((images * std_ + mean_) * 255).round().clamp(0, 255).byte()
