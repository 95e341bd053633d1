"""Trained networks, ready for images: with their own preprocessing, on a device, in evaluation mode."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cvexp import plugins
from cvexp.config import RunConfig, TrainerConfig
from cvexp.data.augment.normalization import Normalization
from cvexp.data.augment.views import CenterView
from cvexp.data.index import IGNORE, Index
from cvexp.data.kept import Images
from cvexp.data.loaders import FixedBatches, make_loader
from cvexp.data.masks import LabeledSquares, MaskBatches
from cvexp.metrics import iou
from cvexp.models.segmenters import Prediction
from cvexp.tracking.finished import FinishedRun
from cvexp.weights.locate import download
from cvexp.weights.read import read_checkpoint
from cvexp.weights.start import Start


def choose_device(trainer: TrainerConfig) -> torch.device:
    """Return the device that Lightning uses with these settings."""
    chosen = pl.Trainer(accelerator=trainer.accelerator, devices=1, logger=False, enable_checkpointing=False)
    return chosen.strategy.root_device


class Segmenter:
    """A segmentation network that takes unprocessed images, and preprocesses them as in training.

    Args:
        model: The network.
        config: The configuration that the network was trained with.
        device: The device that the network runs on.
    """

    def __init__(self, model: nn.Module, config: RunConfig, device: torch.device) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()
        self.normalize = Normalization(config.dataset.mean, config.dataset.std).to(device)
        self.config, self.device = config, device

    @torch.inference_mode()
    def label(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) uint8 to label maps (b, h, w) on the CPU."""
        labels: Tensor = self.model.label(self.normalize(images.to(self.device))).cpu()  # type: ignore[operator]
        return labels

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Prediction:
        """Map images (b, 3, h, w) uint8 to everything that the network predicts."""
        prediction: Prediction = self.model.predict(self.normalize(images.to(self.device)))  # type: ignore[operator]
        return prediction

    def evaluate(self, index: Index) -> iou.Counts:
        """Count the pixels of every image of a split, (images, 1 + c, 3); see `cvexp.metrics.iou`."""
        num_classes = len(index.classes)
        return np.concatenate(
            [
                iou.count_labels(self.label(images), labels, num_classes, IGNORE).numpy()
                for images, labels in whole_images(self.config, index)
            ]
        )


def load_segmenter(run: FinishedRun, num_classes: int, device: torch.device) -> Segmenter:
    """Load the network of a finished segmentation run from its best checkpoint.

    Args:
        run: The run.
        num_classes: Number of classes without the background.
        device: The device that the network runs on.

    Raises:
        UserError: if the checkpoint can't be fetched or read.
    """
    model = _method(run.config).build_model(run.config, num_classes, Start())
    state = _fetch(run, "best.ckpt", key="runs")
    model.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
    return Segmenter(model, run.config, device)


def whole_images(config: RunConfig, index: Index) -> DataLoader[Any]:
    """Return a loader of all images of a split, whole and in order, with their label maps."""
    masks = MaskBatches(Images(LabeledSquares(index, config.dataset.image_size)))
    return make_loader(masks, FixedBatches(list(range(len(masks))), config.loader.batch_size), config.loader)


class Embedder:
    """A pretrained encoder that maps pictures to feature vectors.

    Args:
        encoder: The network.
        config: The configuration that the network was pretrained with.
        device: The device that the network runs on.
    """

    def __init__(self, encoder: nn.Module, config: RunConfig, device: torch.device) -> None:
        self.encoder = encoder.to(device).to(memory_format=torch.channels_last).eval()
        self.normalize = Normalization(config.dataset.mean, config.dataset.std).to(device)
        self.view = CenterView(config.task.eval_size)  # type: ignore[attr-defined]
        self.config, self.device = config, device

    @torch.inference_mode()
    def embed(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Compute the features (n, d) of the center squares of n pictures."""
        images = torch.stack([self.view.show(torch.from_numpy(np.array(picture))) for picture in pictures])
        batches = self.normalize(images.to(self.device)).split(64)
        features: NDArray[np.float32] = torch.cat([self.encoder(batch).float().cpu() for batch in batches]).numpy()
        return features


def load_embedder(run: FinishedRun, device: torch.device, checkpoint: str = "last") -> Embedder:
    """Load the encoder of a finished pretraining run.

    Args:
        run: The run.
        device: The device that the encoder runs on.
        checkpoint: ``"last"`` or ``"best"``.

    Raises:
        UserError: if the checkpoint can't be fetched or read.
    """
    encoder = create_encoder(run.config, Start())
    load_encoder(encoder, run, f"{checkpoint}.ckpt", key="run")
    return Embedder(encoder, run.config, device)


def create_encoder(config: RunConfig, start: Start) -> nn.Module:
    """Create the encoder of a pretraining run with its initial weights.

    Args:
        config: The run's configuration.
        start: The initial weights.

    Raises:
        UserError: if the encoder can't be created, or the weights don't fit or can't be fetched.
    """
    encoder: nn.Module = _method(config).build_backbone(config, start).backbone
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
    prefix = f"{_method(run.config).encoder_name}."
    state = _fetch(run, name, key)
    encoder.load_state_dict({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})


def _method(config: RunConfig) -> Any:
    """Return the training module of a task."""
    return plugins.load("task", config.task.name).Method


def _fetch(run: FinishedRun, name: str, key: str) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint of a run."""
    with tempfile.TemporaryDirectory() as temporary:
        uri = f"runs:/{run.id}/checkpoints/{name}"
        return read_checkpoint(download(uri, run.store, Path(temporary), key)).tensors
