"""Trained networks as plain functions of pixels, which is how they are exported.

Shapes: b images, s x s pixels of the square that the network takes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from cvexp.data.augment.labeled import fit_image
from cvexp.inference.embedder import Embedder
from cvexp.inference.segmenter import Segmenter

Outputs = dict[str, Tensor]

MULTIPLES = (1, 2, 4, 7, 8, 14, 16, 28, 32)  # which sides of an image a network may require; the patch size, mostly


class SegmenterGraph(nn.Module):
    """Maps images (b, 3, h, w) uint8 to scores, probabilities, label maps and attention weights, if there are any."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.normalize, self.network = segmenter.normalize, segmenter.model

    def forward(self, images: Tensor) -> Outputs:
        scores, attention = self.network.scores(self.normalize(images))
        probability = self.network.probability(scores, self.network.has_background)
        outputs = {"scores": scores, "probability": probability, "labels": self.network.to_labels(scores)}
        return outputs if attention is None else {**outputs, "attention": attention}


class EncoderGraph(nn.Module):
    """Maps images (b, 3, h, w) uint8 to features (b, d)."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.normalize, self.network = embedder.normalize, embedder.encoder

    def forward(self, images: Tensor) -> Outputs:
        return {"features": self.network(self.normalize(images))}


class Subject:
    """A trained network that is exported.

    Args:
        network: The network, on the CPU.

    Attributes:
        graph: What is exported: a module that maps pixels to named outputs.
        size: Side length s of the square that the network takes in training and evaluation.
        multiple: The sides of images must be multiples of it; None if the network takes no other size than s x s.
    """

    def __init__(self, network: Segmenter | Embedder) -> None:
        self.network = network
        self.graph: nn.Module
        if isinstance(network, Segmenter):
            self.graph, self.size = SegmenterGraph(network), network.size
        else:
            self.graph, self.size = EncoderGraph(network), network.view.size
        self.graph.eval().requires_grad_(False)
        self.multiple = next((multiple for multiple in MULTIPLES if self._accepts(multiple)), None)
        self._programs: dict[bool, ExportedProgram] = {}

    def other_shape(self, multiple: int) -> tuple[int, int]:
        """Return a height and a width that are much larger than `size`, and multiples of a number."""
        least = self.size // multiple
        return (least * 3 // 2 + 1) * multiple, (least * 2 + 1) * multiple

    def _accepts(self, multiple: int) -> bool:
        least = self.size // multiple
        images = torch.zeros(2, 3, (least + 1) * multiple, (least + 2) * multiple, dtype=torch.uint8)
        try:
            self.graph(images)
        except Exception:  # models raise many types; the file then has a fixed size, which is printed
            return False
        return True

    def prepare(self, pixels_hwc: Tensor) -> Tensor:
        """Map an image (h, w, 3) uint8 to the square (3, s, s) that the network takes."""
        if isinstance(self.network, Segmenter):
            return fit_image(pixels_hwc, self.size)
        return self.network.view.show(pixels_hwc)

    def to_labels(self, scores: Tensor) -> Tensor:
        """Convert the scores (b, k, h, w) of a segmenter to label maps."""
        assert isinstance(self.network, Segmenter)
        return self.network.model.to_labels(scores)

    @torch.inference_mode()
    def reference(self, images: Tensor) -> Outputs:
        """Compute what an exported file must return, by the functions that training and comparison use."""
        normalized = self.network.normalize(images)
        if isinstance(self.network, Embedder):
            return {"features": self.network.encoder(normalized).float()}
        scores, attention = self.network.model.scores(normalized)
        prediction = self.network.model.to_prediction(scores, attention)
        outputs = {"scores": scores, "probability": prediction.probability, "labels": prediction.labels}
        return outputs if attention is None else {**outputs, "attention": attention}

    def program(self, is_dynamic: bool) -> ExportedProgram:
        """Trace the network for any number of images, and, if `is_dynamic`, for any height and width.

        Raises:
            Exception: of many types, if the network can't be traced.
        """
        if is_dynamic not in self._programs:
            self._programs[is_dynamic] = self._trace((0, 2, 3) if is_dynamic else (0,))
        return self._programs[is_dynamic]

    def _trace(self, dynamic: tuple[int, ...]) -> ExportedProgram:
        images = torch.zeros(2, 3, self.size, self.size, dtype=torch.uint8)  # a batch of 1 would become a constant
        axes = dict.fromkeys(dynamic, Dim.DYNAMIC)
        with quiet():
            program = torch.export.export(self.graph, (images,), dynamic_shapes=(axes,))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it has the paths of this machine
            if node.target is math.ceil:
                _replace_ceil(node)
        return program


def _replace_ceil(node: Node) -> None:
    """Replace ceil(a / b) by (a + b - 1) // b, because `torch.export.save` knows no ceil.

    Layers that pad like TensorFlow compute it from the size of the image.
    """
    quotient: Any = node.args[0]
    dividend, divisor = quotient.args
    with node.graph.inserting_before(node):
        total = node.graph.call_function(operator.add, (dividend, divisor - 1))
        result = node.graph.call_function(operator.floordiv, (total, divisor))
    total.meta["val"] = dividend.meta["val"] + divisor - 1
    result.meta["val"] = total.meta["val"] // divisor
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters, whose many warnings and logs do not concern the user."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)
