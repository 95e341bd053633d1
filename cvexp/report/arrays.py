"""Arrays in npz files that runs recorded. Whoever can write to the store may have changed them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 2**31  # of all arrays of a file; a comparison of 100 runs, on 5000 images with 80 classes, has half of it


def read_arrays(path: Path, max_bytes: float = MAX_BYTES) -> dict[str, NDArray[Any]]:
    """Read the arrays of an npz file by name, without unpickling any.

    Raises:
        ValueError: if they are too large, before any of them is unpacked; or if one holds Python objects.
    """
    with zipfile.ZipFile(path) as archive:
        if (num_bytes := sum(member.file_size for member in archive.infolist())) > max_bytes:
            raise ValueError(f"its arrays have {num_bytes} bytes, but the limit is {max_bytes:.0f}")
    with np.load(path, allow_pickle=False) as content:
        return dict(content)
