"""Data sets whose items are whole batches of views.

Shapes: b images of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from cvexp.data.augment.views import BatchView
from cvexp.data.kept import Images
from cvexp.seeds import uniform


class PendingViews(NamedTuple):
    """The images of a batch and the parameters of their views, to make the views on another device.

    Attributes:
        pixels: Padded images (b, h, w, c) uint8.
        views: The views.
        drawn: What `BatchView.draw` returned for each view.
    """

    pixels: Tensor
    views: tuple[BatchView, ...]
    drawn: tuple[Any, ...]

    def make(self) -> list[Any]:
        """Make all views of all images."""
        return [view.apply(self.pixels, drawn) for view, drawn in zip(self.views, self.drawn, strict=True)]


class Batches(Dataset[Any]):
    """Random views of images, drawn for a whole batch at once.

    An item is selected by a list of keys (epoch, position), one for each image. The views of an image are a pure
    function of the seed and its key, and thus independent of the batch, the workers, and interruptions.

    Args:
        images: The images.
        views: The views of each image.
        seed: Seed of the random views.
        is_pending: Whether items are :class:`PendingViews`, instead of what these make.
    """

    def __init__(self, images: Images, views: Sequence[BatchView], seed: int, is_pending: bool = False) -> None:
        self.images = images
        self.views = tuple(views)
        self.seed = seed
        self.is_pending = is_pending

    def __len__(self) -> int:
        return len(self.images)

    def pending(self, keys: Sequence[tuple[int, int]]) -> PendingViews:
        """Read the images of a batch, and draw the parameters of their views."""
        keys_b2 = np.array(keys, dtype=np.int64)
        positions_b = keys_b2[:, 1]
        sizes_b2 = self.images.source.sizes[positions_b]
        drawn = []
        for number, view in enumerate(self.views):
            keys_b3 = np.column_stack([keys_b2, np.full(len(keys), number)])
            drawn.append(view.draw(sizes_b2, uniform(self.seed, keys_b3, view.num_chances)))
        return PendingViews(self.images.batch(positions_b), self.views, tuple(drawn))

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> PendingViews | list[Any]:
        pending = self.pending(keys)
        return pending if self.is_pending else pending.make()
