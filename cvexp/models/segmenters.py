"""Two segmentation networks: one classifies every pixel, the other returns the mask of each class that is queried.

Shapes: b images, q queried classes, c classes without the background, k scores (1 + c, or c if the data have no
background), n attention heads, d channels of a feature map, h x w pixels of the images. A feature map has fewer
positions; its size is written as h' x w'.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

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


class Scores(NamedTuple):
    """The output of a segmentation network before scores become labels and probabilities.

    Attributes:
        scores: A score for the background, if there is one, and each class at each pixel (b, k, h, w). The largest one
            gives the label.
        attention: Attention weights (b, c, n, h', w'), or None if the network has no attention.
    """

    scores: Tensor
    attention: Tensor | None


class SegmentationNetwork(nn.Module):
    """The base of segmentation networks, which defines how scores become labels and probabilities.

    Attributes:
        encoder: The encoder, which returns two feature maps.
        activation: How the scores of a pixel become probabilities. With ``"softmax"``, they sum to 1, with the
            background. With ``"sigmoid"``, each class has its own, and the score of the background is 0.
        has_background: Whether the first score is that of the background. If not, every pixel gets a class.
        can_query: Whether :meth:`scores` can be limited to some of the classes.
    """

    encoder: Encoder
    activation: ClassVar[str] = "softmax"
    can_query: ClassVar[bool] = False
    has_background: bool = True

    @abstractmethod
    def scores(self, images: Tensor) -> Scores:
        """Map images (b, 3, h, w) to scores (b, k, h, w), and attention weights if there are any."""

    def label(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to label maps (b, h, w)."""
        return self.to_labels(self.scores(images).scores)

    def predict(self, images: Tensor) -> Prediction:
        """Map images (b, 3, h, w) to label maps, masks, probabilities, and attention weights if there are any."""
        return self.to_prediction(*self.scores(images))

    def to_labels(self, scores_bkhw: Tensor) -> Tensor:
        """Convert scores to label maps (b, h, w): 0 background, then the classes."""
        labels_bhw = scores_bkhw.argmax(dim=1)
        return labels_bhw if self.has_background else labels_bhw + 1

    def to_prediction(self, scores_bkhw: Tensor, attention_bcnhw: Tensor | None = None) -> Prediction:
        """Convert scores to label maps, masks and probabilities."""
        labels_bhw = self.to_labels(scores_bkhw)
        probability_bchw = self.probability(scores_bkhw, self.has_background)
        if self.activation == "softmax":
            numbers_c11 = torch.arange(1, 1 + probability_bchw.shape[1], device=scores_bkhw.device)[:, None, None]
            masks_bchw = labels_bhw[:, None] == numbers_c11
        else:
            masks_bchw = scores_bkhw[:, int(self.has_background) :] > 0
        presence_bc = probability_bchw.amax(dim=(2, 3))
        return Prediction(labels_bhw, masks_bchw, probability_bchw, presence_bc, attention_bcnhw)

    @classmethod
    def probability(cls, scores_bkhw: Tensor, has_background: bool = True) -> Tensor:
        """Convert scores, the first of which may be that of the background, to probabilities (b, c, h, w)."""
        first = int(has_background)
        if cls.activation == "softmax":
            return scores_bkhw.softmax(dim=1)[:, first:]
        return scores_bkhw[:, first:].sigmoid()


class MulticlassSegmenter(SegmentationNetwork):
    """An encoder, a decoder, and a 1 x 1 convolution to logits of the background, if there is one, and each class.

    Args:
        encoder: Returns two feature maps.
        decoder: Maps these to one feature map with `decoder.channels` channels.
        num_classes: Number of classes without the background, c.
        has_background: Whether pixels may belong to no class.
    """

    def __init__(self, encoder: Encoder, decoder: nn.Module, num_classes: int, has_background: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.has_background = has_background
        num_scores = int(has_background) + num_classes
        self.classifier = nn.Conv2d(decoder.channels, num_scores, kernel_size=1)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to logits (b, k, h, w)."""
        return _upsample(self.classifier(self.decoder(*self.encoder(images))), images)

    def scores(self, images: Tensor) -> Scores:
        """Return the logits."""
        return Scores(self(images), attention=None)


class AttentionSegmenter(SegmentationNetwork):
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
        has_background: Whether pixels may belong to no class.
    """

    activation = "sigmoid"
    can_query = True

    def __init__(
        self,
        encoder: Encoder,
        decoder: nn.Module,
        attention: ClassAttention,
        channels: int,
        placement: str,
        has_background: bool = True,
    ) -> None:
        super().__init__()
        self.has_background = has_background
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

    def logits(self, images: Tensor, classes: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Query classes that are the same for all images.

        Args:
            images: (b, 3, h, w).
            classes: The q classes, counted from 0; None for all c.

        Returns:
            The logits of the masks (b, q, h, w), and the attention weights (b, q, n, h', w').
        """
        encoded = self.encode(images)
        queries_q = torch.arange(self.attention.num_classes, device=images.device)
        if classes is not None:
            queries_q = torch.tensor(classes, device=images.device)
        queries_bq = queries_q.expand(images.shape[0], -1)
        parts = [self.query(images, encoded, part) for part in queries_bq.split(MAX_QUERIES, dim=1)]
        logits_bqhw, attention_bqnhw = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
        return logits_bqhw, attention_bqnhw

    def scores(self, images: Tensor, classes: Sequence[int] | None = None) -> Scores:
        """Return the logits of the masks of all or some classes, after a score of 0 for the background.

        A pixel thus gets the class with the largest logit, or the background if no probability exceeds one half. If the
        data have no background, only the scores of some classes begin with 0, which then stands for all others.
        """
        logits_bqhw, attention_bqnhw = self.logits(images, classes)
        return Scores(self.to_scores(logits_bqhw), attention_bqnhw)

    def to_scores(self, logits_bqhw: Tensor) -> Tensor:
        """Prepend the score of the background, 0, to the logits of masks, unless each pixel has one of the classes."""
        is_complete = not self.has_background and logits_bqhw.shape[1] == self.attention.num_classes
        return logits_bqhw if is_complete else F.pad(logits_bqhw, (0, 0, 0, 0, 1, 0))


def _upsample(logits: Tensor, images: Tensor) -> Tensor:
    """Resize logits to the size of the images, in float32, as losses and metrics require."""
    return F.interpolate(logits.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)
