"""The comparison of methods: what was measured, as tables, and as files from which all of it can be computed again."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mlflow import MlflowClient
from rich.table import Table

from cvexp.metrics import iou
from cvexp.metrics.bootstrap import Interval
from cvexp.metrics.names import safe_name
from cvexp.report.console import console, print_line
from cvexp.report.style import shorten
from cvexp.store import read_artifact
from cvexp.tracking import Run

ENOUGH_IMAGES = 20  # below, a percentile interval is far too narrow
NO_PAIRS = "No difference is computed: it needs two methods, or random and another start, with runs of the same seed."


@dataclass(frozen=True)
class Evaluated:
    """What was measured of one run.

    Attributes:
        run_id: MLflow's.
        method: The task.
        start: Where its weights came from.
        seed: The run's.
        counts: (images, 1 + c, 3), see `cvexp.metrics.iou`.
        times: Milliseconds for one image at a time, of several images.
        parameters: Of the whole model.
    """

    run_id: str
    method: str
    start: str
    seed: int
    counts: iou.Counts
    times: Sequence[float]
    parameters: int

    @property
    def milliseconds(self) -> float:
        return float(np.median(self.times))

    @property
    def miou(self) -> float:
        return float(iou.mean_iou(self.counts[:, 1:].sum(axis=0)))

    @property
    def scores(self) -> dict[str, float]:
        """By name, of the whole data set; classes are numbered."""
        return _scores(self.counts)


class Constant(NamedTuple):
    """What predicting the same label for every pixel gives.

    Attributes:
        label: The class, or "background".
        counts: (images, 1 + c, 3), see `cvexp.metrics.iou`.
    """

    label: str
    counts: iou.Counts

    @property
    def scores(self) -> dict[str, float]:
        """By name, of the whole data set; classes are numbered."""
        return _scores(self.counts)


def _scores(counts: iou.Counts) -> dict[str, float]:
    return iou.summarize(counts, [f"{i}" for i in range(counts.shape[1] - 1)])


class Difference(NamedTuple):
    """A difference of mIoU between two groups of runs, paired by start and seed."""

    name: str
    pairs: int
    interval: Interval


@dataclass(frozen=True)
class Comparison:
    """All that was measured.

    Attributes:
        classes: Names.
        images: Files, in the order of the counts.
        evaluated: The runs.
        differences: Between groups of them.
        confidence: Of the differences' intervals.
    """

    classes: Sequence[str]
    images: Sequence[str]
    evaluated: Sequence[Evaluated]
    differences: Sequence[Difference]
    confidence: float

    def groups(self) -> dict[tuple[str, str], list[Evaluated]]:
        """The runs by method and start."""
        found: dict[tuple[str, str], list[Evaluated]] = {}
        for one in self.evaluated:
            found.setdefault((one.method, one.start), []).append(one)
        return found

    def constants(self) -> list[Constant]:
        """The class that gives the best mIoU when it is predicted everywhere, and the background."""
        counts = self.evaluated[0].counts
        largest = int(counts[:, 1:, 2].sum(axis=0).argmax())
        return [
            Constant(self.classes[largest], iou.count_constant(counts, 1 + largest)),
            Constant("background", iou.count_constant(counts, 0)),
        ]

    def shown_runs(self) -> list[Evaluated]:
        """One run of each method: of the best start, one that all methods have where there is one, its first seed."""
        groups = self.groups()
        methods = list(dict.fromkeys(one.method for one in self.evaluated))
        starts = list(dict.fromkeys(one.start for one in self.evaluated))
        shared = [start for start in starts if all((method, start) in groups for method in methods)]

        def score(start: str) -> float:
            return float(np.mean([one.miou for one in self.evaluated if one.start == start]))

        best = max(shared or starts, key=score)
        return [groups[method, best][0] for method in methods if (method, best) in groups]


SCORES = {"pixel_accuracy": "pixel accuracy", "presence_f1": "presence F1", "miou_image": "mIoU by image"}


def rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The table: its columns, and a row for each method and start, and for each constant prediction."""
    columns = ["method", "start", "seeds", "mIoU", *map(shorten, comparison.classes), *SCORES.values()]
    columns += ["ms/image (quartiles)", "parameters"]
    keys = ["miou", *(f"iou/{i}" for i in range(len(comparison.classes))), *SCORES]
    found = []
    for (method, start), runs in comparison.groups().items():
        scores = [one.scores for one in runs]
        values = [_spread([s.get(key) for s in scores]) for key in keys]
        seeds = ", ".join(str(one.seed) for one in runs)
        times = _quartiles([time for one in runs for time in one.times])
        found.append([method, shorten(start), seeds, *values, times, f"{runs[0].parameters / 1e6:.2f} M"])
    for constant in comparison.constants():
        values = [_spread([constant.scores.get(key)]) for key in keys]
        found.append(["constant", f"always {shorten(constant.label)}", "", *values, "", ""])
    return columns, found


