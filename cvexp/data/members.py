"""Images that are members of shards: which bytes of which tar file each image is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class File(NamedTuple):
    """A file of a sharded data set: a shard, or the arrays of a split.

    Attributes:
        name: Its name, without a folder.
        num_bytes: Its size.
        sha256: Its SHA-256, in hexadecimal.
        num_samples: How many samples it holds.
    """

    name: str
    num_bytes: int
    sha256: str
    num_samples: int


class Place(NamedTuple):
    """Where shards are.

    Attributes:
        root: The folder with the shards: a path, or an address that starts with http://, https:// or s3://.
        local: The folder for copies of remote shards.
        max_bytes: How much these copies may take together.
    """

    root: str
    local: str
    max_bytes: int

    @property
    def is_remote(self) -> bool:
        """Whether shards are copied before they are read."""
        return "://" in self.root

    def address(self, name: str) -> str:
        """Return the path or the address of a file."""
        return f"{self.root.rstrip('/')}/{name}"


@dataclass(frozen=True)
class Members:
    """Where the bytes of the m images of a catalog are.

    Attributes:
        place: Where the shards are.
        shards: The shards.
        shuffle_shards: How many shards are shuffled together.
        shard: (m,) int32, position of each image's shard in `shards`.
        offset: (m,) int64, position of the first byte in the shard.
        length: (m,) int32, number of bytes.
        crc32: (m,) uint32, CRC-32 of the bytes.
    """

    place: Place
    shards: tuple[File, ...]
    shuffle_shards: int
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int32]
    crc32: NDArray[np.uint32]

    ARRAYS = ("shard", "offset", "length", "crc32")

    @classmethod
    def from_header(cls, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Members:
        """Make members from everything but the arrays as JSON, and the arrays."""
        shards = tuple(File(*values) for values in header["shards"])
        return cls(Place(*header["place"]), shards, header["shuffle_shards"], *(arrays[name] for name in cls.ARRAYS))
