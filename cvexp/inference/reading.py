"""Reading picture files in worker processes, while a network works on the pictures before them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cvexp.config import LoaderConfig
from cvexp.errors import UserError
from cvexp.inference.pictures import to_pixels


class ReadPicture(NamedTuple):
    """A picture file that was read, or could not be.

    Attributes:
        path: The file.
        pixels: (h, w, 3) uint8, or None if it could not be read.
        reason: Why it could not be read; empty if it was.
    """

    path: Path
    pixels: Tensor | None
    reason: str = ""


class _Pictures(Dataset[ReadPicture]):
    """The pictures of a list of files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> ReadPicture:
        path = self.paths[position]
        try:
            return ReadPicture(path, to_pixels(path))
        except UserError as error:
            return ReadPicture(path, None, str(error))


def read_pictures(paths: Sequence[Path], config: LoaderConfig) -> Iterator[ReadPicture]:
    """Yield picture files in order, read ahead by `config.num_workers` processes, two for each of them at a time."""
    return iter(DataLoader(_Pictures(paths), batch_size=None, num_workers=config.num_workers, collate_fn=_as_it_is))


def _as_it_is(item: Any) -> Any:
    return item
