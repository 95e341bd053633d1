"""Reads image files ahead, so that a network does not wait for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cvexp.data.augment.views import CenterView
from cvexp.data.files.progress import bar
from cvexp.data.loaders import outlive_signals
from cvexp.errors import UserError
from cvexp.inference.pictures import to_pixels


class ImageView(NamedTuple):
    """What a network sees of an image.

    Attributes:
        pixels: The view (3, s, s) uint8.
        width, height: The size of the image in pixels.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int


class _Views(Dataset[ImageView | str]):
    """The views of image files, or the reasons why they can't be read."""

    def __init__(self, files: Sequence[Path], view: CenterView) -> None:
        self.files, self.view = files, view

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> ImageView | str:
        try:
            pixels = to_pixels(self.files[position])
        except UserError as error:
            return str(error)
        return ImageView(self.view.show(pixels).numpy(), width=pixels.shape[1], height=pixels.shape[0])


def _unchanged(item: Any) -> Any:
    """Keep arrays, which a worker sends through a pipe. Each tensor would need a file descriptor."""
    return item


def read_views(files: Sequence[Path], view: CenterView, num_workers: int) -> Iterator[ImageView | str]:
    """Yield the view of each file in order, or the reason why it can't be read, and show the progress.

    Args:
        files: The image files.
        view: Selects what the network sees.
        num_workers: Number of processes that read, each a few images ahead; 0 to read in this process.
    """
    loader: DataLoader[ImageView | str] = DataLoader(
        _Views(files, view),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=num_workers,
        prefetch_factor=16 if num_workers else None,
        worker_init_fn=outlive_signals,
    )
    with bar() as progress_bar:
        row = progress_bar.add_task("reading images", total=len(files), status="")
        for num_read, item in enumerate(loader, 1):
            yield item
            progress_bar.update(row, completed=num_read, status=f"{num_read}/{len(files)}")
