"""Whether an exported file computes what the network of the checkpoint computes.

Shapes: n images, b images of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from cvexp.export.formats import Run
from cvexp.export.subject import Outputs, Subject

BATCH_SIZES = (1, 5)  # both differ from the batch of 2 with which networks are traced
ABSOLUTE = ("probability",)  # from 0 to 1; the differences of other outputs are relative to their root mean square


@dataclass
class Agreement:
    """How much the outputs of a file differ from those of the checkpoint's network.

    Attributes:
        largest: The largest difference of each output. Differences of probabilities are absolute; others are divided
            by the root mean square of the output of the network.
        different_labels: The share of pixels with another label; None if there are no labels.
        mistakes: Outputs that are missing, or do not fit together.
    """

    largest: dict[str, float] = field(default_factory=dict)
    different_labels: float | None = None
    mistakes: list[str] = field(default_factory=list)

    def problems(self, tolerance: float) -> list[str]:
        """Describe what is not as it should be."""
        above = [f"{name} differs by {value:.1e}" for name, value in self.largest.items() if not value <= tolerance]
        if above:
            above[-1] += f", more than task.tolerance={tolerance}"
        return [*above, *self.mistakes]


def make_batches(subject: Subject, images: Tensor, multiple: int | None) -> Iterator[Tensor]:
    """Yield batches of each of the sizes to verify.

    Args:
        subject: The network.
        images: Images (n, 3, s, s). Some repeat if they don't fill the last batch.
        multiple: Of what the sides of other images must be multiples, to verify another height and width, too; None if
            the file takes no other images.
    """
    for size in BATCH_SIZES:
        count = math.ceil(len(images) / size) * size
        yield from images[torch.arange(count) % len(images)].split(size)
    if multiple is not None:
        yield F.interpolate(images[:2], subject.other_shape(multiple), mode="nearest-exact")


def compare(run: Run, subject: Subject, batches: Iterable[Tensor]) -> Agreement:
    """Run a file and the checkpoint's network on the same images, and compare the outputs.

    Args:
        run: The function that the file contains.
        subject: The network.
        batches: Images (b, 3, h, w) uint8.

    Raises:
        Exception: of many types, if the file can't be run.
    """
    agreement = Agreement()
    different, total = 0, 0
    for images in batches:
        expected, outputs = subject.reference(images), run(images)
        shapes = [{name: (x.shape, x.dtype) for name, x in results.items()} for results in (outputs, expected)]
        if shapes[0] != shapes[1]:
            agreement.mistakes.append(f"the outputs are {_described(outputs)} instead of {_described(expected)}")
            break
        for name in expected.keys() - {"labels"}:
            value = _difference(name, outputs[name], expected[name])
            agreement.largest[name] = max(value, agreement.largest.get(name, 0.0), key=_nan_first)
        if "labels" in expected:
            different += int((outputs["labels"] != expected["labels"]).sum())
            total += outputs["labels"].numel()
            if not torch.equal(outputs["labels"], subject.to_labels(outputs["scores"])):
                agreement.mistakes.append("the labels are not those of the largest scores")
                break
    agreement.different_labels = different / total if total else None
    return agreement


def _difference(name: str, output: Tensor, expected: Tensor) -> float:
    largest = float((output.double() - expected.double()).abs().max())
    if name in ABSOLUTE or largest == 0:
        return largest
    return largest / max(float(expected.double().square().mean().sqrt()), torch.finfo(torch.float32).tiny)


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _described(outputs: Outputs) -> str:
    return ", ".join(f"{name} {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for name, x in outputs.items())


def summarize(agreement: Agreement) -> str:
    """Describe the differences in one line."""
    parts = [f"{name} {value:.1e}" for name, value in sorted(agreement.largest.items())]
    text = "largest difference: " + ", ".join(parts)
    if agreement.different_labels is not None:
        text += f"; different labels: {agreement.different_labels:.2%}"
    return text
