"""What to say when the memory of the machine or of the GPU is full: the sizes that decide how much is needed."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from dataclasses import asdict

from cvexp.config import RunConfig, flatten
from cvexp.errors import UserError

# In the words of PyTorch's allocators for CPU, CUDA and MPS, and of CUDA's libraries.
FULL = re.compile(r"out of memory|can(?:'t|not) allocate memory|ALLOC_FAILED", re.IGNORECASE)
SIZE = re.compile(r"(?:tried|unable) to allocate ([\d.]+ \w+)", re.IGNORECASE)


@contextlib.contextmanager
def shortage_explained(config: RunConfig) -> Iterator[None]:
    """Explain the errors that follow if memory can't be allocated.

    Raises:
        UserError: naming the sizes that were in force, and the key to lower.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_shortage(error):
            raise
        asked = SIZE.search(str(error))
        where = "the GPU" if re.search("cuda|cublas|mps", str(error), re.IGNORECASE) else "the machine"
        size = f" ({asked[0]})" if asked else ""
        raise UserError(f"the memory of {where} is full{size}; {advice(config)}") from error


def is_shortage(error: Exception) -> bool:
    """Return whether an error means that memory could not be allocated."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or FULL.search(str(error)) is not None


def advice(config: RunConfig) -> str:
    """Name the key to lower, and then others, with their values."""
    values = flatten(asdict(config))
    first = "task.batch_size" if "task.batch_size" in values else "loader.batch_size"
    others = []
    if config.task.role == "segmentation":
        others = ["dataset.image_size"]
    elif config.task.role == "pretraining":
        others = [key for key in values if re.fullmatch(r"task\.(?!eval_)(\w+_)?size", key)]
    if config.task.role != "job":
        others += ["trainer.precision"]
    then = ", then " + ", ".join(f"{key} (now {values[key]})" for key in others) if others else ""
    return f"lower {first} (now {values[first]}){then}; if there is enough memory, see what else uses it"
