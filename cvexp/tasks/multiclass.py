"""`task=multiclass`: every pixel classified at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from omegaconf import MISSING
from torch import Tensor

from cvexp import config
from cvexp.checkpoints import StartingPoint
from cvexp.config import nearest, require
from cvexp.data.index import IGNORE
from cvexp.errors import UserError
from cvexp.metrics import iou
from cvexp.models.segmenters import MulticlassSegmenter, Prediction
from cvexp.tasks import segmentation
from cvexp.tasks.segmentation import Segmentation, SegmentationTask, make_decoder, make_encoder
from cvexp.tracking import Run


@dataclass(kw_only=True)
class Config(SegmentationTask):
    class_weights: dict[str, float] | None = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weight in (self.class_weights or {}).items():
            require(weight >= 0, f"task.class_weights.{name}", weight, "at least 0")


def run(config: config.Config, run: Run) -> None:
    """Train, and leave checkpoints, metrics and pictures in `run`."""
    segmentation.run(Multiclass, config, run)


class Multiclass(Segmentation):
    """Cross-entropy over the background and the classes."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        assert isinstance(self.task, Config)
        names = ("background", *self.classes)
        weights = self.task.class_weights or {}
        for name in weights:
            if name not in names:
                raise UserError(f"task.class_weights: there is no class {name!r}; {nearest(name, names)}")
        self.weights = torch.tensor([weights.get(name, 1.0) for name in names])

    @staticmethod
    def make_model(config: config.Config, classes: int, start: StartingPoint) -> MulticlassSegmenter:
        assert isinstance(config.task, Config)
        encoder = make_encoder(config, start)
        decoder = make_decoder(config.task, encoder.low_channels, encoder.high_channels)
        model = MulticlassSegmenter(encoder, decoder, classes)
        start.load_decoder(model, of_classes="classifier")
        return model

    def learn(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        counts = iou.count_labels(logits.argmax(dim=1), labels, len(self.classes), IGNORE)
        losses, weights = self.losses(logits, labels)
        return losses.sum() / weights.sum().clamp(min=1e-6), counts.sum(dim=0)

    def predict(self, images: Tensor, labels: Tensor) -> tuple[Prediction, Tensor]:
        logits = self.model(images)
        losses, weights = self.losses(logits, labels)
        return self.model.read(logits), losses / weights.clamp(min=1e-6)  # type: ignore[operator]

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the weighted cross-entropies of each image, and of the weights; both 0 where all is ignored."""
        class_weights = self.weights.to(logits)
        losses = F.cross_entropy(logits, labels, class_weights, ignore_index=IGNORE, reduction="none")
        weights = class_weights[labels.where(labels != IGNORE, 0)] * (labels != IGNORE)
        return losses.sum(dim=(1, 2)), weights.sum(dim=(1, 2))
