"""Decoded images: read anew each time, or kept in memory or on the device after they were first read.

Shapes: n images, b images of a batch, padded to h x w pixels, c channels.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvexp import processes
from cvexp.data.files.parallel import in_parallel
from cvexp.errors import UserError

AUTO_SHARE = 0.5  # of the free memory: `auto` keeps no more
SHARED_MEMORY = Path("/dev/shm")  # where Linux puts memory that processes share; small in some containers
CGROUP = Path("/sys/fs/cgroup")  # where Linux limits the memory of a container


class Source(Protocol):
    """Images that are decoded on demand.

    Attributes:
        sizes: Height and width of each decoded image in pixels (n, 2).
        num_channels: Number of channels, c.
    """

    sizes: NDArray[np.int64]
    num_channels: int

    def read(self, position: int) -> NDArray[np.uint8]:
        """Decode an image, (h, w, c)."""


class Images:
    """The images of a source, decoded anew each time.

    Args:
        source: The images.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.sizes)

    @property
    def num_bytes(self) -> int:
        """The memory that all decoded images take."""
        return int(self.source.sizes.prod(1).sum()) * self.source.num_channels

    def image(self, position: int) -> NDArray[np.uint8]:
        """Return an image (h, w, c)."""
        return self.source.read(position)

    def batch(self, positions: NDArray[np.int64]) -> Tensor:
        """Return images padded at the bottom and right to the size of the largest, (b, h, w, c) uint8."""
        sizes_b2 = self.source.sizes[positions]
        padded_bhwc = np.zeros((len(positions), *sizes_b2.max(0), self.source.num_channels), dtype=np.uint8)
        for padded_hwc, (height, width), i in zip(padded_bhwc, sizes_b2.tolist(), positions.tolist(), strict=True):
            padded_hwc[:height, :width] = self.image(i)
        return torch.from_numpy(padded_bhwc)


class ImagesInMemory(Images):
    """The images of a source, which all processes of a loader decode once and share."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.ends = np.cumsum(source.sizes.prod(1)) * source.num_channels
        # Shared memory is committed when it is first written, so this takes no time.
        self.pixels = torch.tensor([], dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(self.num_bytes))
        self.is_kept = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def image(self, position: int) -> NDArray[np.uint8]:
        height, width = self.source.sizes[position].tolist()
        end = int(self.ends[position])
        kept_hwc = self.pixels.numpy()[end - height * width * self.source.num_channels : end].reshape(height, width, -1)
        if not self.is_kept[position]:
            kept_hwc[:] = self.source.read(position)
            self.is_kept[position] = True
        return kept_hwc


class ImagesOnDevice(Images):
    """The images of a source, decoded and moved to a device at once.

    Args:
        source: The images.
        device: The device.
    """

    def __init__(self, source: Source, device: torch.device) -> None:
        super().__init__(source)
        num_pixels = source.sizes.prod(1)
        self.starts = np.cumsum(num_pixels) - num_pixels
        self.pixels = torch.empty(int(num_pixels.sum()), source.num_channels, dtype=torch.uint8, device=device)
        decoded = in_parallel(ThreadPoolExecutor(), source.read, range(len(self)), "decoding")
        for start, image_hwc in zip(self.starts.tolist(), decoded, strict=True):
            pixels = torch.from_numpy(image_hwc).flatten(0, 1)
            self.pixels[start : start + len(pixels)] = pixels.to(device)

    def batch(self, positions: NDArray[np.int64]) -> Tensor:
        device = self.pixels.device
        sizes_b2 = self.source.sizes[positions]
        (height, width), starts_b = sizes_b2.max(0).tolist(), self.starts[positions]
        heights_b11, widths_b11, starts_b11 = torch.from_numpy(np.stack([*sizes_b2.T, starts_b])).to(
            device, non_blocking=True
        )[..., None, None]
        y_bh1 = torch.minimum(torch.arange(height, device=device)[:, None], heights_b11 - 1)
        x_b1w = torch.minimum(torch.arange(width, device=device), widths_b11 - 1)
        return self.pixels[starts_b11 + y_bh1 * widths_b11 + x_b1w]


def keep(sources: Sequence[Source], place: str, device: torch.device) -> list[Images]:
    """Keep the images of sources where `dataset.keep` says; `auto` chooses `ram` if there is plenty, and else `none`.

    Raises:
        UserError: if the images do not fit.
    """
    images = [Images(source) for source in sources]
    num_bytes = sum(group.num_bytes for group in images)
    if place == "device" and device.type == "cuda":
        _check_fit(num_bytes, torch.cuda.mem_get_info(device)[0], "on the GPU", "ram")
        return [ImagesOnDevice(source, device) for source in sources]
    free = free_memory()
    if place == "none" or (place == "auto" and num_bytes > AUTO_SHARE * free):
        return images
    _check_fit(num_bytes, free, "in memory", "none")
    return [ImagesInMemory(source) for source in sources]


def _check_fit(num_bytes: int, free: int, where: str, instead: str) -> None:
    if num_bytes > free:
        raise UserError(
            f"dataset.keep: the decoded images take {megabytes(num_bytes)} {where}, but only {megabytes(free)} are "
            f"free; choose dataset.keep={instead}, or a smaller dataset.limit="
        )


def describe(images: Sequence[Images]) -> str:
    """Return where decoded images are kept, and how much they take or would take."""
    size = megabytes(sum(group.num_bytes for group in images))
    if isinstance(images[0], ImagesInMemory):
        return f"ram ({size})"
    if isinstance(images[0], ImagesOnDevice):
        return f"device ({size})"
    return f"none (they would take {size})"


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


def free_memory() -> int:
    """Return how many bytes each of the processes on this machine can use for shared memory."""
    limits: list[int] = [psutil.virtual_memory().available]
    if SHARED_MEMORY.is_dir():
        limits.append(shutil.disk_usage(SHARED_MEMORY).free)
    limit = CGROUP / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text()) - int(statistics["inactive_file"])  # cached files can go
        limits.append(max(int(text) - used, 0))
    return min(limits) // processes.local_world_size()