def _quartiles(times: Sequence[float]) -> str:
    """The median, and where there are several times, the first and third quartile."""
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75])
    return f"{median:.1f}" + (f" ({low:.1f} to {high:.1f})" if len(times) > 1 else "")


def _spread(values: Sequence[float | None]) -> str:
    """Mean, and standard deviation over the seeds; a class that is nowhere has no IoU."""
    defined = [value for value in values if value is not None]
    if not defined:
        return "none"
    spread = f" ± {np.std(defined, ddof=1):.3f}" if len(defined) > 1 else ""
    return f"{np.mean(defined):.3f}{spread}"


def sentences(comparison: Comparison) -> list[tuple[str, str]]:
    """Of each difference its name, and its interval and whether it is clear."""
    said = []
    for name, pairs, interval in comparison.differences:
        verdict = "" if interval.is_clear else "; zero lies within, so these images don't tell which is better"
        if (images := len(comparison.images)) < ENOUGH_IMAGES:
            verdict = f"; {images} images are too few for an interval to be trusted"
        runs = f"{pairs} pair{'s' if pairs > 1 else ''} of runs"
        said.append((name, f"{interval.difference:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}], {runs}{verdict}"))
    return said


def constant_warnings(comparison: Comparison, clean: Callable[[str], str] = shorten) -> list[str]:
    """Which methods don't exceed a constant prediction, for each score in which that happens.

    Args:
        comparison: The scores.
        clean: Makes names of classes and starts fit for where the sentences stand.
    """
    said = []
    for key, words in {"miou": "mIoU", **SCORES}.items():
        best = max(comparison.constants(), key=lambda constant: constant.scores[key])
        threshold = best.scores[key]
        means = {
            group: float(np.mean([one.scores[key] for one in runs])) for group, runs in comparison.groups().items()
        }
        below = [f"{method} from {clean(start)} ({m:.3f})" for (method, start), m in means.items() if m <= threshold]
        if below:
            always = f"Always predicting {clean(best.label)} has {words} {threshold:.3f}"
            said.append(f"{always}, not exceeded by {', '.join(below)}.")
    return said


def print_comparison(comparison: Comparison) -> None:
    """The table, turned so that it fits a terminal, warnings, and the differences."""
    columns, found = rows(comparison)
    table = Table(title=f"{len(comparison.images)} validation images", title_justify="left")
    table.add_column("")
    for row in found:
        table.add_column(f"{row[0]}\n{row[1]}", justify="right")
    for i, column in enumerate(columns[2:], start=2):
        table.add_row(column, *(row[i] for row in found))
    console.print(table)
    for warning in constant_warnings(comparison):
        print_line(f"warning: {warning}", style="bold yellow")
    if not comparison.differences:
        print_line(NO_PAIRS)
        return
    print_line(f"differences of mIoU, with {comparison.confidence:.0%} intervals over the images (not over seeds):")
    for name, sentence in sentences(comparison):
        print_line(f"  {name}: {sentence}")


