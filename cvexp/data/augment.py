"""The random views that DINO compares (appendix C of the paper; the augmentations are BYOL's)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2


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
        size: Its side in pixels.
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
            v2.RandomApply([v2.ColorJitter(*jitter)], jitter_probability),
            v2.RandomGrayscale(gray),
            v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], blur),
            v2.RandomSolarize(threshold=128, p=solarize),
        ]
    )


def plain_view(size: int) -> v2.Transform:
    """The view for evaluation: the whole image's middle square, (3, h, w) uint8 to (3, size, size) uint8."""
    return v2.Compose(
        [v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(size)]
    )


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., 3, h, w) uint8 to float32 of about zero mean and unit variance; done on the device, by the batch."""
    mean_, std_ = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images.float() / 255 - mean_) / std_
