"""Safe reading of image and mask files of any mode, with their orientation applied."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cvexp.errors import UserError

# Not all of Pillow's formats, because some of them start other programs. It reads MPO, which phones write, as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow refuses images of twice that size


def read_image(path: Path | str, size: tuple[int, int] | None = None, at_least: float = 0) -> Image.Image:
    """Read an image file as RGB, rotated according to its EXIF orientation.

    Args:
        path: The file.
        size: Width and height that the annotations assume. If these match the image only without rotation, the image
            is not rotated.
        at_least: Minimum scale. To save time, the image may be decoded at 1/2, 1/4 or 1/8 of its size, but at no less
            than this scale; 0 keeps the full size.

    Raises:
        UserError: if the file is missing or broken. The message names the file.
    """
    try:
        return decode(Path(path).read_bytes(), size, at_least)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; check dataset.root=") from error
    except Exception as error:  # Pillow may raise anything for a broken file
        raise UserError(f"{path}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """Explain why an image file could not be read or decoded, and suggest a remedy."""
    if isinstance(error, OSError) and error.strerror:
        return f"it can't be read ({error.strerror}); check its permissions"
    what = str(error)
    if isinstance(error, UnidentifiedImageError):  # which names the object that Pillow read from
        what = "its format is not recognized"
    elif isinstance(error, MemoryError):
        what = "it needs more memory than is available"
    return f"the image is broken ({what or type(error).__name__}); fetch or save it again, or remove it"


def decode(data: bytes, size: tuple[int, int] | None = None, at_least: float = 0) -> Image.Image:
    """Decode the bytes of an image file as RGB; see :func:`read_image`."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        is_rotated = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        if is_rotated and size == image.size != upright_size(image):
            is_rotated = False
        if at_least:
            image.draft("RGB", (max(1, round(image.width * at_least)), max(1, round(image.height * at_least))))
        rgb = to_rgb(image)
        if is_rotated:
            rgb.getexif()[ExifTags.Base.Orientation] = image.getexif()[ExifTags.Base.Orientation]
            rgb = ImageOps.exif_transpose(rgb)
        return rgb


def decode_checked(data: bytes, size: tuple[int, int], at_least: float = 0) -> Image.Image:
    """Decode the bytes of an image file that was not checked before; see :func:`read_image`.

    Raises:
        ValueError: before anything is decoded, if the image does not have the width and height `size`.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if size not in (image.size, upright_size(image)):
            raise ValueError(f"it has {image.width} x {image.height} px, but {size[0]} x {size[1]} px are expected")
    return decode(data, size, at_least)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of an opened image after applying its EXIF orientation."""
    is_sideways = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if is_sideways else image.size


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB. Transparent pixels become white, and 16 bits become 8.

    Raises:
        ValueError: if the image has floating-point numbers.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("it has floating-point numbers; convert it to 8 bits")
    if image.has_transparency_data:  # the colors of transparent pixels are arbitrary
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def cut(picture: Image.Image, box: Sequence[int], full_size: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """Cut a box out of a picture, and resize it if it has another size.

    Args:
        picture: The picture, which may have been decoded at a smaller scale.
        box: Left, top, right and bottom in pixels of the full picture.
        full_size: Width and height of the full picture.
        size: Width and height of the result.
    """
    left, top, right, bottom = box
    if picture.size == full_size and (right - left, bottom - top) == size:
        return picture if size == full_size else picture.crop((left, top, right, bottom))
    x, y = picture.width / full_size[0], picture.height / full_size[1]
    scaled = (left * x, top * y, min(right * x, picture.width), min(bottom * y, picture.height))
    return picture.resize(size, Image.Resampling.BICUBIC, box=scaled, reducing_gap=3.0)


def read_mask(path: Path | str, has_colors: bool = False) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Read the values (h, w) of a mask file.

    Args:
        path: The file.
        has_colors: Whether the values are colors, 65536 * red + 256 * green + blue. Otherwise they are the numbers of a
            gray image, or the indexes of a palette image.

    Raises:
        UserError: if the file is missing, is broken, or has other values. The message names the file.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return _colors(image) if has_colors else _numbers(image)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such mask; add it, or remove its image") from error
    except _WrongValuesError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"{path}: {explain(error)}") from error


class _WrongValuesError(Exception):
    """A mask has values that can't be used. The message says which, and what to do."""


def _numbers(image: Image.Image) -> NDArray[np.uint16]:
    """Return the numbers of a gray image, whatever its mode, or the indexes of a palette image."""
    if image.mode in ("1", "L", "P", "I", "I;16"):
        values = np.array(image)
    elif image.mode in ("RGB", "RGBA") and _is_opaque(image):
        channels = np.asarray(image)[..., :3]
        if len(colored := channels[(channels != channels[..., :1]).any(axis=2)]):
            raise _WrongValuesError(
                f"a mask must have one number per pixel, but this one has colors, such as #{bytes(colored[0]).hex()}; "
                "save the class numbers as a grayscale or palette PNG, or name the colors of the classes in "
                "dataset.mask_values of dataset=folder"
            )
        values = channels[..., 0]
    else:
        raise _WrongValuesError(
            f"a mask must have one number per pixel, but this is an image of mode {image.mode}; save the class numbers "
            "as a grayscale or palette PNG"
        )
    if values.min() < 0 or values.max() >= 2**16:
        raise _WrongValuesError(
            f"the numbers in a mask must be from 0 to 65535, but these are from {values.min()} to {values.max()}; save "
            "the mask again"
        )
    return values.astype(np.uint16)


def _colors(image: Image.Image) -> NDArray[np.uint32]:
    """Return the colors of an image with 8 bits per channel, as 65536 * red + 256 * green + blue."""
    if image.mode not in ("1", "L", "P", "RGB", "RGBA") or not _is_opaque(image):
        raise _WrongValuesError(
            f"dataset.mask_values lists colors, but this is an image of mode {image.mode}, or with transparent pixels; "
            "save the mask as a PNG with 8 bits for each of red, green and blue"
        )
    channels = np.asarray(image.convert("RGB")).astype(np.uint32)
    colors: NDArray[np.uint32] = channels @ np.array([65536, 256, 1], dtype=np.uint32)
    return colors


def _is_opaque(image: Image.Image) -> bool:
    return image.mode != "RGBA" or image.getchannel("A").getextrema() == (255, 255)


def leaves_folder(name: str) -> bool:
    """Return whether an untrusted file name may lead outside the folder to which it is joined."""
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name or ":" in path.parts[0]
