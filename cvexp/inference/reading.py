"""Reading picture files in worker processes, while a network works on the pictures before them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cvexp.config import LoaderConfig
from cvexp.data.augment.views import CenterView
from cvexp.data.loaders import outlive_signals, start_method
from cvexp.errors import UserError
from cvexp.inference.pictures import to_pixels


class ReadPicture(NamedTuple):
    """A picture file that was read, or could not be.

    Attributes:
        path: The file.
        pixels: (h, w, 3) uint8, or the view (3, s, s) uint8; None if it could not be read.
        width, height: The size of the picture.
        reason: Why it could not be read; empty if it was.
    """

    path: Path
    pixels: Tensor | None
    width: int = 0
    height: int = 0
    reason: str = ""


class _Pictures(Dataset[ReadPicture]):
    """The pictures of a list of files, or their views."""

    def __init__(self, paths: Sequence[Path], view: CenterView | None) -> None:
        self.paths, self.view = paths, view

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> ReadPicture:
        path = self.paths[position]
        try:
            pixels = to_pixels(path)
        except UserError as error:
            return ReadPicture(path, None, reason=str(error))
        height, width = pixels.shape[:2]
        return ReadPicture(path, pixels if self.view is None else self.view.show(pixels), width, height)


def read_pictures(paths: Sequence[Path], config: LoaderConfig, view: CenterView | None = None) -> Iterator[ReadPicture]:
    """Yield picture files in order, read ahead by `config.num_workers` processes, two for each of them at a time.

    Args:
        paths: The files.
        config: The number of worker processes.
        view: Makes a view of each picture, which is smaller; None to yield the pictures as they are.
    """
    loader: DataLoader[ReadPicture] = DataLoader(
        _Pictures(paths, view),
        batch_size=None,
        num_workers=config.num_workers,
        multiprocessing_context=start_method(config.num_workers),
        collate_fn=_as_it_is,
        worker_init_fn=outlive_signals,
    )
    return iter(loader)


def _as_it_is(item: Any) -> Any:
    return item
