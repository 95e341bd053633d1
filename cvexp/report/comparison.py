"""The comparison of methods: what was measured, as tables, and as files from which all of it can be computed again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mlflow import MlflowClient
from rich.table import Table

from cvexp.metrics import iou
from cvexp.metrics.bootstrap import Interval
from cvexp.report.console import console, print_line
from cvexp.tracking import Run

ENOUGH_IMAGES = 20  # below, a percentile interval is far too narrow


@dataclass(frozen=True)
class Evaluated:
    """What was measured of one run.

    Attributes:
        run_id: MLflow's.
        method: The task.
        start: Where its weights came from.
        seed: The run's.
        counts: (images, 1 + c, 3), see `cvexp.metrics.iou`.
        milliseconds: For one image, alone.
        parameters: Of the whole model.
    """

    run_id: str
    method: str
    start: str
    seed: int
    counts: iou.Counts
    milliseconds: float
    parameters: int

    @property
    def miou(self) -> float:
        return float(iou.mean_iou(self.counts[:, 1:].sum(axis=0)))

    @property
    def scores(self) -> dict[str, float]:
        """By name, of the whole data set."""
        return iou.summarize(self.counts, [f"{i}" for i in range(self.counts.shape[1] - 1)])


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

    def constant(self) -> tuple[str, float]:
        """The class that gives the best mIoU when it is predicted everywhere, and that mIoU."""
        labelled = self.evaluated[0].counts[:, :, 2].sum(axis=0)
        best = int(labelled[1:].argmax())
        there = np.count_nonzero(labelled[1:])
        return self.classes[best], float(labelled[1 + best] / labelled.sum() / there)

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


def rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The table: its columns, and a row for each method and start."""
    columns = ["method", "start", "seeds", "mIoU", *comparison.classes, "pixel accuracy", "presence F1"]
    columns += ["mIoU by image", "ms/image", "parameters"]
    found = []
    for (method, start), runs in comparison.groups().items():
        scores = [one.scores for one in runs]
        classes = [_spread([s.get(f"iou/{i}") for s in scores]) for i in range(len(comparison.classes))]
        row = [method, start, ", ".join(str(one.seed) for one in runs), _spread([s.get("miou") for s in scores])]
        row += [
            *classes,
            *(_spread([s.get(k) for s in scores]) for k in ("pixel_accuracy", "presence_f1", "miou_image")),
        ]
        row += [f"{np.median([one.milliseconds for one in runs]):.1f}", f"{runs[0].parameters / 1e6:.2f} M"]
        found.append(row)
    name, miou = comparison.constant()
    constant = ["constant", f"always {name}", "", f"{miou:.3f}"]
    return columns, [*found, constant + [""] * (len(columns) - len(constant))]


def _spread(values: Sequence[float | None]) -> str:
    """Mean, and standard deviation over the seeds; a class that is nowhere has no IoU."""
    defined = [value for value in values if value is not None]
    if not defined:
        return "none"
    spread = f" ± {np.std(defined, ddof=1):.3f}" if len(defined) > 1 else ""
    return f"{np.mean(defined):.3f}{spread}"


def sentences(comparison: Comparison) -> list[str]:
    """Each difference with its interval, and whether it is clear."""
    said = []
    for name, pairs, interval in comparison.differences:
        verdict = "" if interval.is_clear else "; zero lies within, so these images don't tell which is better"
        if (images := len(comparison.images)) < ENOUGH_IMAGES:
            verdict = f"; {images} images are too few for an interval to be trusted"
        runs = f"{pairs} pair{'s' if pairs > 1 else ''} of runs"
        said.append(f"{name}: {interval.difference:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}], {runs}{verdict}")
    return said


def print_comparison(comparison: Comparison) -> None:
    """The table, turned so that it fits a terminal, and the differences."""
    columns, found = rows(comparison)
    table = Table(title=f"{len(comparison.images)} validation images", title_justify="left")
    table.add_column("")
    for row in found:
        table.add_column(f"{row[0]}\n{row[1]}", justify="right")
    for i, column in enumerate(columns[2:], start=2):
        table.add_row(column, *(row[i] for row in found))
    console.print(table)
    print_line(f"differences of mIoU, with {comparison.confidence:.0%} intervals over the images (not over seeds):")
    for sentence in sentences(comparison):
        print_line(f"  {sentence}")


def markdown(comparison: Comparison) -> str:
    """The table and the differences as a page."""
    columns, found = rows(comparison)
    table = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *found)]
    runs = [f"* `{o.run_id}`: {o.method} from {o.start}, seed {o.seed}, {o.miou:.4f}" for o in comparison.evaluated]
    lines = [
        f"# Comparison on {len(comparison.images)} validation images",
        "",
        *table,
        "",
        "IoU over all images; mean ± standard deviation over the seeds. `constant` predicts one class everywhere.",
        "",
        f"Differences of mIoU, with {comparison.confidence:.0%} intervals of a paired bootstrap over the images, not "
        "over the seeds:",
        "",
        *(f"* {sentence}" for sentence in sentences(comparison)),
        "",
        "Runs, and their mIoU:",
        "",
        *runs,
    ]
    return "\n".join(lines) + "\n"


def log_comparison(run: Run, comparison: Comparison) -> None:
    """Record tables, differences, and the counts of every image under `comparison/`, and the means as metrics."""
    groups = {f"miou/{method}-{start}": [o.miou for o in runs] for (method, start), runs in comparison.groups().items()}
    run.log_metrics({name.replace(":", "-"): float(np.mean(values)) for name, values in groups.items()}, step=0)
    values: dict[str, Any] = {
        "classes": list(comparison.classes),
        "runs": [_plain(one, comparison.classes) for one in comparison.evaluated],
        "differences": [
            {"name": name, "pairs": pairs, **interval._asdict()} for name, pairs, interval in comparison.differences
        ],
        "confidence": comparison.confidence,
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
    """What `log_comparison` recorded; the scores are computed again, from the counts."""
    with tempfile.TemporaryDirectory() as folder:
        said = json.loads(Path(client.download_artifacts(run_id, "comparison/comparison.json", folder)).read_text())
        saved = np.load(client.download_artifacts(run_id, "comparison/counts.npz", folder))
        counts = dict(zip(saved["run_ids"].tolist(), saved["counts"], strict=True))
        images = saved["images"].tolist()
    keys = ("run_id", "method", "start", "seed", "milliseconds", "parameters")
    return Comparison(
        classes=said["classes"],
        images=images,
        evaluated=[Evaluated(counts=counts[one["run_id"]], **{key: one[key] for key in keys}) for one in said["runs"]],
        differences=[
            Difference(one["name"], one["pairs"], Interval(one["difference"], one["low"], one["high"]))
            for one in said["differences"]
        ],
        confidence=said["confidence"],
    )


def _plain(one: Evaluated, classes: Sequence[str]) -> dict[str, Any]:
    scores = iou.summarize(one.counts, classes)
    keys = ("run_id", "method", "start", "seed", "milliseconds", "parameters")
    return {**{key: getattr(one, key) for key in keys}, **scores}
