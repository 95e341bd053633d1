"""The segmentation of an image.

Shapes: q classes, k scores (1 + q, or q if the data have no background and all classes were queried), an image of h x w
pixels, maps of h' x w' positions, m rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cvexp.colors import palette
from cvexp.errors import UserError, nearest
from cvexp.inference.rows import resize_rows


@dataclass(frozen=True)
class Segmentation:
    """What a network predicts for an image.

    Attributes:
        labels: Label map (h, w) uint8: 0 background, then the classes of the network, counted from 1. If the network
            was queried for some of its classes, 0 also stands for the others.
        presence: The probability that the image contains each class, by name: its maximum over all pixels.
        num_tiles: Number of tiles that the image was cut into; 1 if it was segmented as a whole.
        num_scores: Number of scores, k.
        maps: Scores, and attention maps if there are any (k or k + q, h', w'), or None if they were not kept.
        to_probability: Converts scores (1, k, m, w) to probabilities (1, q, m, w).
    """

    labels: NDArray[np.uint8]
    presence: dict[str, float]
    num_tiles: int
    num_scores: int = field(repr=False)
    maps: Tensor | None = field(repr=False)
    to_probability: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, or of those that were queried."""
        return tuple(self.presence)

    @property
    def has_attention(self) -> bool:
        """Whether there are attention maps."""
        return self.maps is not None and len(self.maps) > self.num_scores

    def probability(self, name: str | None = None) -> NDArray[np.float32]:
        """Return the probability of a class at each pixel (h, w), or of all classes (q, h, w), in their order.

        Raises:
            UserError: if there is no such class, or the scores were not kept.
        """
        scores = self._maps()[: self.num_scores]
        chosen = self._chosen(name)
        rows = [self.to_probability(part[None])[0][chosen] for part in resize_rows(scores, self.labels.shape)]
        return self._joined(rows, name)

    def attention(self, name: str | None = None) -> NDArray[np.float32]:
        """Return the attention weights of a class at each pixel (h, w), or of all classes (q, h, w).

        They are the mean of the heads, interpolated from the positions of the feature map.

        Raises:
            UserError: if there is no such class, or there are no attention maps.
        """
        maps = self._maps()
        if not self.has_attention:
            raise UserError("attention: the network has none; a network of task=attention has")
        weights = maps[self.num_scores :][self._chosen(name)]
        return self._joined(list(resize_rows(weights, self.labels.shape)), name)

    def mask_image(self) -> Image.Image:
        """Return the label map as a palette image, in the colors of the classes. Its pixels are the labels."""
        image = Image.fromarray(self.labels).convert("L")
        image.putpalette(palette())
        return image

    def _maps(self) -> Tensor:
        if self.maps is None:
            raise UserError("maps: they were not kept; call predict with maps=True")
        return self.maps

    def _chosen(self, name: str | None) -> Sequence[int]:
        if name is None:
            return range(len(self.classes))
        if name not in self.presence:
            raise UserError(f"there is no class {name!r}; {nearest(name, self.classes)}")
        return [self.classes.index(name)]

    def _joined(self, rows: list[Tensor], name: str | None) -> NDArray[np.float32]:
        joined: NDArray[np.float32] = torch.cat(rows, dim=1).numpy()
        return joined if name is None else joined[0]
