"""The runs that a report is written from, and phrases that several sections use."""

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
    """Finished runs; what is missing is None or empty.

    Attributes:
        comparison_run: The comparison.
        comparison: What it measured.
        segmentations: The runs that it compares.
        pretrainings: The runs that these start from, most used first.
        neighbors: The nearest neighbors of the first pretraining.
    """

    comparison_run: FinishedRun | None
    comparison: Comparison | None
    segmentations: list[FinishedRun]
    pretrainings: list[FinishedRun]
    neighbors: FinishedRun | None


def missing(what: str, command: str) -> Blocks:
    """Say what is missing, and which command makes it."""
    return [Paragraph(f"{what} This command makes it:"), Paragraph(command, code=True)]


def count(number: int, noun: str) -> str:
    """Return a number with its noun, ``1 epoch`` or ``2 epochs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def epochs(validation: Series) -> tuple[int, int]:
    """Return the steps of an epoch and the number of epochs, after each of which there is a validation.

    Both are 0 if there is none.
    """
    after = [step for step, _ in validation if step > 0]
    return (after[0], len(after)) if after else (0, 0)


def worse_features(pretraining: FinishedRun) -> str | None:
    """Return a warning if a pretraining lowered the kNN accuracy."""
    accuracies = pretraining.history("val/knn_top1")
    if not accuracies:
        return None
    trained = {"at the best epoch": pretraining.metrics["best/knn_top1"], "at the last epoch": accuracies[-1][1]}
    return worse_than_untrained(dict(accuracies).get(0), trained)
