"""Photos that visitors upload, which may be files of any kind."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from cvexp.data.files.images import FORMATS, decode
from cvexp.errors import UserError

SIDE = 1024  # pixels, the longer side at which photos are segmented and shown, so that the page answers quickly
MAX_MEGAPIXELS = 100  # more than any phone takes by default; decoding needs up to 8 bytes per pixel

UNREADABLE = (
    "This file can't be read as an image. Choose a photo as JPEG, PNG, WebP, BMP, TIFF or GIF, or save it again if it "
    "is one."
)


def read_photo(path: Path) -> Image.Image:
    """Read an uploaded file as an RGB image whose longer side is at most `SIDE`.

    Raises:
        UserError: with a sentence for the visitor, if the file is no image, is damaged, or has too many pixels.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size  # known before anything is decoded
        if width * height <= MAX_MEGAPIXELS * 1e6:
            return reduce(decode(data, at_least=min(1.0, SIDE / max(width, height))))
    except Image.DecompressionBombError:
        pass
    except Exception as error:  # Pillow may raise anything for a broken file
        raise UserError(UNREADABLE) from error
    raise UserError(f"This image has too many pixels. The limit is {MAX_MEGAPIXELS} million; choose a smaller one.")


def reduce(image: Image.Image) -> Image.Image:
    """Reduce an image in place so that its longer side is at most `SIDE`, and return it."""
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return image
