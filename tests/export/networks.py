"""Small networks with random weights, as if they came from finished runs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cvexp.composition import compose
from cvexp.export.about import describe
from cvexp.export.files import FORMATS, Written, write
from cvexp.export.subject import Subject
from cvexp.inference.embedder import Embedder
from cvexp.inference.networks import create_encoder, method_of
from cvexp.inference.segmenter import Segmenter
from cvexp.weights.start import Start

CLASSES = ("R&D", "it's <b>")
RUN = "0" * 32
SMALL = ["task.decoder_channels=8", "task.atrous_rates=[1,2,3]", "dataset.image_size=64"]


def make_segmenter(*overrides: str) -> Subject:
    """Create a segmentation network whose scores differ from pixel to pixel."""
    config = compose("backbone=resnet_mini", *SMALL, *overrides)
    torch.manual_seed(0)
    network = method_of(config).build_model(config, len(CLASSES), Start())
    with torch.no_grad():
        network.classifier.weight *= 100
    return Subject(Segmenter(network, config, CLASSES, torch.device("cpu")))


def make_encoder(*overrides: str) -> Subject:
    """Create the encoder of a pretraining run."""
    config = compose("backbone=resnet_mini", "task.eval_size=64", *overrides)
    torch.manual_seed(0)
    return Subject(Embedder(create_encoder(config, Start()), config, (), torch.device("cpu")))


def make_images(subject: Subject, count: int = 3) -> Tensor:
    """Create images of noise, as the network takes them."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, subject.size, subject.size), generator=generator, dtype=torch.uint8)


def export(subject: Subject, name: str, folder: Path, tolerance: float = 1e-4) -> tuple[Path, Written]:
    """Write a file, and return its path and how it compares."""
    kind = FORMATS[name]()
    path = folder / kind.file_name
    about = describe(subject, RUN, "best", {"val": "f"})
    return path, write(kind, subject, path, about, make_images(subject), tolerance)
