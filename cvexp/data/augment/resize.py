"""Resizing of a region of each image in a batch.

Shapes: b images, padded to h x w pixels, c channels, views of s x s pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Regions(NamedTuple):
    """The region of each image that is resized, and the part of the result that is kept.

    Attributes:
        box: Top, left, height and width of the region in pixels (b, 4) int64.
        resized: Height and width to which the region is resized (b, 2) int64.
        first: The first row and column that are kept (b, 2) int64.
    """

    box: Tensor
    resized: Tensor
    first: Tensor


def resize(pixels_bhwc: Tensor, regions: Regions, size: int) -> Tensor:
    """Resize regions with an antialiased bicubic filter.

    On a CPU, PyTorch's kernel for 8-bit images processes one image after another, which is the fastest way. On other
    devices, one matrix product for each direction processes the whole batch. The results differ by rounding.

    Args:
        pixels_bhwc: (b, h, w, 3) uint8.
        regions: The regions.
        size: Side length s of the square that is kept.

    Returns:
        (b, 3, s, s) uint8.
    """
    if pixels_bhwc.device.type == "cpu":
        return resize_each(pixels_bhwc, regions, size)
    return resize_all(pixels_bhwc, regions, size)


def resize_each(pixels_bhwc: Tensor, regions: Regions, size: int) -> Tensor:
    """Resize with PyTorch's kernel, one image after another; see :func:`resize`."""
    resized_1css = []
    for image_hwc, (top, left, height, width), sides, (y, x) in zip(
        pixels_bhwc, *map(Tensor.tolist, regions), strict=True
    ):
        region_1chw = image_hwc[top : top + height, left : left + width].permute(2, 0, 1)[None]
        whole_1chw = F.interpolate(region_1chw, sides, mode="bicubic", antialias=True)
        resized_1css.append(whole_1chw[:, :, y : y + size, x : x + size])
    return torch.cat(resized_1css)


def resize_all(pixels_bhwc: Tensor, regions: Regions, size: int) -> Tensor:
    """Resize with two matrix products for the whole batch; see :func:`resize`."""
    height, width = pixels_bhwc.shape[1:3]
    rows_bsh, columns_bsw = (
        _weights(
            regions.box[:, axis], regions.box[:, axis + 2], regions.resized[:, axis], regions.first[:, axis], size, side
        )
        for axis, side in ((0, height), (1, width))
    )
    narrow_bchs = _to_bytes(pixels_bhwc.permute(0, 3, 1, 2).float() @ columns_bsw.mT[:, None])
    return _to_bytes(rows_bsh[:, None] @ narrow_bchs.float())


def _to_bytes(x: Tensor) -> Tensor:
    return x.round_().clamp_(0, 255).byte()


def _weights(start_b: Tensor, length_b: Tensor, resized_b: Tensor, first_b: Tensor, size: int, side: int) -> Tensor:
    """Compute the weight of each input pixel in each output pixel along one axis, (b, s, side) float32."""
    scale_b11 = (length_b / resized_b)[:, None, None]
    output_bs1 = first_b[:, None, None] + torch.arange(size, device=start_b.device)[:, None]
    center_bs1 = start_b[:, None, None] + (output_bs1 + 0.5) * scale_b11
    input_w = torch.arange(side, device=start_b.device)
    weights_bsw = _cubic((input_w + 0.5 - center_bs1) / scale_b11.clamp(min=1))
    is_inside_b1w = (input_w >= start_b[:, None, None]) & (input_w < (start_b + length_b)[:, None, None])
    weights_bsw = weights_bsw * is_inside_b1w
    return weights_bsw / weights_bsw.sum(-1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Evaluate the cubic convolution kernel with a = -0.5, as Pillow and PyTorch do if they antialias."""
    x = x.abs()
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))


def take_nearest(labels_bhw: Tensor, regions: Regions, size: int) -> Tensor:
    """Resize regions of label maps (b, h, w) by taking the nearest pixel of each, to (b, s, s)."""
    y_bs, x_bs = (
        regions.box[:, axis, None]
        + (
            (torch.arange(size, device=labels_bhw.device) + regions.first[:, axis, None] + 0.5)
            * regions.box[:, axis + 2, None]
            / regions.resized[:, axis, None]
        ).long()
        for axis in (0, 1)
    )
    image_b11 = torch.arange(len(labels_bhw), device=labels_bhw.device)[:, None, None]
    return labels_bhw[image_b11, y_bs[:, :, None], x_bs[:, None, :]]
