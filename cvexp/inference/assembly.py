"""From what a network returns for squares to the segmentation of an image, with memory for a few rows of pixels.

Shapes: q classes, k scores (1 + q, or q without background), g maps (k, or k + q with attention), s x s pixels of a
square, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cvexp.inference.rows import RowResizer
from cvexp.inference.segmentation import Segmentation
from cvexp.inference.tiles import Blend, Layout


@dataclass
class Assembly:
    """Puts the segmentation of an image together.

    Attributes:
        num_tiles: Number of squares.
        layout: Where the tiles are; None if the image is a single square, at its top left corner.
        working: Height and width at which the network sees the image.
        size: Height and width of the result.
        classes: Names of the q classes.
        numbers: Their numbers among all classes, counted from 0.
        has_background: Whether the first score is that of the background, or of classes that were not queried.
        probability: Converts scores (1, k, m, w) to probabilities (1, q, m, w).
        maps: Whether the result keeps scores and attention maps.
    """

    num_tiles: int
    layout: Layout | None
    working: tuple[int, int]
    size: tuple[int, int]
    classes: Sequence[str]
    numbers: Sequence[int]
    has_background: bool
    probability: Callable[[Tensor], Tensor]
    maps: bool
    num_added: int = 0
    labels: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    presence: Tensor | None = None

    def __post_init__(self) -> None:
        self.blend = None if self.layout is None else Blend(self.layout)
        self.resizer = RowResizer(self.working, self.size)
        self.label_of_score = [*([0] if self.has_background else []), *(1 + number for number in self.numbers)]

    @property
    def is_complete(self) -> bool:
        return self.num_added == self.num_tiles

    @torch.inference_mode()
    def add(self, maps_gss: Tensor) -> None:
        """Add what the network returned for the next square."""
        self.num_added += 1
        for rows_gmw in self._complete_rows(maps_gss):
            scores_kmw = rows_gmw[: len(self.label_of_score)]
            self._note_presence(scores_kmw)
            if self.maps:
                self.kept.append(rows_gmw.cpu())
            for resized_kmw in self.resizer.add(scores_kmw):
                self.labels.append(self._label(resized_kmw).cpu())

    def _complete_rows(self, maps_gss: Tensor) -> Iterator[Tensor]:
        if self.blend is None:
            height, width = self.working
            yield maps_gss[:, :height, :width]
        else:
            yield from self.blend.add(maps_gss)

    def _label(self, scores_kmw: Tensor) -> Tensor:
        """Return the label of the largest score at each pixel (m, w) uint8.

        On a CPU, a pass for each class takes a tenth of the time of :func:`torch.argmax` over the first dimension.
        """
        best_mw = scores_kmw[0].clone()
        labels_mw = torch.full_like(best_mw, self.label_of_score[0], dtype=torch.uint8)
        for label, score_mw in zip(self.label_of_score[1:], scores_kmw[1:], strict=True):
            labels_mw.masked_fill_(score_mw > best_mw, label)
            torch.maximum(best_mw, score_mw, out=best_mw)
        return labels_mw

    def _note_presence(self, scores_kmw: Tensor) -> None:
        presence_q = self.probability(scores_kmw[None])[0].amax(dim=(1, 2))
        self.presence = presence_q if self.presence is None else torch.maximum(self.presence, presence_q)

    def result(self) -> Segmentation:
        """Return the segmentation, once all squares were added."""
        assert self.presence is not None
        return Segmentation(
            labels=torch.cat(self.labels).numpy().astype(np.uint8),
            presence=dict(zip(self.classes, self.presence.tolist(), strict=True)),
            num_tiles=self.num_tiles,
            num_scores=len(self.label_of_score),
            maps=torch.cat(self.kept, dim=1) if self.maps else None,
            to_probability=self.probability,
        )
