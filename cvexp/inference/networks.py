"""The networks of training runs, from what they recorded."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from cvexp import plugins
from cvexp.config import RunConfig, TrainerConfig
from cvexp.inference.embedder import Embedder
from cvexp.inference.segmenter import Segmenter
from cvexp.tracking.finished import FinishedRun
from cvexp.weights.locate import download
from cvexp.weights.read import read_checkpoint
from cvexp.weights.start import Start


def choose_device(trainer: TrainerConfig) -> torch.device:
    """Return the device that Lightning uses with these settings."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.CRITICAL)  # or it would say which devices it found
    try:
        with warnings.catch_warnings(action="ignore"):
            chosen = pl.Trainer(accelerator=trainer.accelerator, devices=1, logger=False, enable_checkpointing=False)
    finally:
        log.setLevel(level)
    return chosen.strategy.root_device


def make_segmenter(
    config: RunConfig, classes: tuple[str, ...], tensors: dict[str, Tensor], device: torch.device
) -> Segmenter:
    """Create the network of a segmentation run with the tensors of a checkpoint.

    Args:
        config: The run's configuration.
        classes: Class names without the background.
        tensors: All tensors of the checkpoint, by name.
        device: The device that the network runs on.

    Raises:
        RuntimeError: if the tensors are not those of the network.
    """
    model = method_of(config).build_model(config, len(classes), Start())
    model.load_state_dict({key.removeprefix("model."): value for key, value in tensors.items()})
    return Segmenter(model, config, classes, device)


def make_embedder(
    config: RunConfig, classes: tuple[str, ...], tensors: dict[str, Tensor], device: torch.device
) -> Embedder:
    """Create the encoder of a pretraining run with the tensors of a checkpoint; see :func:`make_segmenter`."""
    encoder = create_encoder(config, Start())
    encoder.load_state_dict(_of_encoder(config, tensors))
    return Embedder(encoder, config, classes, device)


def load_segmenter(run: FinishedRun, device: torch.device) -> Segmenter:
    """Load the network of a finished segmentation run from its best checkpoint.

    Args:
        run: The run.
        device: The device that the network runs on.

    Raises:
        UserError: if the checkpoint can't be fetched or read.
    """
    return make_segmenter(run.config, tuple(run.classes), _fetch(run, "best.ckpt", key="runs"), device)


def load_embedder(run: FinishedRun, device: torch.device, checkpoint: str = "last") -> Embedder:
    """Load the encoder of a finished pretraining run.

    Args:
        run: The run.
        device: The device that the encoder runs on.
        checkpoint: ``"last"`` or ``"best"``.

    Raises:
        UserError: if the checkpoint can't be fetched or read.
    """
    return make_embedder(run.config, tuple(run.classes), _fetch(run, f"{checkpoint}.ckpt", key="run"), device)


def create_encoder(config: RunConfig, start: Start) -> nn.Module:
    """Create the encoder of a pretraining run with its initial weights.

    Args:
        config: The run's configuration.
        start: The initial weights.

    Raises:
        UserError: if the encoder can't be created, or the weights don't fit or can't be fetched.
    """
    encoder: nn.Module = method_of(config).build_backbone(config, start).backbone
    return encoder


def load_encoder(encoder: nn.Module, run: FinishedRun, name: str, key: str) -> None:
    """Load the weights that a pretraining run recorded.

    Args:
        encoder: The network, from :func:`create_encoder`.
        run: The run.
        name: The name of the checkpoint.
        key: The key that named the run, for messages.

    Raises:
        UserError: if the checkpoint can't be fetched or read.
    """
    encoder.load_state_dict(_of_encoder(run.config, _fetch(run, name, key)))


def method_of(config: RunConfig) -> Any:
    """Return the training module of a task."""
    return plugins.load("task", config.task.name).Method


def _of_encoder(config: RunConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the encoder, by their names in it."""
    prefix = f"{method_of(config).encoder_name}."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _fetch(run: FinishedRun, name: str, key: str) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint of a run."""
    with tempfile.TemporaryDirectory() as temporary:
        uri = f"runs:/{run.id}/checkpoints/{name}"
        return read_checkpoint(download(uri, run.store, Path(temporary), key), uri).tensors
