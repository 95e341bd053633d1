"""Pictures of what a network predicts for the user's own images.

Shapes: an image of h x w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cvexp.report.segmentation import Captioned, grid

VIEWED, THUMBNAIL = 1280, 256  # pixels, the longer side of pictures to look at, and on the contact sheet
MAX_RATIO = 3  # of the longer side to the shorter one on the contact sheet; what is beyond is cut off


class SheetRow(NamedTuple):
    """An image of the contact sheet.

    Attributes:
        name: The name of the file.
        image: (h, w, 3) uint8.
        labels: (h, w) uint8.
        attention: The attention map (h, w) of the class that is most probably present, or None.
        query: The name of that class.
    """

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    attention: NDArray[np.float32] | None
    query: str


def thumbnail(array: NDArray[Any], longest: int) -> NDArray[Any]:
    """Reduce an image (h, w, 3), a map (h, w) or a label map (h, w) uint8 so that its longer side is at most `longest`.

    The pixels of label maps are taken, not interpolated.
    """
    height, width = array.shape[:2]
    scale = min(1.0, longest / max(height, width))
    is_labels = array.ndim == 2 and array.dtype == np.uint8
    resampling = Image.Resampling.NEAREST if is_labels else Image.Resampling.BOX
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(array).resize(size, resampling))


def contact_sheet(rows: Sequence[SheetRow], classes: Sequence[str], title: str) -> Figure:
    """Draw images, predictions, and attention maps if there are any, with a row for each image.

    Args:
        rows: The images, at the size of thumbnails.
        classes: Class names of the network.
        title: Title of the figure.
    """
    drawn = []
    for row in rows:
        top, left = (max(0, side - MAX_RATIO * min(row.labels.shape)) // 2 for side in row.labels.shape)
        inside = np.s_[top : len(row.labels) - top, left : row.labels.shape[1] - left]
        image = row.image[inside].astype(np.float32) / 255
        pictures: dict[str, Any] = {
            "image": Captioned(image, row.name),
            "prediction": row.labels[inside],
        }
        if row.attention is not None:
            pictures["attention"] = Captioned((image, row.attention[inside]), f"query:\n{row.query}")
        drawn.append((None, pictures))
    return grid(drawn, classes, title)
