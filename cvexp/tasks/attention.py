"""`task=attention`: segmentation of one class at a time, by attention over the feature map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cvexp import processes
from cvexp.config import RunConfig
from cvexp.data.index import IGNORE
from cvexp.keys import choice, number, require, share
from cvexp.metrics import iou
from cvexp.models.attention import NORMALIZATIONS, SCORES, ClassAttention
from cvexp.models.segmenters import AttentionSegmenter, Prediction
from cvexp.report import segmentation as pictures
from cvexp.report.style import SCREEN_DPI
from cvexp.tracking.run import ReadOnlyRun
from cvexp.training.parts import make_decoder, make_encoder
from cvexp.training.segmentation import SegmentationTraining, train_segmenter
from cvexp.training.segmentation_config import SegmentationConfig
from cvexp.weights.fitting import fit_decoder
from cvexp.weights.start import Start


@dataclass(kw_only=True)
class Config(SegmentationConfig):
    description: ClassVar[str] = "segments one class at a time; the masks are then merged by score"
    description_of_background: ClassVar[str] = ", with background where no score reaches one half"

    kind: str = choice(*SCORES)
    normalization: str = choice(*NORMALIZATIONS)
    placement: str = choice("encoder", "decoder")
    heads: int = number(1)
    dim: int | None = number(1)
    asked_classes: int = number(1)
    present_probability: float = share()
    foreground_weight: float = number(above=0)


def main(config: RunConfig, run: ReadOnlyRun) -> float:
    """Train, and return the monitored metric at the best epoch."""
    return train_segmenter(Attention, config, run)


class Attention(SegmentationTraining):
    """Binary cross-entropy of the masks of a few classes, which are drawn at random for each image.

    Shapes: b images of h x w pixels, c classes, q queried classes.
    """

    model: AttentionSegmenter

    @property
    def task(self) -> Config:
        assert isinstance(self.config.task, Config)
        return self.config.task

    @staticmethod
    def build_model(config: RunConfig, num_classes: int, start: Start) -> AttentionSegmenter:
        task = config.task
        assert isinstance(task, Config)
        encoder = make_encoder(config, start)
        on_encoder = task.placement == "encoder"
        channels = encoder.high_channels if on_encoder else task.decoder_channels
        dim = task.dim or channels
        require(dim % task.heads == 0, "task.heads", task.heads, f"a divisor of the attention's {dim} channels")
        attention = ClassAttention(num_classes, channels, dim, task.heads, task.kind, task.normalization)
        decoder = make_decoder(task, encoder.low_channels, dim if on_encoder else encoder.high_channels)
        model = AttentionSegmenter(
            encoder,
            decoder,
            attention,
            task.decoder_channels if on_encoder else dim,
            task.placement,
            config.dataset.has_background,
        )
        fit_decoder(model, start, of_classes="attention")
        return model

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        queries = draw_classes(labels, len(self.classes), self.task.asked_classes, self.task.present_probability)
        logits, _ = self.model(images, queries)
        losses, num_pixels = self.losses(logits, labels, queries)
        counts = torch.zeros(1 + len(self.classes), 3, dtype=torch.int64, device=labels.device)
        of_masks = iou.count_masks(logits > 0, labels, queries, IGNORE)
        counts.index_add_(0, (queries + 1).flatten(), of_masks.flatten(0, 1))
        return losses.sum() / processes.mean(num_pixels.sum()).clamp(min=1), {"counts": counts}

    def training_scores(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Rename the mIoU, because only the queried classes were scored."""
        return {"miou_asked": scores["miou"]} if "miou" in scores else {}

    def predict(self, images: Tensor, labels: Tensor) -> tuple[Prediction, Tensor]:
        logits, attention = self.model.logits(images)
        losses, num_pixels = self.losses(logits, labels, self._all_classes(labels))
        prediction = self.model.to_prediction(self.model.to_scores(logits), attention)
        return prediction, losses / num_pixels.clamp(min=1)

    def losses(self, logits: Tensor, labels: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Compute each image's cross-entropy, summed over masks and valid pixels, and the number of terms in that sum.

        Both are 0 for an image whose pixels are all ignored.

        Args:
            logits: (b, q, h, w).
            labels: (b, h, w).
            queries: (b, q), the class of each mask, counted from 0.

        Returns:
            Two tensors (b,).
        """
        valid = (labels != IGNORE)[:, None].expand_as(logits)
        masks = (labels[:, None] == queries[:, :, None, None] + 1).to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
        if (weight := self.task.foreground_weight) != 1:
            losses = losses * (1 + (weight - 1) * masks)
        return (losses * valid).sum(dim=(1, 2, 3)), valid.sum(dim=(1, 2, 3))

    def _all_classes(self, labels: Tensor) -> Tensor:
        """Return queries (b, c) for every class."""
        return torch.arange(len(self.classes), device=labels.device).expand(len(labels), -1)

    # Validation

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._mask_counts: list[Tensor] = []

    def count(self, prediction: Prediction, labels: Tensor) -> None:
        super().count(prediction, labels)
        self._mask_counts.append(iou.count_masks(prediction.masks, labels, self._all_classes(labels), IGNORE))

    def scores(self) -> dict[str, float]:
        """Return the scores of the merged label map, and the mIoU of the separate masks."""
        total = torch.cat(processes.gather_in_order(self._mask_counts)).sum(dim=0).cpu().numpy()
        return {**super().scores(), "miou_masks": float(iou.mean_iou(total))}

    def draw(self) -> dict[str, Any]:
        attention = pictures.attention(self._examples, self.classes, self._state(), SCREEN_DPI)
        return {**super().draw(), "attention": attention}

    def draw_best(self, examples: list[tuple[str, pictures.Example]]) -> dict[str, Any]:
        most_classes = max((e for _, e in examples), key=lambda e: len(np.unique(e.labels[e.labels != IGNORE])))
        state = "best checkpoint"
        one_of_each = examples[:: len(examples) // 3]
        return {
            **super().draw_best(examples),
            "attention": pictures.attention([e for _, e in examples], self.classes, state),
            "heads": pictures.heads(one_of_each, self.classes, f"attention of each head, {state}"),
            "one_after_another": pictures.one_after_another(
                most_classes, self.classes, f"one image, a query for each class, {state}"
            ),
        }


Method = Attention


def draw_classes(labels: Tensor, num_classes: int, num_queries: int, present_probability: float) -> Tensor:
    """Draw the classes to query for each image.

    With `present_probability`, a query is one of the classes in the image, if there is any. Otherwise it is any class,
    so that the model also learns to return empty masks.

    Args:
        labels: (b, h, w), 0 background, then the classes.
        num_classes: Number of classes.
        num_queries: Number of queries for each image, q. They are drawn independently.
        present_probability: From 0 to 1.

    Returns:
        (b, q) int64, counted from 0.
    """
    present = torch.stack([(labels == i + 1).flatten(1).any(dim=1) for i in range(num_classes)], dim=1).float()
    weights = torch.where(present.any(dim=1, keepdim=True), present, 1.0)
    from_present = torch.multinomial(weights, num_queries, replacement=True)
    from_all = torch.randint(num_classes, from_present.shape, device=labels.device)
    return torch.where(
        torch.rand(from_present.shape, device=labels.device) < present_probability, from_present, from_all
    )
