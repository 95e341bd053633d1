"""The pictures that trained networks take: files, Pillow images, arrays and tensors, one or many."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cvexp.data.files.images import read_image, to_rgb
from cvexp.errors import UserError

Picture = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor


def is_one(pictures: Picture | Iterable[Picture]) -> bool:
    """Return whether the argument is a single picture. Arrays and tensors with four dimensions are several."""
    if isinstance(pictures, np.ndarray | Tensor):
        return pictures.ndim < 4
    return isinstance(pictures, str | os.PathLike | Image.Image)


def to_pixels(picture: Picture) -> Tensor:
    """Convert a picture to RGB pixels (h, w, 3) uint8.

    A file is rotated according to its EXIF orientation. A Pillow image is not, so that the result fits what the caller
    holds.

    Args:
        picture: A file; a Pillow image of any mode; an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4); or a tensor
            (h, w), (1, h, w), (3, h, w) or (4, h, w). Values are uint8, or floating-point numbers from 0 to 1.

    Raises:
        UserError: if a file is missing or broken, or an array has another shape or other values.
    """
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; check the name")
        return _from_pillow(read_image(path))
    if isinstance(picture, Image.Image):
        return _from_pillow(to_rgb(picture))
    if not isinstance(picture, np.ndarray | Tensor):
        raise UserError(
            f"got {type(picture).__name__}, but a picture must be a file's name, a Pillow image, an array (h, w, 3) or "
            "a tensor (3, h, w)"
        )
    pixels = torch.as_tensor(picture).detach().cpu()
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif isinstance(picture, Tensor) and pixels.ndim == 3:
        pixels = pixels.permute(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.numel():
        kind = "a tensor (3, h, w)" if isinstance(picture, Tensor) else "an array (h, w, 3)"
        raise UserError(f"got the shape {tuple(picture.shape)}, but {kind} is needed")
    pixels = _to_bytes(pixels).contiguous()
    if pixels.shape[2] == 3:
        return pixels
    array = pixels.numpy()
    return _from_pillow(to_rgb(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)))


def _from_pillow(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture))


def _to_bytes(pixels: Tensor) -> Tensor:
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point() or not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(
            f"got values of type {pixels.dtype} from {float(pixels.min()):g} to {float(pixels.max()):g}, but pixels "
            "must be uint8, or floating-point numbers from 0 to 1"
        )
    return pixels.mul(255).round().byte()
