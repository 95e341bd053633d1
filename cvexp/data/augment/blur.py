"""Gaussian blur of a batch, with its own width for each image.

Shapes: b images, c channels, h x w pixels, k taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kernels(sigma_b: Tensor, num_taps: int) -> Tensor:
    """Compute Gaussian kernels (b, k) for standard deviations in pixels, as torchvision does."""
    taps_k = torch.arange(num_taps) - (num_taps - 1) / 2
    weights_bk = torch.exp(-0.5 * (taps_k / sigma_b[:, None]) ** 2)
    return weights_bk / weights_bk.sum(1, keepdim=True)


def blur(images_bchw: Tensor, kernels_bk: Tensor) -> Tensor:
    """Blur images (b, c, h, w) uint8 with separable kernels (b, k), k odd. Edges are reflected."""
    num_channels, num_taps = images_bchw.shape[1], kernels_bk.shape[1]
    padded_bchw = F.pad(images_bchw.float(), [num_taps // 2] * 4, mode="reflect")
    maps_1nhw = padded_bchw.flatten(0, 1)[None]  # each channel of each image is convolved with its own kernel
    kernels_n1k = kernels_bk.repeat_interleave(num_channels, 0)[:, None]
    num_maps = len(kernels_n1k)
    maps_1nhw = F.conv2d(maps_1nhw, kernels_n1k[:, :, :, None], groups=num_maps)
    maps_1nhw = F.conv2d(maps_1nhw, kernels_n1k[:, :, None, :], groups=num_maps)
    return maps_1nhw.view_as(images_bchw).round_().clamp_(0, 255).byte()
