"""The comparison of methods, as tables and sentences, and as files from which all of it can be recomputed."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cvexp.console import console, print_line
from cvexp.metrics import iou
from cvexp.metrics.bootstrap import MIN_IMAGES, Interval
from cvexp.metrics.comparison import Comparison, Difference, Evaluated, Group
from cvexp.metrics.names import safe_name
from cvexp.report.arrays import read_arrays
from cvexp.report.style import shorten
from cvexp.tracking.sink import Sink
from cvexp.tracking.store import Store

NO_PAIRS = (
    "No differences are computed. They need runs with equal seeds, of two methods or from random and other weights."
)
OPTIMISTIC = (
    "These validation images also chose the checkpoints, so the scores are optimistic. To score on other images, train "
    "with a test split: set dataset.test_fraction=0.2, or the key that names the test data of the source."
)
SCORES = {"pixel_accuracy": "pixel accuracy", "presence_f1": "presence F1", "miou_image": "mIoU per image"}


def rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the table's columns, and its rows: each method with each initial weights, and each constant prediction."""
    columns = ["method", "initial weights", "seeds", "mIoU", *map(shorten, comparison.classes), *SCORES.values()]
    columns += ["ms/image (quartiles)", "parameters"]
    keys = ["miou", *(f"iou/{i}" for i in range(len(comparison.classes))), *SCORES]
    cells = []
    for (method, start), runs in comparison.groups().items():
        scores = [run.scores for run in runs]
        values = [_spread([s.get(key) for s in scores]) for key in keys]
        seeds = ", ".join(str(run.seed) for run in runs)
        times = _quartiles([time for run in runs for time in run.times])
        cells.append([method, shorten(start), seeds, *values, times, f"{runs[0].num_parameters / 1e6:.2f} M"])
    for constant in comparison.constants():
        values = [_spread([constant.scores.get(key)]) for key in keys]
        cells.append(["constant", f"always {shorten(constant.label)}", "", *values, "", ""])
    return columns, cells


def _quartiles(times: Sequence[float]) -> str:
    """Format the median and, if there are several times, the first and third quartiles."""
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75])
    return f"{median:.1f}" + (f" ({low:.1f} to {high:.1f})" if len(times) > 1 else "")


def _spread(values: Sequence[float | None]) -> str:
    """Format the mean and the standard deviation over the seeds; ``none`` for a class that never occurs."""
    defined = [value for value in values if value is not None]
    if not defined:
        return "none"
    spread = f" ± {np.std(defined, ddof=1):.3f}" if len(defined) > 1 else ""
    return f"{np.mean(defined):.3f}{spread}"


def sentences(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the name of each difference, and its value, interval and interpretation."""
    lines = []
    for difference in comparison.differences:
        interval, num_pairs = difference.interval, difference.num_pairs
        verdict = (
            "" if interval.is_clear else "; the interval includes zero, so these images do not show which is better"
        )
        if (num_images := len(comparison.images)) < MIN_IMAGES:
            verdict = f"; {num_images} images are too few for a reliable interval"
        pairs = f"{num_pairs} pair{'s' if num_pairs > 1 else ''} of runs"
        bounds = f"{interval.difference:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
        lines.append((difference.name, f"{bounds}, {pairs}{verdict}"))
    return lines


def constant_warnings(comparison: Comparison, clean: Callable[[str], str] = shorten) -> list[str]:
    """Return a sentence for each score in which some method does not exceed a constant prediction.

    Args:
        comparison: The scores.
        clean: Shortens or escapes the names of classes and weights for the page that shows the sentences.
    """
    warnings = []
    for key, score in {"miou": "mIoU", **SCORES}.items():
        best = max(comparison.constants(), key=lambda constant: constant.scores[key])
        threshold = best.scores[key]
        means = {group: float(np.mean([run.scores[key] for run in r])) for group, r in comparison.groups().items()}
        below = [f"{method} from {clean(start)} ({m:.3f})" for (method, start), m in means.items() if m <= threshold]
        if below:
            always = f"Always predicting {clean(best.label)} has {score} {threshold:.3f}"
            warnings.append(f"{always}, no less than {' and '.join(below)}.")
    return warnings


def optimism(comparison: Comparison) -> list[str]:
    """Return a sentence that says so if the scores are optimistic."""
    return [OPTIMISTIC] if comparison.split == "val" else []


def print_comparison(comparison: Comparison) -> None:
    """Print the table, transposed to fit the terminal, then warnings and the differences."""
    columns, cells = rows(comparison)
    table = Table(title=f"{len(comparison.images)} {comparison.split_name} images", title_justify="left")
    table.add_column("")
    for row in cells:
        table.add_column(f"{row[0]}\n{row[1]}", justify="right")
    for i, column in enumerate(columns[2:], start=2):
        table.add_row(column, *(row[i] for row in cells))
    console.print(table)
    for warning in [*optimism(comparison), *constant_warnings(comparison)]:
        print_line(f"warning: {warning}", style="bold yellow")
    if not comparison.differences:
        print_line(NO_PAIRS)
        return
    print_line(f"differences in mIoU, with {comparison.confidence:.0%} intervals over the images (not over seeds):")
    for name, sentence in sentences(comparison):
        print_line(f"  {name}: {sentence}")


def markdown(comparison: Comparison) -> str:
    """Return the comparison as a Markdown page."""
    columns, cells = rows(comparison)
    lines = [[escape(cell) for cell in row] for row in (columns, *cells)]
    lines.insert(1, ["---"] * len(columns))
    runs = [
        f"* `{run.run_id}`: {run.method} from {escape(shorten(run.start))}, seed {run.seed}, {run.miou:.4f}"
        for run in comparison.evaluated
    ]
    title = (
        f"Differences in mIoU, with {comparison.confidence:.0%} intervals from a paired bootstrap over the images, not "
        "over the seeds:"
    )
    differences = [f"* {escape(name)}: {sentence}" for name, sentence in sentences(comparison)]
    warnings = [f"* {warning}" for warning in constant_warnings(comparison, lambda name: escape(shorten(name)))]
    page = [
        f"# Comparison on {len(comparison.images)} {comparison.split_name} images",
        "",
        *(line for sentence in optimism(comparison) for line in (sentence, "")),
        *(f"| {' | '.join(row)} |" for row in lines),
        "",
        "IoU over the pixels of all images; mean ± standard deviation over the seeds. `constant` predicts the same "
        "label for every pixel. Times are medians, with the first and third quartiles.",
        "",
        *(["Not better than a constant prediction:", "", *warnings, ""] if warnings else []),
        *([title, "", *differences] if differences else [NO_PAIRS]),
        "",
        "The runs, with their mIoU:",
        "",
        *runs,
    ]
    return "\n".join(page) + "\n"


def escape(text: str) -> str:
    """Escape text so that Markdown shows it unchanged."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~&!])", r"\\\1", text)


