"""cvexp: self-supervised pretraining and segmentation experiments, recorded in MLflow."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from cvexp.config import RunConfig
    from cvexp.errors import UserError
    from cvexp.inference.embedder import Embedder
    from cvexp.inference.segmentation import Segmentation
    from cvexp.inference.segmenter import Segmenter

__all__ = ["Embedder", "Result", "Segmentation", "Segmenter", "UserError", "compose", "load", "run"]
__version__ = "0.1.0"

_CLASSES = {
    "Embedder": "cvexp.inference.embedder",
    "Segmentation": "cvexp.inference.segmentation",
    "Segmenter": "cvexp.inference.segmenter",
    "UserError": "cvexp.errors",
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


class Result(NamedTuple):
    """What :func:`run` returns.

    Attributes:
        run_id: MLflow's id of the run.
        metrics: The latest value of each of the run's metrics, such as ``best/miou`` or ``test/miou``.
    """

    run_id: str
    metrics: dict[str, float]


def run(*overrides: str) -> Result:
    """Train, or do another task, as ``python -m cvexp`` does, and return the run and its metrics.

    The run is recorded in MLflow in the same way, and equal seeds give equal losses. With ``"-m"``, or for
    ``"task=study"``, the result is that of the sweep, whose jobs are its children in MLflow.

    Afterwards, logging, environment variables, handlers of signals and the settings of Hydra and PyTorch are as before,
    so it can be called several times, also after an error. Only one run at a time can be in progress in a process. In
    another thread than the main one, it can't be interrupted. In scripts that torchrun starts, the first process
    returns all metrics, and the others may return them before the last ones are recorded.

    Args:
        overrides: The words of the command line, for example ``"task=dino"``, ``"optimizer.lr=1e-3"``.

    Raises:
        cvexp.errors.UserError: for every mistake that the command line answers with a message.
        KeyboardInterrupt: after Ctrl-C. The run has ended as on the command line, and
            ``cvexp.run("resume=RUN_ID")`` continues it.

    Example:

        >>> run_id, metrics = cvexp.run("task=dino", "dataset=folder", "dataset.root=photos")
        >>> cvexp.run("task=multiclass", "dataset=folder", "dataset.root=photos", "backbone.weights=latest:dino")
    """
    from cvexp import python  # imports Hydra and PyTorch

    return Result(*python.run(overrides))


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
