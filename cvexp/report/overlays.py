"""Label maps and attention maps as colors, alone or over an image. Shapes: an image of h x w pixels."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from cvexp.colors import palette
from cvexp.data.index import IGNORE

OPACITY = 0.55  # of the colors over the image
DRAWN = 192  # pixels, at least the longer side of a label map in a figure, so that hatching looks the same in all
STRIPE = 5  # pixels, the width of a line where pixels are ignored


def overlay(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Image.Image:
    """Lay the colors of the classes over an image (h, w, 3) where its label map (h, w) is not background."""
    picture, colors = Image.fromarray(image), Image.fromarray(labels)
    is_class = colors.point([0] + [255] * 255)
    colors.putpalette(palette())
    return Image.composite(Image.blend(picture, colors.convert("RGB"), OPACITY), picture, is_class)


def heat(
    image: NDArray[np.uint8], values: NDArray[np.float32], limits: tuple[float, float] | None = None
) -> Image.Image:
    """Lay a map (h, w) over a gray image (h, w, 3).

    Args:
        image: The image.
        values: The values of the map, such as attention weights.
        limits: The values of the darkest and the brightest color; by default, the smallest and the largest value.
    """
    low, high = limits or (float(values.min()), float(values.max()))
    colors = colormaps["inferno"]((values - low) / (high - low + 1e-12), bytes=True)[..., :3]
    gray = image.mean(axis=2, keepdims=True) * 0.6 + 0.4 * 255
    return Image.fromarray((0.25 * gray + 0.75 * colors).astype(np.uint8))


def label_colors(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a label map (h, w) as colors (h', w', 3), enlarged if it is small: ignored pixels are hatched."""
    scale = -(-DRAWN // max(labels.shape))
    large = labels.repeat(scale, axis=0).repeat(scale, axis=1)
    picture = Image.fromarray(large)
    picture.putpalette(palette())
    colors = np.array(picture.convert("RGB"))
    diagonal = np.add.outer(*map(np.arange, large.shape))
    colors[(large == IGNORE) & (diagonal // STRIPE % 4 == 0)] = 0
    return colors
