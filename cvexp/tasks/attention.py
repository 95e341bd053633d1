"""`task=attention`: one class asked for at a time, by attention over the feature map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import MISSING
from torch import Tensor

from cvexp import config
from cvexp.checkpoints import StartingPoint
from cvexp.config import require, require_one_of
from cvexp.data.index import IGNORE
from cvexp.metrics import iou
from cvexp.models.attention import KINDS, NORMALIZATIONS, ClassAttention
from cvexp.models.segmenters import AttentionSegmenter, Prediction
from cvexp.report import segmentation as pictures
from cvexp.tasks import segmentation
from cvexp.tasks.segmentation import Segmentation, SegmentationTask, make_decoder, make_encoder
from cvexp.tracking import Run


@dataclass(kw_only=True)
class Config(SegmentationTask):
    kind: str = MISSING
    normalization: str = MISSING
    placement: str = MISSING
    heads: int = MISSING
    dim: int | None = MISSING
    asked_classes: int = MISSING
    present_probability: float = MISSING
    foreground_weight: float = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("task.kind", self.kind, KINDS)
        require_one_of("task.normalization", self.normalization, NORMALIZATIONS)
        require_one_of("task.placement", self.placement, ("encoder", "decoder"))
        for key in ("heads", "asked_classes"):
            require(getattr(self, key) >= 1, f"task.{key}", getattr(self, key), "at least 1")
        require(self.dim is None or self.dim >= 1, "task.dim", self.dim, "at least 1, or null")
        probability = self.present_probability
        require(0 <= probability <= 1, "task.present_probability", probability, "from 0 to 1")
        require(self.foreground_weight > 0, "task.foreground_weight", self.foreground_weight, "positive")


def run(config: config.Config, run: Run) -> None:
    """Train, and leave checkpoints, metrics and pictures in `run`."""
    segmentation.run(Attention, config, run)


class Attention(Segmentation):
    """Binary cross-entropy of the masks of some classes, drawn anew for each image."""

    trained_scores: ClassVar = {"miou": "miou_asked"}  # only of the masks that were asked for

    @staticmethod
    def make_model(config: config.Config, classes: int, start: StartingPoint) -> AttentionSegmenter:
        task = config.task
        assert isinstance(task, Config)
        encoder = make_encoder(config, start)
        on_encoder = task.placement == "encoder"
        channels = encoder.high_channels if on_encoder else task.decoder_channels
        dim = task.dim or channels
        require(dim % task.heads == 0, "task.heads", task.heads, f"a divisor of the attention's {dim} channels")
        attention = ClassAttention(classes, channels, dim, task.heads, task.kind, task.normalization)
        decoder = make_decoder(task, encoder.low_channels, dim if on_encoder else encoder.high_channels)
        model = AttentionSegmenter(
            encoder, decoder, attention, task.decoder_channels if on_encoder else dim, task.placement
        )
        start.load_decoder(model, of_classes="attention")
        return model

    def learn(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.task, Config)
        asked = draw_classes(labels, len(self.classes), self.task.asked_classes, self.task.present_probability)
        logits, _ = self.model(images, asked)
        losses, weights = self.losses(logits, labels, asked)
        counts = torch.zeros(1 + len(self.classes), 3, dtype=torch.int64, device=labels.device)
        own = iou.count_masks(logits > 0, labels, asked, IGNORE)
        counts.index_add_(0, (asked + 1).flatten(), own.flatten(0, 1))
        return losses.sum() / weights.sum().clamp(min=1), counts

    def predict(self, images: Tensor, labels: Tensor) -> tuple[Prediction, Tensor]:
        logits, attention = self.model.logits(images)  # type: ignore[operator]
        every = torch.arange(logits.shape[1], device=labels.device).expand(len(labels), -1)
        losses, weights = self.losses(logits, labels, every)
        return self.model.read(logits, attention), losses / weights.clamp(min=1)  # type: ignore[operator]

    def losses(self, logits: Tensor, labels: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the cross-entropies of each image's masks, and of their pixels; both 0 where all is ignored."""
        assert isinstance(self.task, Config)
        valid = (labels != IGNORE)[:, None].expand_as(logits)
        masks = (labels[:, None] == asked[:, :, None, None] + 1).to(logits)
        weight = torch.tensor(self.task.foreground_weight).to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, masks, pos_weight=weight, reduction="none")
        return (losses * valid).sum(dim=(1, 2, 3)), valid.sum(dim=(1, 2, 3))

    # Validation

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.mask_counts: list[iou.Counts] = []

    def count(self, prediction: Prediction, labels: Tensor) -> None:
        super().count(prediction, labels)
        every = torch.arange(len(self.classes), device=labels.device).expand(len(labels), -1)
        self.mask_counts.append(iou.count_masks(prediction.masks, labels, every, IGNORE).cpu().numpy())

    def scores(self) -> dict[str, float]:
        """Those of the joined label map, and of the masks by themselves."""
        total = np.concatenate(self.mask_counts).sum(axis=0)
        return {**super().scores(), "miou_masks": float(iou.mean_iou(total))}

    def draw_best(self, examples: list[tuple[str, pictures.Example]]) -> dict[str, Any]:
        several = max((e for _, e in examples), key=lambda e: len(np.unique(e.labels[e.labels != IGNORE])))
        when = "best checkpoint"
        one_each = examples[:: len(examples) // 3]
        return {
            **super().draw_best(examples),
            "attention": pictures.attention([e for _, e in examples], self.classes, when),
            "heads": pictures.heads(one_each, self.classes, f"attention of each head, {when}"),
            "one_after_another": pictures.one_after_another(several, self.classes, f"one class after another, {when}"),
        }

    def draw(self) -> dict[str, Any]:
        attention = pictures.attention(self.shown, self.classes, self._when())
        return {**super().draw(), "attention": attention}


def draw_classes(labels: Tensor, classes: int, number: int, present_probability: float) -> Tensor:
    """Draw the classes that are asked of each image.

    Each is one of those present with `present_probability`, where there is any, else any class, so that the model
    learns to say "none" too.

    Args:
        labels: (b, h, w), 0 background, then the classes.
        classes: How many there are.
        number: How many are drawn for each image, independently.
        present_probability: From 0 to 1.

    Returns:
        (b, number) int64, counted from 0.
    """
    present = torch.stack([(labels == i + 1).flatten(1).any(dim=1) for i in range(classes)], dim=1).float()
    chances = torch.where(present.any(dim=1, keepdim=True), present, 1.0)
    of_present = torch.multinomial(chances, number, replacement=True)
    of_all = torch.randint(classes, of_present.shape, device=labels.device)
    return torch.where(torch.rand(of_present.shape, device=labels.device) < present_probability, of_present, of_all)
