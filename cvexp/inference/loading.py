"""`cvexp.load`: the network of a run, of a registered model or of a checkpoint file."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import torch
from omegaconf import OmegaConf

from cvexp.composition import check, compose
from cvexp.config import RunConfig
from cvexp.errors import UserError
from cvexp.inference.embedder import Embedder
from cvexp.inference.networks import choose_device, make_embedder, make_segmenter
from cvexp.inference.segmenter import Segmenter
from cvexp.tracking.finished import FinishedRun
from cvexp.tracking.resume import complete, refuse_interpolations
from cvexp.tracking.store import Store, connect, failures_explained
from cvexp.weights.locate import locate_artifact
from cvexp.weights.read import Checkpoint, read_checkpoint

FORMS = "a run id, runs:/RUN_ID, models:/NAME@ALIAS, or a .ckpt file"


def load(
    what: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    tracking_folder: str | os.PathLike[str] | None = None,
) -> Segmenter | Embedder:
    """Load a trained network; see :func:`cvexp.load`."""
    config = compose()
    if tracking_folder is not None:
        config.tracking.folder = os.fspath(tracking_folder)
    chosen = choose_device(config.trainer) if device is None else torch.device(device)
    name = os.fspath(what)
    if re.fullmatch(r"[0-9a-f]{32}", name) and not Path(name).exists():
        name = f"runs:/{name}"
    if not name.startswith(("runs:/", "models:/")):
        if not Path(name).is_file():
            raise UserError(f"load: there is no file {name!r}; give {FORMS}")
        checkpoint = read_checkpoint(Path(name))
        return make_network(checkpoint, name, checkpoint.classes, chosen)
    with failures_explained("check it, and try again"):
        return load_recorded(name, connect(config.tracking), config, chosen, key="load")


def load_recorded(uri: str, store: Store, config: RunConfig, device: torch.device, key: str) -> Segmenter | Embedder:
    """Load a network from MLflow.

    Args:
        uri: See :func:`cvexp.weights.locate.locate_artifact`.
        store: Where it is recorded.
        config: The configuration of this process.
        device: The device that the network runs on.
        key: What asked for it, for messages.

    Raises:
        UserError: if it can't be found, fetched or used.
    """
    with tempfile.TemporaryDirectory() as temporary:
        artifact = locate_artifact(uri, store, Path(temporary), key)
        checkpoint = read_checkpoint(artifact.path, uri)
    classes = checkpoint.classes or _recorded_classes(store, artifact.run_id or checkpoint.run_id, config)
    return make_network(checkpoint, uri, classes, device)


def make_network(
    checkpoint: Checkpoint, name: str, classes: tuple[str, ...] | None, device: torch.device
) -> Segmenter | Embedder:
    """Create the network of a checkpoint, whose content is not trusted.

    Args:
        checkpoint: The checkpoint.
        name: What it is called in messages.
        classes: Class names, if they are known.
        device: The device that the network runs on.

    Raises:
        UserError: if it is no checkpoint of a training run, or is damaged.
    """
    config = _checked_config(checkpoint, name)
    role = config.task.role
    if role == "segmentation" and classes is None:
        classes = None if config.dataset.classes is None else tuple(config.dataset.classes)
        if classes is None:
            raise UserError(f"{name}: it was written by an older version, and does not name its classes; load its run")
    if role not in ("segmentation", "pretraining"):
        raise UserError(f"{name}: it comes from task={config.task.name}, which trains no network; give {FORMS}")
    with torch.random.fork_rng(devices=[]):  # the initial weights are random before the right ones replace them
        try:
            if role == "segmentation":
                return make_segmenter(config, classes or (), checkpoint.tensors, device)
            return make_embedder(config, classes or (), checkpoint.tensors, device)
        except RuntimeError as error:
            raise UserError(
                f"{name}: its tensors are not those of the network that its configuration describes, so it was changed "
                "or damaged; fetch it again"
            ) from error


def _checked_config(checkpoint: Checkpoint, name: str) -> RunConfig:
    """Return the configuration in a checkpoint. Nothing in it is resolved against the environment."""
    if not checkpoint.config:
        raise UserError(
            f"{name}: it is not a checkpoint of a training run of cvexp, so its network is unknown; use it as a start, "
            "with backbone.weights="
        )
    refuse_interpolations(checkpoint.config, name)
    try:
        return check(OmegaConf.create(complete(checkpoint.config)))
    except (ValueError, UserError) as error:
        raise UserError(f"{name}: its configuration can't be used: {error}") from error


def _recorded_classes(store: Store, run_id: str, config: RunConfig) -> tuple[str, ...] | None:
    """Return the classes that a run recorded, or None if the run is unknown."""
    return tuple(FinishedRun(store, store.run(run_id, "load"), config).classes) if run_id else None
