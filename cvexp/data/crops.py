"""Object crops for pretraining, read from the original images on demand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cvexp.data.augment.views import BatchView
from cvexp.data.batches import Batches, PendingViews
from cvexp.data.files.images import cut
from cvexp.data.index import Index
from cvexp.data.kept import Images


class Crops:
    """The crops of an index: the smallest square around each object's box, clipped to the image.

    A crop is square because the views are square and would distort or cut off a narrow box.

    Args:
        index: The objects.
        resolution: The shorter side, in pixels, that a crop needs for the views. Larger crops are reduced, which saves
            time and memory.
    """

    num_channels = 3

    def __init__(self, index: Index, resolution: float = math.inf) -> None:
        self.index = index
        left, top, width, height = index.box.astype(np.float64).T
        side = np.maximum(width, height)
        x, y = left + width / 2 - side / 2, top + height / 2 - side / 2
        image_width, image_height = index.catalog.size[index.image].T
        # At least one pixel, because a box may have no area or touch the image's edge only from outside.
        x0, y0 = np.clip(x.astype(int), 0, image_width - 1), np.clip(y.astype(int), 0, image_height - 1)
        x1, y1 = np.rint(x + side).astype(int), np.rint(y + side).astype(int)
        x1, y1 = np.clip(x1, x0 + 1, image_width), np.clip(y1, y0 + 1, image_height)
        self.boxes = np.stack([x0, y0, x1, y1], 1)
        sides = np.stack([y1 - y0, x1 - x0], 1)
        self.scale = np.minimum(resolution / sides.min(1, initial=2**31), 1.0)
        self.sizes = np.maximum(np.rint(sides * self.scale[:, None]), 1).astype(np.int64)

    def read(self, position: int) -> NDArray[np.uint8]:
        """Read a crop, (h, w, 3)."""
        return np.array(self.picture(position))

    def picture(self, position: int) -> Image.Image:
        """Read a crop.

        Raises:
            UserError: if the file is missing or broken. The message names the file.
        """
        image = int(self.index.image[position])
        size = self.index.size(image)
        picture = self.index.read_image(image, at_least=float(self.scale[position]))
        height, width = self.sizes[position].tolist()
        return cut(picture, self.boxes[position].tolist(), size, (width, height))


class CropBatches(Batches):
    """Batches of views of crops with their labels, (views, labels (b,) int64); see :class:`Batches`.

    Args:
        index: The objects.
        images: Their crops.
        views, seed, is_pending: See :class:`Batches`.
    """

    def __init__(
        self, index: Index, images: Images, views: Sequence[BatchView], seed: int, is_pending: bool = False
    ) -> None:
        super().__init__(images, views, seed, is_pending)
        self.label = index.label

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> tuple[PendingViews | list[Any], Tensor]:  # type: ignore[override]
        labels_b = self.label[[position for _, position in keys]]
        return super().__getitem__(keys), torch.from_numpy(labels_b).long()
