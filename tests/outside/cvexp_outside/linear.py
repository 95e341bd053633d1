"""`task=linear`: a linear classifier of each position of the last feature map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.config import RunConfig
from cvexp.data.index import IGNORE
from cvexp.metrics import iou
from cvexp.models.backbone import Encoder
from cvexp.models.segmenters import Prediction, Scores, SegmentationNetwork
from cvexp.tracking.run import ReadOnlyRun
from cvexp.training.parts import make_encoder
from cvexp.training.segmentation import SegmentationTraining, train_segmenter
from cvexp.training.segmentation_config import SegmentationConfig
from cvexp.weights.start import Start


@dataclass(kw_only=True)
class Config(SegmentationConfig):
    description: ClassVar[str] = "classifies each position of the last feature map with a linear layer"


def main(config: RunConfig, run: ReadOnlyRun) -> float:
    """Train, and return the monitored metric at the best epoch."""
    return train_segmenter(Linear, config, run)


class LinearSegmenter(SegmentationNetwork):
    """An encoder and a 1 x 1 convolution."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Conv2d(encoder.high_channels, 1 + num_classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classifier(self.encoder(images)[1])
        return F.interpolate(logits.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)

    def scores(self, images: Tensor) -> Scores:
        return Scores(self(images), attention=None)


class Linear(SegmentationTraining):
    """Cross-entropy over the background and the classes."""

    model: LinearSegmenter

    @staticmethod
    def build_model(config: RunConfig, num_classes: int, start: Start) -> LinearSegmenter:
        return LinearSegmenter(make_encoder(config, start), num_classes)

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        logits = self.model(images)
        counts = iou.count_labels(logits.argmax(1), labels, len(self.classes), IGNORE).sum(0)
        return F.cross_entropy(logits, labels, ignore_index=IGNORE), {"counts": counts}

    def predict(self, images: Tensor, labels: Tensor) -> tuple[Prediction, Tensor]:
        logits = self.model(images)
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").mean((1, 2))
        return self.model.to_prediction(logits), losses


Method = Linear
