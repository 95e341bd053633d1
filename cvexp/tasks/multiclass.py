"""`task=multiclass`: classification of all pixels at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from omegaconf import MISSING
from torch import Tensor

from cvexp import processes
from cvexp.config import RunConfig
from cvexp.data.index import IGNORE
from cvexp.errors import UserError, nearest
from cvexp.keys import require
from cvexp.metrics import iou
from cvexp.models.segmenters import MulticlassSegmenter, Prediction
from cvexp.tracking.run import ReadOnlyRun
from cvexp.training.parts import make_decoder, make_encoder
from cvexp.training.segmentation import SegmentationTraining, train_segmenter
from cvexp.training.segmentation_config import SegmentationConfig
from cvexp.weights.fitting import fit_decoder
from cvexp.weights.start import Start


@dataclass(kw_only=True)
class Config(SegmentationConfig):
    description: ClassVar[str] = "classifies every pixel at once"
    is_baseline: ClassVar[bool] = True

    class_weights: dict[str, float] | None = MISSING

    def __post_init__(self) -> None:
        for name, weight in (self.class_weights or {}).items():
            require(weight >= 0, f"task.class_weights.{name}", weight, "at least 0")


def main(config: RunConfig, run: ReadOnlyRun) -> float:
    """Train, and return the monitored metric at the best epoch."""
    return train_segmenter(Multiclass, config, run)


class Multiclass(SegmentationTraining):
    """Cross-entropy over the classes and, if there is one, the background."""

    class_weights: Tensor

    def build(self, start: Start) -> None:
        super().build(start)
        assert isinstance(self.task, Config)
        names = ("background", *self.classes) if self.model.has_background else self.classes
        weights = self.task.class_weights or {}
        for name in weights:
            if name not in names:
                raise UserError(f"task.class_weights: there is no class {name!r}; {nearest(name, names)}")
        class_weights = torch.tensor([weights.get(name, 1.0) for name in names])
        self.register_buffer("class_weights", class_weights, persistent=False)

    @staticmethod
    def build_model(config: RunConfig, num_classes: int, start: Start) -> MulticlassSegmenter:
        assert isinstance(config.task, Config)
        encoder = make_encoder(config, start)
        decoder = make_decoder(config.task, encoder.low_channels, encoder.high_channels)
        model = MulticlassSegmenter(encoder, decoder, num_classes, config.dataset.has_background)
        fit_decoder(model, start, of_classes="classifier")
        return model

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        logits = self.model(images)
        counts = iou.count_labels(self.model.to_labels(logits), labels, len(self.classes), IGNORE)
        losses, weights = self.losses(logits, labels)
        return losses.sum() / processes.mean(weights.sum()).clamp(min=1e-6), {"counts": counts.sum(dim=0)}

    def predict(self, images: Tensor, labels: Tensor) -> tuple[Prediction, Tensor]:
        logits = self.model(images)
        losses, weights = self.losses(logits, labels)
        return self.model.to_prediction(logits), losses / weights.clamp(min=1e-6)

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the weighted cross-entropy of each image, summed over its pixels, and the sum of the weights.

        Both are 0 for an image whose pixels are all ignored.

        Args:
            logits: (b, k, h, w), a score for the background, if there is one, and for each of c classes.
            labels: (b, h, w), 0 background, then the classes.

        Returns:
            Two tensors (b,).
        """
        class_weights = self.class_weights.to(logits.dtype)
        is_labeled = labels != IGNORE
        if not self.model.has_background:  # then the first score is that of the first class, whose label is 1
            labels = torch.where(is_labeled, labels - 1, IGNORE)
        losses = F.cross_entropy(logits, labels, class_weights, ignore_index=IGNORE, reduction="none")
        weights = class_weights[labels.where(is_labeled, 0)] * is_labeled
        return losses.sum(dim=(1, 2)), weights.sum(dim=(1, 2))


Method = Multiclass
