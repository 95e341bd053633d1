"""The runs that a report describes, and phrases that several sections share."""

from __future__ import annotations

from dataclasses import dataclass

from cvexp.metrics.comparison import Comparison
from cvexp.metrics.knn import worse_than_untrained
from cvexp.report.curves import Series
from cvexp.report.document import Paragraph, Picture, Table
from cvexp.tracking.finished import FinishedRun

Blocks = list[Paragraph | Table | Picture]


@dataclass(frozen=True)
class Material:
    """The finished runs that a report describes; None or empty if there are none.

    Attributes:
        comparison_run: The run of the comparison.
        comparison: The results of the comparison.
        segmentations: The segmentation runs in the comparison; without a comparison, the newest ones.
        pretrainings: The pretraining runs that the segmentation runs start from, most used first; if there are none,
            the newest pretraining run.
        neighbors: The run that computed the nearest neighbors for the first pretraining run.
        probe: The newest run that probed one of the pretraining runs; without any, the newest that probed something.
        study: The newest study with results.
        place: The overrides that name the store of these runs in a shell, after a space each; empty by default.
    """

    comparison_run: FinishedRun | None
    comparison: Comparison | None
    segmentations: list[FinishedRun]
    pretrainings: list[FinishedRun]
    neighbors: FinishedRun | None
    probe: FinishedRun | None
    study: FinishedRun | None
    place: str

    def missing(self, what: str, command: str) -> Blocks:
        """Return a sentence about what is missing, and the command that creates it."""
        return [Paragraph(f"{what} Run this command:"), Paragraph(f"{command}{self.place}", code=True)]


def count(number: int, noun: str) -> str:
    """Return a number with its noun, ``1 epoch`` or ``2 epochs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def epochs(validation: Series) -> tuple[int, int]:
    """Return the number of steps in an epoch and the number of epochs; zeros without a validation after an epoch."""
    steps = [step for step, _ in validation if step > 0]
    return (steps[0], len(steps)) if steps else (0, 0)


def worse_features(pretraining: FinishedRun) -> str | None:
    """Return a warning if a pretraining run lowered the kNN accuracy."""
    accuracies = pretraining.history("val/knn_top1")
    if not accuracies:
        return None
    trained = {"at the selected epoch": pretraining.metrics["best/knn_top1"], "at the last epoch": accuracies[-1][1]}
    return worse_than_untrained(dict(accuracies).get(0), trained, pretraining.num_validation_crops)
