"""The two ways to segment: every pixel classified at once, and one class asked for at a time.

Shapes: b images of h x w pixels, c classes without the background, q classes asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.models.attention import ClassAttention
from cvexp.models.backbone import Encoder

ASKED_AT_ONCE = 8  # classes in evaluation, so that memory does not grow with their number


class Prediction(NamedTuple):
    """What a segmenter says of a batch.

    Attributes:
        labels: (b, h, w) int64: 0 background, then the classes.
        masks: (b, c, h, w) bool: each class's own mask; they may overlap, unlike the labels.
        probability: (b, c, h, w) float: how probable each class is at each pixel.
        presence: (b, c) float: how probable it is that the class is in the image; the largest of these.
        attention: (b, c, heads, h', w'), or None.
    """

    labels: Tensor
    masks: Tensor
    probability: Tensor
    presence: Tensor
    attention: Tensor | None


class MulticlassSegmenter(nn.Module):
    """Encoder, decoder, and a 1 x 1 convolution that gives each pixel a logit for the background and each class."""

    def __init__(self, encoder: Encoder, decoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.classifier = nn.Conv2d(decoder.channels, 1 + classes, kernel_size=1)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) to logits (b, 1 + c, h, w)."""
        return _resize(self.classifier(self.decoder(*self.encoder(images))), images)

    def label(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) to the most probable class of each pixel (b, h, w)."""
        logits: Tensor = self(images)
        return logits.argmax(dim=1)

    def predict(self, images: Tensor) -> Prediction:
        """The same, and all else that can be said."""
        return self.read(self(images))

    @staticmethod
    def read(logits: Tensor) -> Prediction:
        """Logits (b, 1 + c, h, w) to labels; classes are there as far as their most probable pixel is."""
        probability = logits.softmax(dim=1)
        labels = probability.argmax(dim=1)
        masks = F.one_hot(labels, probability.shape[1]).movedim(-1, 1)[:, 1:].bool()
        return Prediction(labels, masks, probability[:, 1:], probability[:, 1:].amax(dim=(2, 3)), attention=None)


class AttentionSegmenter(nn.Module):
    """Any number of classes asked of one encoding; each answer is the mask of that class alone.

    With the attention on the encoder's map (`placement="encoder"`) the whole decoder runs for each class. After the
    decoder's trunk (`"decoder"`) the classes share that, and only a light head runs for each.
    """

    def __init__(
        self, encoder: Encoder, decoder: nn.Module, attention: ClassAttention, channels: int, placement: str
    ) -> None:
        """
        Args:
            encoder, decoder: What gives the feature maps.
            attention: Over the encoder's last map, or over the decoder's.
            channels: Of what follows the attention: its own, or with `placement="encoder"` the decoder's.
            placement: "encoder" or "decoder".
        """
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.attention = attention
        self.placement = placement
        if placement == "decoder":
            conv = nn.Conv2d(channels, channels // 2, kernel_size=3, padding=1, bias=False)
            channels //= 2
            self.head = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.classifier = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, images: Tensor, asked_bq: Tensor) -> tuple[Tensor, Tensor]:
        """Ask for classes; the backbone runs once.

        Args:
            images: (b, 3, h, w).
            asked_bq: The classes asked of each image, counted from 0, (b, q) int64.

        Returns:
            Logits of the masks (b, q, h, w), and the attention (b, q, heads, h', w').
        """
        return self.ask(images, self.encode(images), asked_bq)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """All that doesn't depend on the class: the encoder's low-level map, and the map that is attended."""
        low, high = self.encoder(images)
        return (low, high) if self.placement == "encoder" else (low, self.decoder(low, high))

    def ask(self, images: Tensor, encoded: tuple[Tensor, Tensor], asked_bq: Tensor) -> tuple[Tensor, Tensor]:
        """Like `forward`, of what `encode` gave."""
        low, features = encoded
        attended_bqdhw, attention_bqnhw = self.attention(features, asked_bq)
        attended = attended_bqdhw.flatten(0, 1)
        answered = self.decoder(low, attended) if self.placement == "encoder" else self.head(attended)
        return _resize(self.classifier(answered), images).unflatten(0, asked_bq.shape)[:, :, 0], attention_bqnhw

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, h, w) to the masks' logits of all classes (b, c, h, w), and the attention (b, c, heads, h', w')."""
        encoded = self.encode(images)
        every = torch.arange(self.attention.classes, device=images.device).expand(len(images), -1)
        answers = [self.ask(images, encoded, some) for some in every.split(ASKED_AT_ONCE, dim=1)]
        logits, attention = (torch.cat(parts, dim=1) for parts in zip(*answers, strict=True))
        return logits, attention

    def label(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) to the label map (b, h, w) that the masks of all classes make together."""
        return self.join(self.logits(images)[0])

    def predict(self, images: Tensor) -> Prediction:
        """The same, and all else that can be said."""
        return self.read(*self.logits(images))

    @classmethod
    def read(cls, logits_bchw: Tensor, attention: Tensor | None = None) -> Prediction:
        """Masks' logits to labels, masks, and which classes are there: as far as their best pixel is."""
        probability = logits_bchw.sigmoid()
        return Prediction(cls.join(logits_bchw), logits_bchw > 0, probability, probability.amax(dim=(2, 3)), attention)

    @staticmethod
    def join(logits_bchw: Tensor) -> Tensor:
        """Masks' logits to labels: the class with the best score, and the background where none reaches 0.5."""
        best, label = logits_bchw.max(dim=1)
        return torch.where(best > 0, label + 1, 0)


def _resize(logits: Tensor, images: Tensor) -> Tensor:
    """Logits at the images' size; in float32, as losses and scores need it."""
    return F.interpolate(logits.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)
