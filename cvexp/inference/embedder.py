"""Pretrained encoders, for images of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvexp.config import RunConfig
from cvexp.data.augment.normalization import Normalization
from cvexp.data.augment.views import CenterView
from cvexp.inference.pictures import Picture, is_one, to_pixels

BATCH_SIZE = 64


class Embedder:
    """A pretrained encoder that maps pictures to feature vectors. :func:`cvexp.load` returns one.

    Args:
        encoder: The network.
        config: The configuration that the network was pretrained with.
        classes: Class names of the data; empty if they had no labels. The features do not depend on them.
        device: The device that the network runs on.
    """

    def __init__(self, encoder: nn.Module, config: RunConfig, classes: Iterable[str], device: torch.device) -> None:
        self.encoder = encoder.to(device).to(memory_format=torch.channels_last).eval()
        self.normalize = Normalization(config.dataset.mean, config.dataset.std).to(device)
        self.view = CenterView(config.task.eval_size)  # type: ignore[attr-defined]
        self.config, self.classes, self.device = config, tuple(classes), device

    def embed(self, images: Picture | Iterable[Picture], batch_size: int = BATCH_SIZE) -> NDArray[np.float32]:
        """Compute the features of the center square of one or several images, of any size.

        Args:
            images: A picture, or several: file names, Pillow images, arrays (h, w, 3) or (n, h, w, 3), tensors
                (3, h, w) or (n, 3, h, w). Values are uint8, or floating-point numbers from 0 to 1.
            batch_size: Number of images that the network takes at a time.

        Returns:
            The features (d,), or (n, d) if `images` are several.

        Raises:
            UserError: if an image can't be read.

        Example:
            >>> embedder = cvexp.load("runs:/RUN_ID")
            >>> features = embedder.embed(["a.jpg", "b.jpg"])
            >>> features.shape
        """
        if is_one(images):
            features: NDArray[np.float32] = next(self.stream([images], 1))[0]  # type: ignore[list-item]
            return features
        batches = list(self.stream(images, batch_size))  # type: ignore[arg-type]
        return np.concatenate(batches) if batches else np.empty((0, self.num_features()), np.float32)

    def stream(self, images: Iterable[Picture], batch_size: int = BATCH_SIZE) -> Iterator[NDArray[np.float32]]:
        """Compute the features (b, d) of one batch of images after another. They are read when they are needed.

        Raises:
            UserError: if an image can't be read.
        """
        views: list[Tensor] = []
        for image in images:
            views.append(self.view.show(to_pixels(image)))
            if len(views) == batch_size:
                yield self.encode(torch.stack(views))
                views.clear()
        if views:
            yield self.encode(torch.stack(views))

    @torch.inference_mode()
    def encode(self, views: Tensor) -> NDArray[np.float32]:
        """Compute the features (b, d) of views (b, 3, s, s) uint8, which `view` made."""
        features: NDArray[np.float32] = self.encoder(self.normalize(views.to(self.device))).float().cpu().numpy()
        return features

    def num_features(self) -> int:
        """Return the number of features of an image, d."""
        length: int = self.encode(torch.zeros(1, 3, self.view.size, self.view.size, dtype=torch.uint8)).shape[1]
        return length
