"""Image and mask files, read safely and upright, whatever their mode."""

from __future__ import annotations

import io
import warnings
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from cvexp.errors import UserError

# Not all that Pillow knows: some of its formats start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "MPO")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at twice that size Pillow refuses


def read_image(path: Path | str, size: tuple[int, int] | None = None, at_least: float = 0) -> Image.Image:
    """An image file as upright RGB.

    Args:
        path: The file.
        size: Width and height that the annotations are for. Where they fit the image as it is stored, and not as it
            is shown, it stays as it is stored.
        at_least: The scale of the result may be 1/2, 1/4 or 1/8, but not less than this, where that spares decoding
            work; 0 keeps the size.

    Raises:
        UserError: naming the file, where it is missing or broken.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; check dataset.root=") from error
    try:
        return decode(data, size, at_least)
    except Exception as error:  # what a broken file makes Pillow raise is not limited
        raise UserError(f"{path}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """What is wrong with an image file that could not be decoded, and the remedy."""
    what = str(error) if not isinstance(error, MemoryError) else "it needs more memory than there is"
    return f"the image is broken ({what or type(error).__name__}); fetch or write it again, or take it out"


def decode(data: bytes, size: tuple[int, int] | None = None, at_least: float = 0) -> Image.Image:
    """The bytes of an image file as upright RGB; see `read_image`."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        swapped = turned and upright_size(image) != image.size
        if swapped and size is not None and size == image.size:
            turned = False
        if at_least:
            image.draft("RGB", (round(image.width * at_least), round(image.height * at_least)))
        rgb = _to_rgb(image)
        if turned:
            rgb.getexif()[ExifTags.Base.Orientation] = image.getexif()[ExifTags.Base.Orientation]
            rgb = ImageOps.exif_transpose(rgb)
        return rgb


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image as it is shown."""
    sideways = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if sideways else image.size


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers; convert it to 8 bits")
    if image.has_transparency_data:  # what lies below a transparent pixel is arbitrary
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def read_mask(path: Path | str) -> NDArray[np.uint16]:
    """A file of class numbers, one a pixel, (h, w); of a palette image the numbers and not the colors.

    Raises:
        UserError: naming the file, where it is missing, broken, or has colors.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                raise UserError(
                    f"{path}: a mask has one number for each pixel, but this is an image of mode {image.mode}; write "
                    "the class numbers as a gray or palette PNG"
                )
            values = np.array(image)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such mask; write it, or take its image out") from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {explain(error)}") from error
    if values.min() < 0 or values.max() >= 2**16:
        raise UserError(f"{path}: a mask's numbers go from 0 to 65535, but this has {values.min()} to {values.max()}")
    return values.astype(np.uint16)


def leaves_folder(name: str) -> bool:
    """Whether a file name that somebody wrote, joined to a folder, may lie elsewhere."""
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name or ":" in path.parts[0]