def log_comparison(sink: Sink, comparison: Comparison) -> None:
    """Record the page, the values and the counts of each image in `comparison/`, and the mean mIoU of each group."""
    groups = {f"{method}-{start}": [run.miou for run in r] for (method, start), r in comparison.groups().items()}
    sink.log_metrics({f"miou/{safe_name(name)}": float(np.mean(values)) for name, values in groups.items()}, step=0)
    values: dict[str, Any] = {
        "classes": list(comparison.classes),
        "split": comparison.split,
        "has_background": comparison.has_background,
        "runs": [_to_json(run, comparison.classes) for run in comparison.evaluated],
        "differences": [
            {
                "name": difference.name,
                "first": difference.first._asdict(),
                "second": difference.second._asdict(),
                "pairs": difference.num_pairs,
                **difference.interval._asdict(),
            }
            for difference in comparison.differences
        ],
        "confidence": comparison.confidence,
        "constants": [
            {"label": constant.label, **iou.summarize(constant.counts, comparison.classes)}
            for constant in comparison.constants()
        ],
        "warnings": [*optimism(comparison), *constant_warnings(comparison)],
    }
    sink.log_json(values, "comparison/comparison.json")
    sink.log_text(markdown(comparison), "comparison/comparison.md")
    labels = (["background"] if comparison.has_background else []) + [*comparison.classes]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.npz"
        np.savez_compressed(
            path,
            counts=np.stack([run.counts[:, -len(labels) :] for run in comparison.evaluated]),
            run_ids=[run.run_id for run in comparison.evaluated],
            images=list(comparison.images),
            classes=labels,
            columns=["intersection", "predicted", "labeled"],
        )
        sink.log_file(path, "comparison")


def _to_json(run: Evaluated, classes: Sequence[str]) -> dict[str, Any]:
    keys = ("run_id", "method", "start", "seed", "milliseconds", "times")
    values = {key: getattr(run, key) for key in keys}
    return {**values, "parameters": run.num_parameters, **iou.summarize(run.counts, classes)}


def read_comparison(store: Store, run_id: str) -> Comparison:
    """Read what `log_comparison` recorded. The scores are recomputed from the counts.

    Raises:
        UserError: if an artifact is missing or damaged.
    """
    images, counts = store.read(run_id, "comparison/counts.npz", _read_counts)
    return store.read(run_id, "comparison/comparison.json", partial(_read_comparison, images, counts))


def _read_counts(path: Path) -> tuple[list[str], dict[str, iou.Counts]]:
    saved = read_arrays(path)
    counts = saved["counts"]
    if saved["classes"][0] != "background":  # then the background has no pixels
        counts = np.pad(counts, [(0, 0), (0, 0), (1, 0), (0, 0)])
    return saved["images"].tolist(), dict(zip(saved["run_ids"].tolist(), counts, strict=True))


def _read_comparison(images: list[str], counts: dict[str, iou.Counts], path: Path) -> Comparison:
    saved = json.loads(path.read_text())
    return Comparison(
        classes=saved["classes"],
        images=images,
        evaluated=[
            Evaluated(
                counts=counts[run["run_id"]],
                times=run.get("times", [run["milliseconds"]]),  # older comparisons have only the median
                num_parameters=run["parameters"],
                **{key: run[key] for key in ("run_id", "method", "start", "seed")},
            )
            for run in saved["runs"]
        ],
        differences=[
            Difference(
                first=Group(**difference["first"]),
                second=Group(**difference["second"]),
                num_pairs=difference["pairs"],
                interval=Interval(difference["difference"], difference["low"], difference["high"]),
            )
            for difference in saved["differences"]
        ],
        confidence=saved["confidence"],
        split=saved.get("split", "val"),  # older comparisons know no other split
        has_background=saved.get("has_background", True),  # all older ones have
    )
