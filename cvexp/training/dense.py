"""Pictures of the feature maps of a few validation images over the epochs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from cvexp.console import print_line
from cvexp.data.examples import choose_images
from cvexp.data.index import Index
from cvexp.metrics.components import align, fit_scale, main_components
from cvexp.models.dense import DenseView, choose_view, compute_dense
from cvexp.report import dense
from cvexp.report.style import SCREEN_DPI, state_of
from cvexp.tracking.sink import Sink


class DensePictures:
    """Draws and records the feature maps of a few validation images, in colors that can be compared over the epochs.

    Args:
        index: The validation images.
        num_images: Number of images.
        trained_size: Side length in pixels of images that the backbone is known to accept.

    Attributes:
        reference: The scores (m * h * w, 3) of the last picture, with which the next ones are aligned; None before it.
    """

    def __init__(self, index: Index, num_images: int, trained_size: int) -> None:
        self.index, self.num_images, self.trained_size = index, num_images, trained_size
        self.reference: NDArray[np.float32] | None = None
        self._view: DenseView | None = None

    def log(
        self, sink: Sink, backbone: nn.Module, normalize: Callable[[Tensor], Tensor], epoch: int, step: int
    ) -> None:
        """Record the pictures `dense` and, for a vision transformer, `class_attention`, and the artifact of both."""
        if not self.num_images:
            return
        if self._view is None:
            try:
                self._view = choose_view(backbone, self.trained_size)
            except ValueError as error:
                print_line(f"no pictures of dense features, as the backbone can't be used for them: {error}")
                self.num_images = 0
                return
            self._pictures = read_squares(self.index, self.num_images, self._view.size)
        record = compute_record(backbone, normalize, self._pictures, self._view, self.reference)
        self.reference = record.reference
        dense.log_record(sink, record, epoch)
        thumbnails, captions = list(record.images), [""] * len(record.images)
        colors = fit_scale(record.reference).colors(record.scores[..., :3].astype(np.float32))
        title = f"main components of the feature maps, {state_of(epoch)}"
        sink.log_image("dense", dense.draw_components(thumbnails, list(colors), captions, title, SCREEN_DPI), step)
        if record.attention.shape[1]:
            of_class_token, state = bool(record.of_class_token), state_of(epoch)
            figure = dense.draw_attention(
                thumbnails, list(record.attention), captions, of_class_token, state, SCREEN_DPI
            )
            sink.log_image("class_attention", figure, step)


def read_squares(index: Index, num_images: int, size: int) -> list[Image.Image]:
    """Read the center squares of a few images, spread over the classes, each resized to `size` x `size` px.

    Whole images are read rather than crops of objects, so that the features of objects and of their surroundings can
    be compared.
    """
    positions = sorted(choose_images(index, num_images))
    images = [index.read_image(int(index.images[position])) for position in positions]
    return [ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC) for image in images]


def to_batch(pictures: list[Image.Image], backbone: nn.Module) -> Tensor:
    """Return pictures of one size as a batch (m, 3, height, width) uint8 on the device of a backbone."""
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return pixels.permute(0, 3, 1, 2).to(next(backbone.parameters()).device)


def compute_record(
    backbone: nn.Module,
    normalize: Callable[[Tensor], Tensor],
    pictures: list[Image.Image],
    view: DenseView,
    reference: NDArray[np.float32] | None,
) -> dense.DenseRecord:
    """Compute the feature maps of square pictures, in the coordinates of their main components.

    Args:
        backbone: A timm model.
        normalize: Maps images (b, 3, h, w) uint8 to normalized ones.
        pictures: The pictures.
        view: Which feature map to use.
        reference: The scores (m * h * w, 3) with which to align the first three components; None to leave them as is.
    """
    computed = compute_dense(backbone, normalize(to_batch(pictures, backbone)), view.map_index)
    maps_mhwc = dense.standardize(computed.maps.permute(0, 2, 3, 1).cpu().numpy())
    num_images, height, width, channels = maps_mhwc.shape
    features = maps_mhwc.reshape(-1, channels)
    components = main_components(features, dense.NUM_KEPT)
    if reference is not None and len(reference) == len(features):  # a larger GPU may have taken larger images
        components = components.rotated(align(components.scores(features)[:, :3], reference))
    side = (dense.THUMBNAIL, dense.THUMBNAIL)
    attention = computed.attention
    none = np.zeros((num_images, 0, height, width), np.float16)
    return dense.DenseRecord(
        images=np.stack([np.asarray(picture.resize(side, Image.Resampling.BICUBIC)) for picture in pictures]),
        scores=components.scores(features).reshape(num_images, height, width, -1).astype(np.float16),
        components=components.vectors.astype(np.float16),
        attention=none if attention is None else attention.cpu().numpy().astype(np.float16),
        of_class_token=np.array(computed.of_class_token),
    )
