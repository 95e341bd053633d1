"""A study as tables and sentences, and as a file from which these and the figures can be made again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cvexp.metrics.bootstrap import Interval
from cvexp.metrics.efficiency import Curve, Gain, Saving
from cvexp.metrics.hierarchical import interval
from cvexp.tracking.store import Store

FILE = "study/study.json"


@dataclass(frozen=True)
class Point:
    """The runs of a method from a start on a share of the labels.

    Attributes:
        method, start, fraction: What they have in common.
        seeds, scores: The seed and the score of each.
        run_ids, commands: The id and the command of each.
        interval: The mean score, and its interval over images and seeds.
    """

    method: str
    start: str
    fraction: float
    seeds: list[int]
    scores: list[float]
    run_ids: list[str]
    commands: list[str]
    interval: Interval


@dataclass(frozen=True)
class Study:
    """The results of a study.

    Attributes:
        about: The data and the backbone, in a sentence.
        score: The name of the score.
        reference: The start that the others are compared with.
        split: The split that was scored.
        num_images: Number of its images.
        confidence: Confidence level of the intervals.
        points, gains, savings: What was measured.
        pretrainings: The name, id and command of each pretraining run.
        notes: What a reader should know about how the study ran.
    """

    about: str
    score: str
    reference: str
    split: str
    num_images: int
    confidence: float
    points: list[Point]
    gains: list[Gain]
    savings: list[Saving]
    pretrainings: list[tuple[str, str, str]]
    notes: list[str]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(point.method for point in self.points))

    @property
    def starts(self) -> list[str]:
        return list(dict.fromkeys(point.start for point in self.points))

    @property
    def fractions(self) -> list[float]:
        return sorted({point.fraction for point in self.points})


def make_points(
    curves: Sequence[Curve], runs: dict[tuple[str, str, float, int], tuple[str, str]], confidence: float
) -> list[Point]:
    """Return the points of all curves.

    Args:
        curves: The curves.
        runs: The id and the command of each run, by method, start, fraction and seed.
        confidence: Confidence level of the intervals.
    """
    points = []
    for curve in curves:
        for fraction, scores in curve.points.items():
            named = [runs[curve.method, curve.start, fraction, seed] for seed in scores.seeds]
            ids, commands = ([run[i] for run in named] for i in range(2))
            points.append(
                Point(
                    curve.method,
                    curve.start,
                    fraction,
                    list(scores.seeds),
                    scores.full.tolist(),
                    ids,
                    commands,
                    _within_bounds(interval(scores, confidence)),
                )
            )
    return points


def _within_bounds(score: Interval) -> Interval:
    """Return the interval of a score, which is from 0 to 1."""
    return score._replace(low=max(score.low, 0.0), high=min(score.high, 1.0))


def to_json(study: Study) -> dict[str, Any]:
    """Return the study as JSON. A share of the labels that is more than all of them becomes None."""
    values = asdict(study)
    for saving in values["savings"]:
        for key in ("needed", "low", "high"):
            saving[key] = None if math.isinf(saving[key]) else saving[key]
    for entry in (*values["points"], *values["gains"]):
        entry["interval"] = list(entry["interval"])
    return values


def read_study(store: Store, run_id: str) -> Study | None:
    """Read what a study recorded, or return None if it has recorded nothing yet.

    Raises:
        UserError: if the artifact is damaged.
    """
    return store.read_if_there(run_id, FILE, _read)


def _read(path: Path) -> Study:
    saved = json.loads(path.read_text())
    points = [Point(**{**entry, "interval": Interval(*map(float, entry["interval"]))}) for entry in saved["points"]]
    gained = [Gain(**{**entry, "interval": Interval(*map(float, entry["interval"]))}) for entry in saved["gains"]]
    for entry in saved["savings"]:
        for key in ("needed", "low", "high"):
            entry[key] = math.inf if entry[key] is None else float(entry[key])
    saved_labels = [Saving(**entry) for entry in saved["savings"]]
    pretrainings = [(str(name), str(run_id), str(command)) for name, run_id, command in saved["pretrainings"]]
    rest = {key: saved[key] for key in ("about", "score", "reference", "split", "num_images", "confidence", "notes")}
    return Study(**rest, points=points, gains=gained, savings=saved_labels, pretrainings=pretrainings)
