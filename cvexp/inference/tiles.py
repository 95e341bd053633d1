"""Overlapping tiles of an image, and the blending of what a network predicts for them.

Shapes: k maps, an image of h x w pixels, square tiles of s x s pixels, m rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

OVERLAP = 0.25  # smallest share of a tile that it has in common with the next one


class Layout(NamedTuple):
    """Where the tiles of an image are.

    Attributes:
        tops, lefts: First row of each row of tiles, and first column of each column of tiles.
        size: Side length s of the tiles in pixels.
        height, width: Size of the image in pixels.
    """

    tops: list[int]
    lefts: list[int]
    size: int
    height: int
    width: int

    @property
    def num_tiles(self) -> int:
        return len(self.tops) * len(self.lefts)

    def cut(self, image_chw: Tensor) -> Iterator[Tensor]:
        """Yield the tiles (c, s, s), row by row. What lies outside the image is 0."""
        for top in self.tops:
            for left in self.lefts:
                part = image_chw[:, top : top + self.size, left : left + self.size]
                if part.shape[1:] != (self.size, self.size):
                    padded = part.new_zeros(len(part), self.size, self.size)
                    padded[:, : part.shape[1], : part.shape[2]] = part
                    part = padded
                yield part


def arrange(height: int, width: int, size: int) -> Layout:
    """Arrange as few tiles as possible evenly over an image, so that neighbors overlap by at least `OVERLAP`."""
    return Layout(_starts(height, size), _starts(width, size), size, height, width)


def _starts(length: int, size: int) -> list[int]:
    if length <= size:
        return [0]
    num_tiles = 1 + math.ceil((length - size) / max(1, size - math.ceil(OVERLAP * size)))
    return [round(i * (length - size) / (num_tiles - 1)) for i in range(num_tiles)]


class Blend:
    """Averages the maps of overlapping tiles, with weights that fall towards the borders of each tile.

    Only the rows that a row of tiles covers are in memory.

    Args:
        layout: Where the tiles are.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        ramp_s = 1 - (torch.arange(layout.size) + 0.5 - layout.size / 2).abs() / (layout.size / 2)
        self.weights_ss = ramp_s[:, None] * ramp_s
        self.number = 0  # of the next tile
        self.sum_ksw: Tensor | None = None
        self.total_sw: Tensor | None = None

    def add(self, maps_kss: Tensor) -> Iterator[Tensor]:
        """Add the maps of the next tile, and yield the rows (k, m, w) that are then complete, in order."""
        size, width = self.layout.size, self.layout.width
        if self.sum_ksw is None or self.total_sw is None:
            self.sum_ksw = maps_kss.new_zeros(len(maps_kss), size, width)
            self.total_sw = maps_kss.new_zeros(size, width)
            self.weights_ss = self.weights_ss.to(maps_kss)
        row, column = divmod(self.number, len(self.layout.lefts))
        left = self.layout.lefts[column]
        inside = slice(left, min(left + size, width))
        count = inside.stop - left
        self.sum_ksw[:, :, inside] += (maps_kss * self.weights_ss)[:, :, :count]
        self.total_sw[:, inside] += self.weights_ss[:, :count]
        self.number += 1
        if column + 1 < len(self.layout.lefts):
            return
        is_last = row + 1 == len(self.layout.tops)
        end = self.layout.height if is_last else self.layout.tops[row + 1]
        num_rows = end - self.layout.tops[row]
        yield self.sum_ksw[:, :num_rows] / self.total_sw[:num_rows]
        if not is_last:
            self.sum_ksw = torch.cat([self.sum_ksw[:, num_rows:], torch.zeros_like(self.sum_ksw[:, :num_rows])], dim=1)
            self.total_sw = torch.cat([self.total_sw[num_rows:], torch.zeros_like(self.total_sw[:num_rows])])
