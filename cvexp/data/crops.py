"""Object crops for pretraining, read from the original images on demand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from cvexp.data.files.images import read_image
from cvexp.data.index import Index
from cvexp.seeds import mix


class Crops(Dataset[tuple[list[Tensor], int]]):
    """Random views of the objects of an index.

    The key of an item is (epoch, position). An item is a pure function of the seed and the key, and thus independent
    of the number of workers and of interruptions.

    Args:
        index: The objects.
        views: Transforms from (3, h, w) uint8. An item consists of one view from each transform and the label.
        seed: Seed of the random views.
        resolution: The shorter side, in pixels, that a crop needs for the views. To save time, images with larger crops
            may be decoded at a smaller scale.
    """

    def __init__(self, index: Index, views: Sequence[v2.Transform], seed: int, resolution: float = math.inf) -> None:
        self.index = index
        self.views = views
        self.seed = seed
        self.resolution = resolution

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], int]:
        epoch, position = key
        crop = torch.from_numpy(np.array(read_crop(self.index, position, self.resolution))).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix(self.seed, epoch, position))
            return [view(crop) for view in self.views], int(self.index.label[position])


def read_crop(index: Index, position: int, resolution: float = math.inf) -> Image.Image:
    """Read the crop of one object: the smallest square around its box, clipped to the image.

    The crop is square because the views are square and would distort or cut off a narrow box.

    Args:
        index: The objects.
        position: The position of the object.
        resolution: Minimum side of the square, in pixels, if the image is decoded at a smaller scale to save time.

    Raises:
        UserError: if the file is missing or broken. The message names the file.
    """
    left, top, width, height = (float(value) for value in index.box[position])
    side = max(width, height)
    x, y = left + width / 2 - side / 2, top + height / 2 - side / 2
    image_position = int(index.image[position])
    size = index.size(image_position)
    image = read_image(index.path(image_position), size, at_least=min(1.0, resolution / max(side, 1.0)))
    scale = image.width / size[0]
    x, y, side = x * scale, y * scale, side * scale
    # At least one pixel, because a box may have no area or touch the image's edge only from outside.
    x0, y0 = min(max(int(x), 0), image.width - 1), min(max(int(y), 0), image.height - 1)
    x1, y1 = max(min(round(x + side), image.width), x0 + 1), max(min(round(y + side), image.height), y0 + 1)
    return image.crop((x0, y0, x1, y1))
