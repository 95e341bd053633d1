"""Bilinear resizing of maps that arrive a few rows at a time, and leave in the same way.

Shapes: k maps of h x w positions, resized to t x s pixels, m rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROWS = 32  # rows that are resized at once, which bounds the memory


class RowResizer:
    """Resizes maps like :func:`torch.nn.functional.interpolate`, with memory for a few rows.

    Args:
        size: Height h and width w of the maps.
        new_size: Height t and width s of the result. If it equals `size`, the values do not change.
    """

    def __init__(self, size: tuple[int, int], new_size: tuple[int, int]) -> None:
        (self.height, self.width), (self.new_height, self.new_width) = size, new_size
        source_t = (torch.arange(self.new_height) + 0.5) * (self.height / self.new_height) - 0.5
        source_t = source_t.clamp(0, self.height - 1)
        self.upper_t = source_t.long()
        self.lower_t = (self.upper_t + 1).clamp(max=self.height - 1)
        self.fraction_t = source_t - self.upper_t
        self.num_done = 0  # rows of the result
        self.first = 0  # number of the first row in `kept`
        self.kept: Tensor | None = None  # rows that are still needed, at the new width

    def add(self, rows_kmw: Tensor) -> Iterator[Tensor]:
        """Add the next rows, and yield the rows (k, m', s) of the result that are then known, in order."""
        for part_kmw in rows_kmw.split(MAX_ROWS, dim=1):
            yield from self._add(part_kmw)

    def _add(self, rows_kmw: Tensor) -> Iterator[Tensor]:
        if self.new_width != self.width:
            size = (rows_kmw.shape[1], self.new_width)
            rows_kmw = F.interpolate(rows_kmw[None], size, mode="bilinear", align_corners=False)[0]
        self.kept = rows_kmw if self.kept is None else torch.cat([self.kept, rows_kmw], dim=1)
        num_known = self.first + self.kept.shape[1]
        end = int((self.lower_t < num_known).sum())
        while self.num_done < end:
            chosen = slice(self.num_done, min(self.num_done + MAX_ROWS, end))
            upper_m, lower_m = (
                (index_t[chosen] - self.first).to(self.kept.device) for index_t in (self.upper_t, self.lower_t)
            )
            fraction_m1 = self.fraction_t[chosen, None].to(self.kept.device)
            yield torch.lerp(self.kept[:, upper_m], self.kept[:, lower_m], fraction_m1)
            self.num_done = chosen.stop
        if self.num_done < self.new_height:
            num_unneeded = min(int(self.upper_t[self.num_done]) - self.first, self.kept.shape[1])
            self.kept = self.kept[:, num_unneeded:]
            self.first += num_unneeded


def resize_rows(maps_khw: Tensor, new_size: tuple[int, int]) -> Iterator[Tensor]:
    """Resize maps (k, h, w), and yield the rows (k, m, s) of the result in order."""
    height, width = maps_khw.shape[1:]
    yield from RowResizer((height, width), new_size).add(maps_khw)
