"""Images with their label maps for segmentation, read from the original files on demand."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from cvexp.data.augment.labeled import LabeledView, PlainLabeledView, fit
from cvexp.data.files.images import read_image
from cvexp.data.index import Index
from cvexp.seeds import mix


class Masks(Dataset[tuple[Tensor, Tensor]]):
    """Views of the images of an index, together with their label maps.

    The key of an item is (epoch, position). An item is a pure function of the seed and the key.

    Args:
        index: The images.
        view: Transforms an image and its label map together.
        seed: Seed of the random views.
    """

    def __init__(self, index: Index, view: LabeledView | PlainLabeledView, seed: int) -> None:
        self.index = index
        self.view = view
        self.seed = seed

    def __len__(self) -> int:
        return len(self.index.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return a view (3, h, w) uint8 and its label map (h, w) uint8; see :meth:`Index.label_map`."""
        epoch, position = key
        image, labels = self.read(position)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix(self.seed, epoch, position))
            pair: tuple[Tensor, Tensor] = self.view(image, labels)
            return pair

    def read(self, position: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Read an image and its label map without creating a view."""
        image = int(self.index.images[position])
        pixels = np.array(read_image(self.index.path(image), self.index.size(image)))
        labels = torch.from_numpy(self.index.label_map(image))
        return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)), tv_tensors.Mask(labels)


def evaluated_areas(index: Index, size: int) -> NDArray[np.int64]:
    """Return the area in pixels, (images,), of each image in an index after scaling its longer side to `size`."""
    return np.array([math.prod(fit(index.size(int(image)), size)) for image in index.images])
