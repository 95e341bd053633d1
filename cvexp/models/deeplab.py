"""Decoders with dilated convolutions: DeepLabV3 (https://arxiv.org/abs/1706.05587) and DeepLabV3+
(https://arxiv.org/abs/1802.02611), without the classifier, so that other heads can follow the same trunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

LOW_CHANNELS = 48  # of the reduced low-level features, as in the DeepLabV3+ paper


class DeepLabV3(nn.Module):
    """Atrous spatial pyramid pooling (torchvision's) and one 3 x 3 convolution, at the encoder's output stride.

    Args:
        low_channels: Not used; so that both decoders are made alike.
        high_channels: Of the encoder's last map.
        channels: Of every layer, and of the map that it gives.
        rates: Of the dilated convolutions.
        dropout: Probability, after the pyramid.
    """

    def __init__(
        self, low_channels: int, high_channels: int, channels: int, rates: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.channels = channels
        self.aspp = make_aspp(high_channels, channels, rates, dropout)
        self.refine = nn.Sequential(*_conv(channels, channels, kernel=3))

    def forward(self, low_bchw: Tensor, high_bchw: Tensor) -> Tensor:
        """The encoder's maps to (b, channels, h, w) of the last one's size."""
        refined: Tensor = self.refine(self.aspp(high_bchw))
        return refined


class DeepLabV3Plus(nn.Module):
    """The pyramid, upsampled and joined with low-level features that know where edges are.

    Args:
        low_channels: Of the encoder's early map.
        high_channels, channels, rates, dropout: See `DeepLabV3`.
    """

    def __init__(
        self, low_channels: int, high_channels: int, channels: int, rates: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.channels = channels
        self.aspp = make_aspp(high_channels, channels, rates, dropout)
        self.reduce_low = nn.Sequential(*_conv(low_channels, LOW_CHANNELS, kernel=1))
        self.refine = nn.Sequential(
            *_conv(channels + LOW_CHANNELS, channels, kernel=3), *_conv(channels, channels, kernel=3)
        )

    def forward(self, low_bchw: Tensor, high_nchw: Tensor) -> Tensor:
        """The encoder's maps to (n, channels, h, w) of the early one's size.

        The last map may come several times for each image (n = b q, image by image), once for each class asked for.
        """
        low = self.reduce_low(low_bchw).repeat_interleave(len(high_nchw) // len(low_bchw), dim=0)
        high = F.interpolate(self.aspp(high_nchw), size=low.shape[-2:], mode="bilinear", align_corners=False)
        refined: Tensor = self.refine(torch.cat([high, low], dim=1))
        return refined


DECODERS = {"deeplabv3": DeepLabV3, "deeplabv3plus": DeepLabV3Plus}


def make_aspp(in_channels: int, channels: int, rates: Sequence[int], dropout: float) -> ASPP:
    """torchvision's pyramid: convolutions 1 x 1 and of each rate, and image pooling, joined by a 1 x 1 convolution."""
    aspp = ASPP(in_channels, list(rates), channels)
    aspp.project[3].p = dropout
    return aspp


def _conv(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
