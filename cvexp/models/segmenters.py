"""Two segmentation networks: one classifies every pixel, the other returns the mask of each class that is queried.

Shapes: b images, q queried classes, c classes without the background, n attention heads, d channels of a feature map,
h x w pixels of the images. A feature map has fewer positions; its size is written as h' x w'.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.models.attention import ClassAttention
from cvexp.models.backbone import Encoder

MAX_QUERIES = 8  # classes that are queried at once in evaluation, which bounds the memory


class Prediction(NamedTuple):
    """The prediction of a segmenter for a batch.

    Attributes:
        labels: Label maps (b, h, w) int64: 0 background, then the classes.
        masks: The mask of each class (b, c, h, w) bool. Masks may overlap, unlike labels.
        probability: The probability of each class at each pixel (b, c, h, w).
        presence: The probability that the image contains the class (b, c): its maximum over all pixels.
        attention: Attention weights (b, c, n, h', w'), or None if the network has no attention.
    """

    labels: Tensor
    masks: Tensor
    probability: Tensor
    presence: Tensor
    attention: Tensor | None


class MulticlassSegmenter(nn.Module):
    """An encoder, a decoder, and a 1 x 1 convolution to logits of the background and each class.

    Args:
        encoder: Returns two feature maps.
        decoder: Maps these to one feature map with `decoder.channels` channels.
        num_classes: Number of classes without the background, c.
    """

    def __init__(self, encoder: Encoder, decoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.classifier = nn.Conv2d(decoder.channels, 1 + num_classes, kernel_size=1)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to logits (b, 1 + c, h, w)."""
        return _upsample(self.classifier(self.decoder(*self.encoder(images))), images)

    def label(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to label maps (b, h, w)."""
        logits: Tensor = self(images)
        return logits.argmax(dim=1)

    def predict(self, images: Tensor) -> Prediction:
        """Map images (b, 3, h, w) to label maps, masks and probabilities."""
        return self.to_prediction(self(images))

    @staticmethod
    def to_prediction(logits: Tensor) -> Prediction:
        """Convert logits (b, 1 + c, h, w) to label maps, masks and probabilities."""
        probability = logits.softmax(dim=1)
        labels_bhw = probability.argmax(dim=1)
        masks_bchw = F.one_hot(labels_bhw, probability.shape[1]).movedim(-1, 1)[:, 1:].bool()
        probability_bchw = probability[:, 1:]
        return Prediction(labels_bhw, masks_bchw, probability_bchw, probability_bchw.amax(dim=(2, 3)), attention=None)


class AttentionSegmenter(nn.Module):
    """A network that encodes an image once, and returns the mask of each class that is queried.

    With `placement="encoder"`, the classes attend to the encoder's last map, and the whole decoder runs for each class.
    With `placement="decoder"`, they attend to the decoder's output, and only a small head runs for each class.

    Args:
        encoder: Returns two feature maps.
        decoder: Maps these to one feature map.
        attention: Attention over the encoder's last map, or over the decoder's output.
        channels: Number of input channels of the layers that follow: the decoder's output with
            `placement="encoder"`, the attended map with `placement="decoder"`.
        placement: "encoder" or "decoder".
    """

    def __init__(
        self, encoder: Encoder, decoder: nn.Module, attention: ClassAttention, channels: int, placement: str
    ) -> None:
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

    def forward(self, images: Tensor, queries_bq: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the images, and predict a mask for each queried class.

        Args:
            images: (b, 3, h, w).
            queries_bq: Classes to query for each image, counted from 0, (b, q) int64.

        Returns:
            The logits of the masks (b, q, h, w), and the attention weights (b, q, n, h', w').
        """
        return self.query(images, self.encode(images), queries_bq)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what does not depend on the queries: the encoder's low-level map, and the map to attend to."""
        low_bdhw, high_bdhw = self.encoder(images)
        return low_bdhw, high_bdhw if self.placement == "encoder" else self.decoder(low_bdhw, high_bdhw)

    def query(self, images: Tensor, encoded: tuple[Tensor, Tensor], queries_bq: Tensor) -> tuple[Tensor, Tensor]:
        """Query classes; see `forward`.

        Args:
            images: (b, 3, h, w).
            encoded: What `encode` returned for the images.
            queries_bq: Classes to query for each image, counted from 0, (b, q) int64.
        """
        low_bdhw, features_bdhw = encoded
        attended_bqdhw, attention_bqnhw = self.attention(features_bdhw, queries_bq)
        attended = attended_bqdhw.flatten(0, 1)
        decoded = self.decoder(low_bdhw, attended) if self.placement == "encoder" else self.head(attended)
        logits_bqhw = _upsample(self.classifier(decoded), images).unflatten(0, queries_bq.shape)[:, :, 0]
        return logits_bqhw, attention_bqnhw

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Query all classes.

        Args:
            images: (b, 3, h, w).

        Returns:
            The logits of the masks (b, c, h, w), and the attention weights (b, c, n, h', w').
        """
        encoded = self.encode(images)
        queries_bc = torch.arange(self.attention.num_classes, device=images.device).expand(images.shape[0], -1)
        parts = [self.query(images, encoded, queries_bq) for queries_bq in queries_bc.split(MAX_QUERIES, dim=1)]
        logits_bchw, attention_bcnhw = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
        return logits_bchw, attention_bcnhw

    def label(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to label maps (b, h, w), merged from the masks of all classes."""
        return self.merge_masks(self.logits(images)[0])

    def predict(self, images: Tensor) -> Prediction:
        """Map images (b, 3, h, w) to label maps, masks, probabilities and attention weights."""
        return self.to_prediction(*self.logits(images))

    @classmethod
    def to_prediction(cls, logits_bchw: Tensor, attention_bcnhw: Tensor | None = None) -> Prediction:
        """Convert the logits of the masks of all classes to label maps, masks and probabilities."""
        probability_bchw = logits_bchw.sigmoid()
        presence_bc = probability_bchw.amax(dim=(2, 3))
        return Prediction(cls.merge_masks(logits_bchw), logits_bchw > 0, probability_bchw, presence_bc, attention_bcnhw)

    @staticmethod
    def merge_masks(logits_bchw: Tensor) -> Tensor:
        """Merge masks into label maps (b, h, w).

        A pixel gets the class with the largest logit, or the background if no probability exceeds one half.
        """
        best_bhw, class_bhw = logits_bchw.max(dim=1)
        return torch.where(best_bhw > 0, class_bhw + 1, 0)


def _upsample(logits: Tensor, images: Tensor) -> Tensor:
    """Resize logits to the size of the images, in float32, as losses and metrics require."""
    return F.interpolate(logits.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)
