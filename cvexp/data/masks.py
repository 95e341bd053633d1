"""Images with their label maps for segmentation, read from the original files on demand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cvexp.data.augment.labeled import SquareView, fit, fit_in_square
from cvexp.data.augment.views import BatchView
from cvexp.data.batches import Batches, PendingViews
from cvexp.data.files.images import cut
from cvexp.data.index import Index
from cvexp.data.kept import Images


class LabeledImages:
    """The images of an index, with their label maps as a fourth channel; see :meth:`Index.label_map`.

    Args:
        index: The images.
        resolution: The square root of the area, in pixels, that an image needs for the views. Larger images are
            reduced, which saves time and memory.
    """

    num_channels = 4

    def __init__(self, index: Index, resolution: float = math.inf) -> None:
        self.index = index
        sides = index.catalog.size[index.images][:, ::-1].astype(np.float64)
        self.scale = np.minimum(resolution / np.sqrt(sides.prod(1)), 1.0)
        self.sizes = np.maximum(np.rint(sides * self.scale[:, None]), 1).astype(np.int64)

    def read(self, position: int) -> NDArray[np.uint8]:
        """Read an image and its label map, (h, w, 4).

        Raises:
            UserError: if a file is missing or broken. The message names the file.
        """
        image = int(self.index.images[position])
        size = self.index.size(image)
        height, width = self.sizes[position].tolist()
        picture = self.index.read_image(image, at_least=float(self.scale[position]))
        labels = self.index.label_map(image)
        if labels.shape != (height, width):
            labels_11hw = torch.from_numpy(labels)[None, None]
            labels = F.interpolate(labels_11hw, (height, width), mode="nearest-exact")[0, 0].numpy()
        pixels = np.asarray(cut(picture, (0, 0, *size), size, (width, height)))
        return np.dstack([pixels, labels])


class LabeledSquares:
    """The images of an index with their label maps, each fitted into a square for evaluation; see `fit_in_square`.

    Args:
        index: The images.
        size: Side length of the squares in pixels.
    """

    num_channels = 4

    def __init__(self, index: Index, size: int) -> None:
        self.whole = LabeledImages(index)
        self.size = size
        self.sizes = np.full((len(index.images), 2), size)

    def read(self, position: int) -> NDArray[np.uint8]:
        """Read a square, (size, size, 4)."""
        square: NDArray[np.uint8] = fit_in_square(torch.from_numpy(self.whole.read(position)), self.size).numpy()
        return square

    def pair(self, position: int) -> tuple[Tensor, Tensor]:
        """Read a square as image (3, size, size) and label map (size, size), both uint8."""
        square = torch.from_numpy(self.read(position))
        return square[..., :3].permute(2, 0, 1).contiguous(), square[..., 3].contiguous()


class MaskBatches(Batches):
    """Batches of one view of each image, as images (b, 3, s, s) and label maps (b, s, s), both uint8.

    Args:
        images: Images with label maps, as a fourth channel.
        view: The view; by default, all of a square.
        seed, is_pending: See :class:`Batches`.
    """

    def __init__(self, images: Images, view: BatchView | None = None, seed: int = 0, is_pending: bool = False) -> None:
        super().__init__(images, [view or SquareView()], seed, is_pending)

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> PendingViews | tuple[Tensor, Tensor]:  # type: ignore[override]
        views = super().__getitem__(keys)
        return views if isinstance(views, PendingViews) else views[0]


def evaluated_areas(index: Index, size: int) -> NDArray[np.int64]:
    """Return the area in pixels, (images,), of each image in an index after scaling its longer side to `size`."""
    return np.array([math.prod(fit(index.size(int(image)), size)) for image in index.images])
