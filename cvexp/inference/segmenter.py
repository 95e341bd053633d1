"""Trained segmentation networks, for images of any size.

Shapes: b images, q classes (all, or those that are queried), k scores (1 + q, or q if all classes are queried and the
data have no background), n attention heads, s x s pixels of the square that the network takes, h x w pixels of an
image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from cvexp import progress
from cvexp.config import RunConfig
from cvexp.data.augment.labeled import fit, fit_image, resize_image
from cvexp.data.augment.normalization import Normalization
from cvexp.data.disjoint import NAMES
from cvexp.data.index import IGNORE, Index
from cvexp.data.kept import Images
from cvexp.data.loaders import FixedBatches, make_loader
from cvexp.data.masks import LabeledSquares, MaskBatches
from cvexp.errors import UserError, nearest
from cvexp.inference.assembly import Assembly
from cvexp.inference.pictures import Picture, is_one, to_pixels
from cvexp.inference.segmentation import Segmentation
from cvexp.inference.tiles import arrange
from cvexp.metrics import iou
from cvexp.models.segmenters import Prediction, SegmentationNetwork

BATCH_SIZE = 16


class Segmenter:
    """A trained segmentation network with its classes and its preprocessing. :func:`cvexp.load` returns one.

    Args:
        model: The network.
        config: The configuration that the network was trained with.
        classes: Class names, in the order of their labels.
        device: The device that the network runs on.
    """

    def __init__(
        self, model: SegmentationNetwork, config: RunConfig, classes: Sequence[str], device: torch.device
    ) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()
        self.normalize = Normalization(config.dataset.mean, config.dataset.std).to(device)
        self.config, self.classes, self.device = config, tuple(classes), device

    @property
    def size(self) -> int:
        """The side length in pixels of the square that the network takes, which is `dataset.image_size`."""
        return self.config.dataset.image_size

    @overload
    def predict(self, images: Picture, **options: Any) -> Segmentation: ...

    @overload
    def predict(self, images: Iterable[Picture], **options: Any) -> list[Segmentation]: ...

    def predict(self, images: Picture | Iterable[Picture], **options: Any) -> Segmentation | list[Segmentation]:
        """Segment one or several images, of any size.

        By default, an image is segmented as a whole, as in training and in `task=compare`: its longer side is scaled to
        `dataset.image_size`, and the result is scaled back to the size of the image.

        Args:
            images: A picture, or several: file names, Pillow images, arrays (h, w, 3) or (n, h, w, 3), tensors
                (3, h, w) or (n, 3, h, w). Values are uint8, or floating-point numbers from 0 to 1.
            options: See :meth:`stream`.

        Returns:
            The segmentation, or a list of them if `images` are several.

        Raises:
            UserError: if an image can't be read, or an option is wrong.

        Example:
            >>> segmenter = cvexp.load("runs:/RUN_ID")
            >>> prediction = segmenter.predict("photo.jpg")
            >>> prediction.labels.shape, prediction.presence["cat"]
        """
        if is_one(images):
            return next(self.stream([images], **options))  # type: ignore[list-item]
        return list(self.stream(images, **options))  # type: ignore[arg-type]

    def stream(
        self,
        images: Iterable[Picture],
        *,
        classes: Sequence[str] | None = None,
        tiles: float | None = None,
        maps: bool = True,
        own_size: bool = True,
        batch_size: int = BATCH_SIZE,
    ) -> Iterator[Segmentation]:
        """Segment images one after another, and yield the result of each as soon as it is known.

        Args:
            images: The images. They are read when they are needed.
            classes: Some of the classes, to query only these. This needs a network of `task=attention`.
            tiles: Scale at which images are cut into overlapping tiles of the network's size, whose predictions are
                blended; 1 keeps an image's own resolution. This suits images that are larger than those of the
                training, but not of a larger scale. Images that fit into a tile are segmented as a whole. None segments
                all images as a whole.
            maps: Whether the results keep the scores and attention maps, from which probabilities are computed.
            own_size: Whether the label maps have the size of the images, rather than that which the network sees.
            batch_size: Number of squares that the network takes at a time.

        Raises:
            UserError: if an image can't be read, or an option is wrong.
        """
        if tiles is not None and not tiles > 0:
            raise UserError(f"tiles: got {tiles}, but it must be None or a positive scale, such as 1.0")
        if batch_size < 1:
            raise UserError(f"batch_size: got {batch_size}, but it must be at least 1")
        queried = None if classes is None else self._numbers(classes)
        scores = partial(self._maps, queried=queried, with_attention=maps)
        waiting: list[tuple[Assembly, Tensor]] = []
        for image in images:
            assembly, squares = self._prepare(to_pixels(image), tiles, own_size, queried, maps)
            for square in squares:
                waiting.append((assembly, square))
                if len(waiting) == batch_size:
                    yield from _run(waiting, scores)
                    waiting.clear()
        if waiting:
            yield from _run(waiting, scores)

    def _numbers(self, classes: Sequence[str]) -> list[int]:
        """Return the numbers of classes, counted from 0."""
        if isinstance(classes, str) or not classes:
            raise UserError(f"classes: got {classes!r}, but it must be a list of at least one class")
        for name in classes:
            if name not in self.classes:
                raise UserError(f"classes: there is no class {name!r}; {nearest(name, self.classes)}")
        if not self.model.can_query:
            raise UserError(
                f"classes: a network of task={self.config.task.name} classifies all pixels at once; only one that is "
                "queried for classes, such as of task=attention, can be limited to some of them"
            )
        return [self.classes.index(name) for name in dict.fromkeys(classes)]

    def _prepare(
        self, pixels_hwc: Tensor, tiles: float | None, own_size: bool, queried: Sequence[int] | None, maps: bool
    ) -> tuple[Assembly, Iterable[Tensor]]:
        """Return what puts the result of an image together, and the squares (3, s, s) that the network takes."""
        height, width = pixels_hwc.shape[:2]
        layout, squares = None, None
        working = fit((height, width), self.size)
        if tiles is not None and round(max(height, width) * tiles) > self.size:
            working = fit((height, width), round(max(height, width) * tiles))
            layout = arrange(*working, self.size)
            squares = layout.cut(resize_image(pixels_hwc, working))
        has_background = self.model.has_background or (queried is not None and len(queried) < len(self.classes))
        assembly = Assembly(
            num_tiles=1 if layout is None else layout.num_tiles,
            layout=layout,
            working=working,
            size=(height, width) if own_size else working,
            classes=self.classes if queried is None else [self.classes[number] for number in queried],
            numbers=range(len(self.classes)) if queried is None else queried,
            has_background=has_background,
            probability=partial(self.model.probability, has_background=has_background),
            maps=maps,
        )
        return assembly, squares or [fit_image(pixels_hwc, self.size)]

    @torch.inference_mode()
    def _maps(self, squares: Tensor, queried: Sequence[int] | None, with_attention: bool) -> Tensor:
        """Map squares (b, 3, s, s) to scores, and after them attention, the mean of the heads: (b, k + q, s, s)."""
        images = self.normalize(squares.to(self.device))
        options = {} if queried is None else {"classes": queried}
        scores, attention = self.model.scores(images, **options)
        if attention is None or not with_attention:
            return scores
        size = scores.shape[-2:]
        means = F.interpolate(attention.float().mean(dim=2), size, mode="bilinear", align_corners=False)
        return torch.cat([scores, means], dim=1)

    @torch.inference_mode()
    def label_squares(self, images: Tensor) -> Tensor:
        """Map squares (b, 3, s, s) uint8 to label maps (b, s, s) on the CPU."""
        return self.model.label(self.normalize(images.to(self.device))).cpu()

    @torch.inference_mode()
    def predict_squares(self, images: Tensor) -> Prediction:
        """Map squares (b, 3, s, s) uint8 to everything that the network predicts."""
        return self.model.predict(self.normalize(images.to(self.device)))

    def evaluate(self, index: Index) -> iou.Counts:
        """Count the pixels of every image of a split, (images, 1 + c, 3); see `cvexp.metrics.iou`."""
        num_classes = len(index.classes)
        counts = []
        with progress.step(f"scoring the {NAMES[index.split]} images", len(index.images)) as step:
            for images, labels in whole_images(self.config, index):
                counts.append(iou.count_labels(self.label_squares(images), labels, num_classes, IGNORE).numpy())
                step.advance(len(images))
        return np.concatenate(counts)


def whole_images(config: RunConfig, index: Index) -> DataLoader[Any]:
    """Return a loader of all images of a split, whole and in order, with their label maps."""
    masks = MaskBatches(Images(LabeledSquares(index, config.dataset.image_size)))
    return make_loader(masks, FixedBatches(list(range(len(masks))), config.loader.batch_size), config.loader)


def _run(waiting: Sequence[tuple[Assembly, Tensor]], maps: Callable[[Tensor], Tensor]) -> Iterator[Segmentation]:
    """Run the network on a batch of squares, and yield the results of the images that are then complete."""
    outputs = maps(torch.stack([square for _, square in waiting]))
    for (assembly, _), output in zip(waiting, outputs, strict=True):
        assembly.add(output)
        if assembly.is_complete:
            yield assembly.result()
