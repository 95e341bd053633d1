"""Views of images together with their label maps, for segmentation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cvexp.data.augment.colors import ColorJitter
from cvexp.data.index import IGNORE


class LabeledView(nn.Module):
    """A random view of an image, and the same region of its label map. Labels are never interpolated.

    Args:
        size: Side length of the view in pixels, at least 2.
        scale: Smallest and largest share of the image's area that the view shows.
        flip: Probability of a horizontal flip.
        jitter, jitter_probability: See :func:`cvexp.data.augment.views.view`.
    """

    def __init__(
        self, size: int, scale: Sequence[float], flip: float, jitter: Sequence[float], jitter_probability: float
    ) -> None:
        super().__init__()
        bicubic = v2.InterpolationMode.BICUBIC  # for the image; torchvision always uses nearest for tv_tensors.Mask
        crop = v2.RandomResizedCrop(size, tuple(scale), interpolation=bicubic, antialias=True)
        self.crop_and_flip = v2.Compose([crop, v2.RandomHorizontalFlip(flip)])
        self.colors = ColorJitter(jitter, jitter_probability, gray=0.0)

    def forward(self, image: tv_tensors.Image, labels: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        """Map an image (3, h, w) and its labels (h, w), both uint8, to (3, size, size) and (size, size)."""
        image, labels = self.crop_and_flip(image, labels)
        return self.colors(image.as_subclass(Tensor)), labels.as_subclass(Tensor)


class PlainLabeledView(nn.Module):
    """The view for evaluation: the whole image and its label map in the top left corner of a square.

    The longer side of the image fills the square. The remaining pixels are black in the view and ignored
    in the label map.

    Args:
        size: Side length of the square in pixels, at least 2.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: tv_tensors.Image, labels: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        """Map an image (3, h, w) and its labels (h, w), both uint8, to (3, size, size) and (size, size)."""
        height, width = fit(image.shape[-2:], self.size)
        padding = [0, 0, self.size - width, self.size - height]
        image = F.resize(image, [height, width], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        labels = F.resize(labels, [height, width], interpolation=v2.InterpolationMode.NEAREST_EXACT)
        return F.pad(image, padding).as_subclass(Tensor), F.pad(labels, padding, fill=IGNORE).as_subclass(Tensor)


def fit(sides: Sequence[int], size: int) -> list[int]:
    """Return the two sides of an image, in the same order, scaled to make the longer one `size`."""
    return [max(1, round(side * size / max(sides))) for side in sides]
