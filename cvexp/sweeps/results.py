"""The results of a study: read from its runs, used for its decisions, and written up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvexp.config import RunConfig
from cvexp.console import print_line
from cvexp.data.index import Splits
from cvexp.errors import opening
from cvexp.metrics import iou
from cvexp.metrics.bootstrap import MIN_IMAGES
from cvexp.metrics.efficiency import Curve, Gain, gains, reference_of, savings
from cvexp.metrics.hierarchical import Array, Scores, image_weights
from cvexp.report import study as report
from cvexp.report import study_text
from cvexp.report.document import html
from cvexp.report.scores import read_counts, read_probe
from cvexp.report.sections.study import study_page
from cvexp.report.study_figures import draw_curves, draw_gains
from cvexp.report.style import shorten
from cvexp.sweeps.plan import Cell, Plan
from cvexp.tasks.study import PROBE, Config
from cvexp.tracking.sweep import SweepRun

TITLE = "Does pretraining pay, and how many labels does it save?"


def _describe(splits: Splits, config: RunConfig) -> str:
    """Return a sentence about the data and the backbone of a study."""
    names = ", ".join(shorten(name) for name in splits.train.classes[:10])
    more = " and others" if len(splits.train.classes) > 10 else ""
    sizes = ", ".join(f"{len(index.images)} {index.split}" for index in splits)
    return (
        f"The data are those of dataset={config.dataset.name} in {splits.train.place} ({sizes} images; the classes "
        f"{names}{more}), and the backbone is {config.backbone.name}."
    )


class Results:
    """Gathers the scores of a study's runs.

    Args:
        run: The study's run.
        study: The configuration of the study.
        config: The configuration of the runs of one method.
        splits: Their data.
        shares: The number of training images of each label fraction.

    Attributes:
        out_of_time: Whether the budget was too small for all runs.
        missing: What has no result, because it failed.
        stopped: Methods and starts that got no further seeds, with the last seed that they had.
        study_so_far: What was last recorded.
    """

    def __init__(self, run: SweepRun, study: Config, config: RunConfig, splits: Splits, shares: Sequence[int]) -> None:
        self.run, self.study = run, study
        self.out_of_time = False
        self.missing: list[str] = []
        self.study_so_far: report.Study | None = None
        self.stopped: dict[tuple[str, str], int] = {}
        self.is_probe = config.task.name == PROBE
        self.scored = splits.scored
        if len(self.scored.images) < MIN_IMAGES:
            print_line(study_text.too_few(len(self.scored.images), self.scored.split), style="bold yellow")
        images = ", ".join(
            f"{study_text.percent(fraction)} {number}" for fraction, number in zip(study.fractions, shares, strict=True)
        )
        self.about = f"{_describe(splits, config)} The shares of labels, in images: {images}."
        self.weights = image_weights(len(self.scored.images), study.samples)
        self.runs: dict[Cell, tuple[str, float, Array]] = {}  # the id, the score, and the scores of the samples

    def add(self, cell: Cell, run_id: str) -> None:
        """Read the result of a finished run.

        Raises:
            UserError: if it is missing or damaged.
        """
        if self.is_probe:
            counts = read_probe(self.run.store, run_id, self.scored)
        else:
            counts = read_counts(self.run.store, run_id, self.scored)[:, 1:]
        sums = (self.weights @ counts.reshape(len(counts), -1)).reshape(-1, *counts.shape[1:])
        full, resampled = (self._score(total) for total in (counts.sum(axis=0), sums))
        self.runs[cell] = (run_id, float(full), resampled)

    def _score(self, counts: NDArray[np.int64]) -> Array:
        """Return the score of summed counts, (..., c, 3) to (...), or (..., 2) to (...)."""
        return counts[..., 0] / counts[..., 1] if self.is_probe else iou.mean_iou(counts)

    def curves(self) -> list[Curve]:
        """Return the curves of all methods and starts that have results."""
        points: dict[tuple[str, str], dict[float, list[Cell]]] = {}
        for cell in sorted(self.runs, key=lambda cell: (cell.fraction, cell.seed)):
            points.setdefault((cell.method, cell.start), {}).setdefault(cell.fraction, []).append(cell)
        methods, starts = self._methods(), list(self.study.starts)
        order = sorted(points, key=lambda key: (methods.index(key[0]), starts.index(key[1])))
        return [
            Curve(*key, {fraction: self._scores(cells) for fraction, cells in points[key].items()}) for key in order
        ]

    def _methods(self) -> list[str]:
        return list(dict.fromkeys(cell.method for cell in self.runs))

    def _scores(self, cells: Sequence[Cell]) -> Scores:
        full = np.array([self.runs[cell][1] for cell in cells])
        resampled = np.stack([self.runs[cell][2] for cell in cells])
        return Scores(tuple(cell.seed for cell in cells), full, resampled, len(self.scored.images))

    def gains(self, confidence: float) -> list[Gain]:
        curves = self.curves()
        return gains(curves, confidence) if curves else []

    def settled(self, plan: Plan) -> set[tuple[str, str]]:
        """Return the methods and starts that need no further seeds.

        A start needs none if its difference from the reference is clear at each fraction, and the reference needs none
        if no other start needs it. As this is asked after each seed, the intervals are wider than those that are
        reported, so that a true zero is not called clear more often (Bonferroni's correction).
        """
        if not self.runs:
            return set()
        reference = reference_of(self.curves())
        found = self.gains(1 - (1 - self.study.confidence) / len(plan.seeds))
        settled = set()
        for method in plan.methods:
            decided = [
                start
                for start in plan.starts
                if start != reference
                and sum(
                    gain.is_decided
                    for gain in found
                    if (gain.method, gain.start) == (method, start) and gain.fraction is not None
                )
                == len(plan.fractions)
            ]
            settled |= {(method, start) for start in decided}
            if len(decided) == len(plan.starts) - 1 > 0:
                settled.add((method, reference))
        for method, start in settled:
            had = {cell.seed for cell in self.runs if (cell.method, cell.start) == (method, start)}
            last = [seed for seed in plan.seeds if seed in had][-1]
            self.stopped.setdefault((method, start), last)
        return settled

    def doubts(self) -> dict[tuple[str, float], float]:
        """Return how doubtful each method and fraction is: the width of an interval in multiples of its difference."""
        doubts: dict[tuple[str, float], float] = {}
        for gain in self.gains(self.study.confidence):
            if gain.fraction is not None:
                width = gain.interval.high - gain.interval.low
                doubt = width / max(abs(gain.interval.difference), 1e-9)
                key = (gain.method, gain.fraction)
                doubts[key] = max(doubts.get(key, 0.0), doubt)
        return doubts

    def record(self, pretrainings: Sequence[tuple[str, str]]) -> None:
        """Write up the results so far, and record them in the study's run.

        Args:
            pretrainings: The name and the id of each pretraining run.
        """
        if not self.runs:
            return
        study = self._study(pretrainings)
        self.run.log_json(report.to_json(study), report.FILE)
        self.run.log_text(study_text.markdown(study), "study/study.md")
        self.run.log_figure(draw_curves(study), "study/curves.png")
        self.run.log_figure(draw_gains(study), "study/differences.png")
        page = html(study_page(study, TITLE))
        self.run.log_text(page, "study/study.html")
        with opening("tracking.folder"):
            (Path(self.run.folder) / "study.html").write_text(page)
        self.study_so_far = study

    def show(self) -> None:
        """Print the scores and what they say."""
        if self.study_so_far is None:
            print_line(" ".join(["No run on labels has finished, so there is nothing to compare.", *self._notes()]))
            return
        study_text.print_study(self.study_so_far)
        print_line(f"open {(Path(self.run.folder) / 'study.html').absolute().as_uri()}")

    def _study(self, pretrainings: Sequence[tuple[str, str]]) -> report.Study:
        curves = self.curves()
        runs = {tuple(cell): (run_id, self._command(run_id)) for cell, (run_id, *_) in self.runs.items()}
        return report.Study(
            about=self.about,
            score="probe accuracy" if self.is_probe else "mIoU",
            reference=reference_of(curves),
            split=self.scored.split,
            num_images=len(self.scored.images),
            confidence=self.study.confidence,
            points=report.make_points(curves, runs, self.study.confidence),  # type: ignore[arg-type]
            gains=gains(curves, self.study.confidence),
            savings=savings(curves, self.study.confidence),
            pretrainings=[(name, run_id, self._command(run_id)) for name, run_id in pretrainings],
            notes=self._notes(),
        )

    def _command(self, run_id: str) -> str:
        return str(self.run.store.run(run_id, "study").data.tags.get("command", ""))

    def _notes(self) -> list[str]:
        notes = [
            f"{method} from {study_text.weights(start)}: no seeds after {seed} were run, because the differences are "
            "clear at each label fraction."
            for (method, start), seed in self.stopped.items()
        ]
        if self.missing:
            notes.append(f"There are no results of {'; '.join(self.missing)}.")
        if self.out_of_time:
            notes.append(f"The budget of {self.study.hours:g} hours was too small for all runs; the rest was not run.")
        return notes