def markdown(comparison: Comparison) -> str:
    """The table and the differences as a page."""
    columns, found = rows(comparison)
    cells = [[_literal(cell) for cell in row] for row in (columns, *found)]
    cells.insert(1, ["---"] * len(columns))
    runs = [
        f"* `{one.run_id}`: {one.method} from {_literal(shorten(one.start))}, seed {one.seed}, {one.miou:.4f}"
        for one in comparison.evaluated
    ]
    of_differences = (
        f"Differences of mIoU, with {comparison.confidence:.0%} intervals of a paired bootstrap over the images, not "
        "over the seeds:"
    )
    differences = [f"* {_literal(name)}: {sentence}" for name, sentence in sentences(comparison)]
    warnings = [f"* {warning}" for warning in constant_warnings(comparison, lambda name: _literal(shorten(name)))]
    lines = [
        f"# Comparison on {len(comparison.images)} validation images",
        "",
        *(f"| {' | '.join(row)} |" for row in cells),
        "",
        "IoU over all images; mean ± standard deviation over the seeds. `constant` predicts one label everywhere. "
        "Times are medians, with the first and third quartile.",
        "",
        *(["Not better than a constant prediction:", "", *warnings, ""] if warnings else []),
        *([of_differences, "", *differences] if differences else [NO_PAIRS]),
        "",
        "Runs, and their mIoU:",
        "",
        *runs,
    ]
    return "\n".join(lines) + "\n"


def _literal(text: str) -> str:
    """Text as Markdown shows it unchanged."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~&!])", r"\\\1", text)


def log_comparison(run: Run, comparison: Comparison) -> None:
    """Record tables, differences, and the counts of every image under `comparison/`, and the means as metrics."""
    groups = {f"{method}-{start}": [o.miou for o in runs] for (method, start), runs in comparison.groups().items()}
    run.log_metrics({f"miou/{safe_name(name)}": float(np.mean(values)) for name, values in groups.items()}, step=0)
    values: dict[str, Any] = {
        "classes": list(comparison.classes),
        "runs": [_plain(one, comparison.classes) for one in comparison.evaluated],
        "differences": [
            {"name": name, "pairs": pairs, **interval._asdict()} for name, pairs, interval in comparison.differences
        ],
        "confidence": comparison.confidence,
        "constants": [
            {"label": one.label, **iou.summarize(one.counts, comparison.classes)} for one in comparison.constants()
        ],
        "warnings": constant_warnings(comparison),
    }
    run.log_json(values, "comparison/comparison.json")
    run.log_text(markdown(comparison), "comparison/comparison.md")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.npz"
        np.savez_compressed(
            path,
            counts=np.stack([one.counts for one in comparison.evaluated]),
            run_ids=[one.run_id for one in comparison.evaluated],
            images=list(comparison.images),
            classes=["background", *comparison.classes],
            columns=["intersection", "predicted", "labelled"],
        )
        run.log_file(path, "comparison")


def read_comparison(client: MlflowClient, run_id: str) -> Comparison:
    """What `log_comparison` recorded; the scores are computed again, from the counts.

    Raises:
        UserError: when it is missing or damaged.
    """
    images, counts = read_artifact(client, run_id, "comparison/counts.npz", _read_counts)
    return read_artifact(client, run_id, "comparison/comparison.json", partial(_read_comparison, images, counts))


def _read_counts(path: Path) -> tuple[list[str], dict[str, iou.Counts]]:
    with np.load(path) as saved:
        return saved["images"].tolist(), dict(zip(saved["run_ids"].tolist(), saved["counts"], strict=True))


def _read_comparison(images: list[str], counts: dict[str, iou.Counts], path: Path) -> Comparison:
    said = json.loads(path.read_text())
    keys = ("run_id", "method", "start", "seed", "parameters")
    return Comparison(
        classes=said["classes"],
        images=images,
        evaluated=[
            Evaluated(
                counts=counts[one["run_id"]],
                times=one.get("times", [one["milliseconds"]]),  # older comparisons have the median alone
                **{key: one[key] for key in keys},
            )
            for one in said["runs"]
        ],
        differences=[
            Difference(one["name"], one["pairs"], Interval(one["difference"], one["low"], one["high"]))
            for one in said["differences"]
        ],
        confidence=said["confidence"],
    )


def _plain(one: Evaluated, classes: Sequence[str]) -> dict[str, Any]:
    scores = iou.summarize(one.counts, classes)
    keys = ("run_id", "method", "start", "seed", "milliseconds", "times", "parameters")
    return {**{key: getattr(one, key) for key in keys}, **scores}
