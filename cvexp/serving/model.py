"""A trained network as a Python model of MLflow: bytes of image files in, masks or features out.

`task=register` copies this file into the folder of the model, beside the ONNX file, and MLflow runs the copy. Therefore
it imports neither cvexp nor PyTorch. Images come from strangers.

Shapes: k scores (the background, if there is one, and each class), s x s pixels of the square that the network takes,
h x w pixels of an image, h' x w' of them in the square.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Mapping
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # some of Pillow's others start programs
MASK_FORMATS = ("png", "rle")
BICUBIC = Image.Resampling.BICUBIC
MAX_PIXELS = 2**27
MAX_SIDE = 2**16
MAX_VALUES = 2**22  # numbers that are resized at once, which bounds the memory


class InvalidInputError(MlflowException):
    """What a client sent can't be used. MLflow's server answers with status 400.

    The server adds the data to the message, so the answer has the original message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": self.args[0]})


class Network(PythonModel):
    """The network in an ONNX file that `task=export` wrote, with its preprocessing."""

    def load_context(self, context: Any) -> None:
        """Open the ONNX file, which says what kind of network it contains, and how images are prepared for it."""
        self.session = onnxruntime.InferenceSession(context.artifacts["onnx"], providers=["CPUExecutionProvider"])
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["cvexp"])
        self.lock = threading.Lock()  # of several large images, one at a time is in memory

    def predict(self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Map the image files in the column `image` to a row each.

        Args:
            context: Not used.
            model_input: The bytes of image files in the column `image`.
            params: `format`, in which masks are returned: a palette PNG as base64 ("png", the default), or COCO's run
                lengths by class as JSON ("rle").

        Returns:
            For a segmenter, `mask`, `width`, `height`, and `presence`: the probability that the image contains each
            class. For an encoder, `features`.

        Raises:
            InvalidInputError: if an image or a parameter can't be used.
        """
        mask_format = (params or {}).get("format", MASK_FORMATS[0])
        if mask_format not in MASK_FORMATS:
            raise InvalidInputError(f"format: got {str(mask_format)[:40]!r}, but it must be png or rle")
        rows = []
        for number, data in enumerate(model_input["image"], 1):
            with self.lock:
                image = read_image(data, f"image {number}")
                is_segmenter = self.about["kind"] == "segmenter"
                rows.append(self._segment(image, mask_format) if is_segmenter else self._encode(image, number))
        return pd.DataFrame(rows)

    def _segment(self, image: Image.Image, mask_format: str) -> dict[str, Any]:
        """Segment an image as a whole, with its longer side scaled to s."""
        size = self.about["size"]
        width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
        square = np.zeros((1, 3, size, size), np.uint8)
        square[0, :, :height, :width] = _channels_first(image.resize((width, height), BICUBIC))
        outputs = self.session.run(["scores", "probability"], {"images": square})
        scores, probability = (output[0, :, :height, :width] for output in outputs)
        labels = label_map(scores, image.height, image.width, first_label=len(self.about["labels"]) - len(scores))
        return {
            "mask": self._png(labels) if mask_format == "png" else self._run_lengths(labels),
            "width": image.width,
            "height": image.height,
            "presence": dict(zip(self.about["classes"], probability.max((1, 2)).tolist(), strict=True)),
        }

    def _png(self, labels: NDArray[np.uint8]) -> str:
        """Return a label map as a palette PNG, whose pixels are the labels, in base64."""
        image = Image.fromarray(labels)
        image.putpalette(bytes.fromhex("".join(color.removeprefix("#") for color in self.about["colors"])))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()

    def _run_lengths(self, labels: NDArray[np.uint8]) -> str:
        """Return the mask of each class that occurs as COCO's uncompressed run lengths, in JSON."""
        masks = {}
        for label in np.unique(labels[labels > 0]).tolist():
            mask = (labels == label).ravel(order="F")
            ends = np.flatnonzero(mask[1:] != mask[:-1]) + 1
            counts = np.diff([0, *([0] if mask[0] else []), *ends.tolist(), len(mask)])  # the first run has zeros
            masks[self.about["classes"][label - 1]] = {"size": list(labels.shape), "counts": counts.tolist()}
        return json.dumps(masks)

    def _encode(self, image: Image.Image, number: int) -> dict[str, Any]:
        """Compute the features of the center square of an image, whose shorter side is scaled to s."""
        size = self.about["size"]
        width, height = (size * side // min(image.size) for side in image.size)
        _check_size(width, height, f"image {number}: scaled to {size} px, it")
        left, top = round((width - size) / 2), round((height - size) / 2)
        square = image.resize((width, height), BICUBIC).crop((left, top, left + size, top + size))
        return {"features": self.session.run(["features"], {"images": _channels_first(square)[None]})[0][0].tolist()}


def read_image(data: Any, name: str) -> Image.Image:
    """Decode the bytes of an image file as RGB, rotated according to its EXIF orientation.

    Args:
        data: The bytes, which are not trusted.
        name: What the image is called in messages.

    Raises:
        InvalidInputError: if they are not those of an image file, or the image is too large.
    """
    if not isinstance(data, bytes):
        raise InvalidInputError(f"{name}: it must be the bytes of an image file")
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            _check_size(*image.size, f"{name}: it")
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            rgb = _to_rgb(image)
        if orientation in range(2, 9):
            rgb.getexif()[ExifTags.Base.Orientation] = orientation
            rgb = ImageOps.exif_transpose(rgb)
        return rgb
    except MlflowException:
        raise
    except UnidentifiedImageError as error:
        raise InvalidInputError(
            f"{name}: it is not an image file of type {', '.join(IMAGE_FORMATS)}; in JSON, it must be base64 in "
            "dataframe_records or dataframe_split"
        ) from error
    except Image.DecompressionBombError as error:
        raise InvalidInputError(f"{name}: it has more than {MAX_PIXELS} pixels, which is the limit") from error
    except Exception as error:  # Pillow may raise anything for a broken file
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InvalidInputError(f"{name}: it is broken ({reason})") from error


def _check_size(width: int, height: int, subject: str) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InvalidInputError(
            f"{subject} has {width} x {height} px, but at most {MAX_PIXELS} px, and {MAX_SIDE} px a side, are accepted"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB. Transparent pixels become white, and 16 bits become 8."""
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("it has floating-point numbers")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _channels_first(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image).transpose(2, 0, 1)


def label_map(scores_khw: NDArray[np.float32], height: int, width: int, first_label: int = 0) -> NDArray[np.uint8]:
    """Resize scores (k, h', w') bilinearly, and return the label of the largest one at each pixel (h, w).

    The label of the first score is `first_label`, which is 1 if there is no background.
    """
    upper_h, lower_h, y_h = _neighbors(scores_khw.shape[1], height)
    left_w, right_w, x_w = _neighbors(scores_khw.shape[2], width)
    labels_hw = np.full((height, width), first_label, np.uint8)
    num_rows = max(1, MAX_VALUES // width)
    for first in range(0, height, num_rows):
        part = slice(first, first + num_rows)
        best = np.float32(-np.inf)
        # This takes a third of the time of argmax over the first dimension.
        for label, scores_hw in enumerate(scores_khw, first_label):
            upper, lower = scores_hw[upper_h[part]], scores_hw[lower_h[part]]
            rows = upper + (lower - upper) * y_h[part, None]
            left, right = rows[:, left_w], rows[:, right_w]
            values = left + (right - left) * x_w
            labels_hw[part][values > best] = label
            best = np.maximum(best, values)
    return labels_hw


def _neighbors(length: int, new_length: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return the two positions between which each new position lies, and the weight of the second one."""
    source = ((np.arange(new_length) + 0.5) * (length / new_length) - 0.5).clip(0, length - 1)
    first = source.astype(np.intp)
    return first, np.minimum(first + 1, length - 1), (source - first).astype(np.float32)


mlflow.models.set_model(Network())
