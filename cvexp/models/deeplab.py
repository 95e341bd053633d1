"""Decoders with dilated convolutions: DeepLabV3 (https://arxiv.org/abs/1706.05587) and DeepLabV3+
(https://arxiv.org/abs/1802.02611), without the classifier, so that other heads can follow.

Shapes: b images, c channels, h x w positions of a feature map, n = b * q maps (q per image, grouped by image).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

LOW_CHANNELS = 48  # channels to which low-level features are reduced, as in the DeepLabV3+ paper


class DeepLabV3(nn.Module):
    """Atrous spatial pyramid pooling (ASPP) and a 3 x 3 convolution, at the encoder's output stride.

    Args:
        low_channels: Not used; all decoders have the same arguments.
        high_channels: Number of channels of the encoder's last map.
        channels: Number of channels of every layer, and of the output.
        rates: Dilation rates of the ASPP.
        dropout: Dropout probability after the ASPP.
    """

    def __init__(
        self, low_channels: int, high_channels: int, channels: int, rates: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.channels = channels
        self.aspp = make_aspp(high_channels, channels, rates, dropout)
        self.refine = nn.Sequential(*_conv_norm_relu(channels, channels, kernel_size=3))

    def forward(self, low_bchw: Tensor, high_nchw: Tensor) -> Tensor:
        """Map the encoder's feature maps to one map with `channels` channels and the size of the last map.

        Args:
            low_bchw: Low-level maps. Not used.
            high_nchw: Last maps, q per image.

        Returns:
            (n, channels, h, w).
        """
        refined_nchw: Tensor = self.refine(self.aspp(high_nchw))
        return refined_nchw


class DeepLabV3Plus(nn.Module):
    """Atrous spatial pyramid pooling (ASPP), upsampled and refined with the encoder's low-level features.

    Args:
        low_channels: Number of channels of the encoder's low-level map.
        high_channels, channels, rates, dropout: See `DeepLabV3`.
    """

    def __init__(
        self, low_channels: int, high_channels: int, channels: int, rates: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.channels = channels
        self.aspp = make_aspp(high_channels, channels, rates, dropout)
        self.reduce_low = nn.Sequential(*_conv_norm_relu(low_channels, LOW_CHANNELS, kernel_size=1))
        self.refine = nn.Sequential(
            *_conv_norm_relu(channels + LOW_CHANNELS, channels, kernel_size=3),
            *_conv_norm_relu(channels, channels, kernel_size=3),
        )

    def forward(self, low_bchw: Tensor, high_nchw: Tensor) -> Tensor:
        """Map the encoder's feature maps to one map with `channels` channels and the size of the low-level map.

        Args:
            low_bchw: Low-level maps.
            high_nchw: Last maps, q per image.

        Returns:
            (n, channels, h, w).
        """
        num_maps = high_nchw.shape[0] // low_bchw.shape[0]  # torch.export would turn len() into a constant
        low_nchw = self.reduce_low(low_bchw).repeat_interleave(num_maps, dim=0)
        high_nchw = F.interpolate(self.aspp(high_nchw), size=low_nchw.shape[-2:], mode="bilinear", align_corners=False)
        refined_nchw: Tensor = self.refine(torch.cat([high_nchw, low_nchw], dim=1))
        return refined_nchw


DECODERS = {"deeplabv3": DeepLabV3, "deeplabv3plus": DeepLabV3Plus}


def make_aspp(in_channels: int, channels: int, rates: Sequence[int], dropout: float) -> ASPP:
    """Create torchvision's ASPP with a dropout probability other than torchvision's fixed 0.5."""
    aspp = ASPP(in_channels, list(rates), channels)
    aspp.project[3].p = dropout
    return aspp


def _conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
