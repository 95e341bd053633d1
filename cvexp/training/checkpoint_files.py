"""How Lightning writes the checkpoints of a run: whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cvexp.checkpoints import replacing
from cvexp.errors import UserError, explain_os_error
from cvexp.tracking import space
from cvexp.tracking.run import ReadOnlyRun


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint to a new file, then replaces the old one, which thus survives a full disk or a kill.

    Unlike Lightning's, it holds no copy of the checkpoint in memory, and writes nothing to the system's folder for
    temporary files.

    Args:
        run: The run, whose other processes write nothing.
    """

    def __init__(self, run: ReadOnlyRun) -> None:
        self.run = run

    def save_checkpoint(
        self, checkpoint: Mapping[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            UserError: if it can't be written. The old file is as it was.
        """
        try:
            with replacing(Path(path)) as unfinished:
                _write(checkpoint, unfinished)
            self.run.upload_checkpoint(Path(path))
        except OSError as error:
            error.filename = str(path)  # the error for a full disk does not name the file
            if space.is_out_of_space(error, self.run):
                tensors = [leaf for leaf in tree_leaves(checkpoint) if isinstance(leaf, Tensor)]
                raise UserError(space.explain(error, self.run, sum(tensor.nbytes for tensor in tensors))) from error
            raise UserError(explain_os_error(error, "tracking.folder")) from error


def _write(checkpoint: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # PyTorch's writer hides why it could not write
                raise error.__context__ from None
            raise
