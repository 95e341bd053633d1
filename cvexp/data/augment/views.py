"""Views of single images for pretraining, as in DINO (appendix C of the paper), which uses BYOL's augmentations."""

from __future__ import annotations

from collections.abc import Sequence

from torchvision.transforms import v2

from cvexp.data.augment.colors import ColorJitter


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
    """Create a transform that draws a random view of an image.

    Args:
        size: Side length of the view in pixels, at least 2.
        scale: Smallest and largest share of the image's area that the view shows.
        flip, gray, blur, solarize: Probability of each operation.
        jitter: Maximum change in brightness, contrast, saturation and hue.
        jitter_probability: Probability that brightness, contrast, saturation and hue change.

    Returns:
        A transform from (3, h, w) uint8 to (3, size, size) uint8.
    """
    kernel = max(3, size // 10 | 1)  # odd, and about a tenth of the view, as in SimCLR
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, tuple(scale), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(flip),
            ColorJitter(jitter, jitter_probability, gray),
            v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], blur),
            v2.RandomSolarize(threshold=128, p=solarize),
        ]
    )


def plain_view(size: int) -> v2.Transform:
    """Create the transform for evaluation, from an image (3, h, w) to its center square (3, size, size), both uint8."""
    return v2.Compose(
        [v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(size)]
    )
