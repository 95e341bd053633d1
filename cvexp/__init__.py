"""cvexp: self-supervised pretraining and segmentation experiments, recorded in MLflow."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cvexp.config import RunConfig
    from cvexp.inference.embedder import Embedder
    from cvexp.inference.segmentation import Segmentation
    from cvexp.inference.segmenter import Segmenter

__all__ = ["Embedder", "Segmentation", "Segmenter", "compose", "load"]
__version__ = "0.1.0"

_CLASSES = {
    "Embedder": "cvexp.inference.embedder",
    "Segmentation": "cvexp.inference.segmentation",
    "Segmenter": "cvexp.inference.segmenter",
}


def __getattr__(name: str) -> type:
    """Import a class when it is first used, because PyTorch takes seconds."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: type = getattr(importlib.import_module(_CLASSES[name]), name)
    return found


def compose(*overrides: str) -> RunConfig:
    """Compose a configuration from overrides, as ``python -m cvexp`` does.

    Args:
        overrides: For example ``"task=dino"``, ``"optimizer.lr=1e-3"``.

    Raises:
        cvexp.errors.UserError: if an override names an unknown key or group, or a value is missing, of a wrong type
            or out of range.
    """
    from cvexp import composition  # imports Hydra, which `import cvexp` does not need

    return composition.compose(*overrides)


def load(
    what: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    tracking_folder: str | os.PathLike[str] | None = None,
) -> Segmenter | Embedder:
    """Load a trained network with its classes and its preprocessing.

    A file is read as data; one that would run code is refused.

    Args:
        what: A run id; ``runs:/RUN_ID`` (its best checkpoint) or ``runs:/RUN_ID/checkpoints/last.ckpt``;
            ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; or a checkpoint file of a training run.
        device: Where the network runs. By default, on the GPU if there is one.
        tracking_folder: Where runs are recorded; by default ``outputs``. The environment variable
            ``MLFLOW_TRACKING_URI`` takes precedence.

    Returns:
        A :class:`~cvexp.inference.segmenter.Segmenter` if the run segments, or an
        :class:`~cvexp.inference.embedder.Embedder` if it pretrains.

    Raises:
        cvexp.errors.UserError: if there is no such run, model or file, or it is not of a training run.

    Example:
        >>> prediction = cvexp.load("runs:/RUN_ID").predict("photo.jpg")
        >>> features = cvexp.load("models:/my-backbone@champion").embed(["a.jpg", "b.jpg"])
    """
    from cvexp.inference import loading

    return loading.load(what, device=device, tracking_folder=tracking_folder)
