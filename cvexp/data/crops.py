"""Object crops for pretraining, read from the original images on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from cvexp.data.index import Index
from cvexp.errors import UserError


class Crops(Dataset[tuple[list[Tensor], int]]):
    """Random views of the objects of an index.

    An item is asked for by (epoch, position), and is a pure function of the seed and of these two: so neither the
    number of workers nor an interruption changes what the model sees.

    Args:
        index: The objects.
        views: Transforms from (3, h, w) uint8; an item has the view of each.
        seed: Of the random views.
    """

    def __init__(self, index: Index, views: Sequence[v2.Transform], seed: int) -> None:
        self.index = index
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], int]:
        epoch, position = key
        crop = torch.from_numpy(np.array(read_crop(self.index, position))).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix(self.seed, epoch, position))
            return [view(crop) for view in self.views], int(self.index.label[position])


def read_crop(index: Index, position: int) -> Image.Image:
    """One object: the smallest square around its box, as far as it lies in the image.

    A square, because a narrow box would be distorted or cut by the square views made of it.

    Raises:
        UserError: naming the file, where it is missing or broken.
    """
    left, top, width, height = (float(value) for value in index.box[position])
    side = max(width, height)
    x, y = left + width / 2 - side / 2, top + height / 2 - side / 2
    image = read_image(index.root / index.files[index.image[position]])
    box = (max(int(x), 0), max(int(y), 0), min(round(x + side), image.width), min(round(y + side), image.height))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise UserError(
            f"{index.root / index.files[index.image[position]]}: the box {index.box[position].tolist()} of an object "
            f"lies outside the image of {image.width} x {image.height} px; correct the annotation file"
        )
    return image.crop(box)


def read_image(path: Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        UserError: naming the file, where it is missing or broken.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; the annotations name it: check dataset.root=") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: the image is broken ({error}); fetch it again, or take it out of the annotations"
        ) from error


def mix(*numbers: int) -> int:
    """A 64-bit seed from several numbers; equal numbers give equal seeds, and neighbours unrelated ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
