"""The results of a probe, as a table, a page and sentences, and as files from which they can be read back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cvexp.console import console, print_line
from cvexp.data.index import Index
from cvexp.metrics.bootstrap import MIN_IMAGES, Interval
from cvexp.metrics.probe_results import SCORES, Contrast, Estimate, Probed, ProbeResults
from cvexp.metrics.probing import Predictions
from cvexp.report.comparison import escape
from cvexp.report.probe_figures import draw_confusion, draw_scores
from cvexp.report.style import shorten
from cvexp.tracking.sink import Sink
from cvexp.tracking.store import Store

FOLDER = "probe"
COLUMNS = {
    "linear_top1": "linear top-1",
    "linear_mean_recall": "linear recall",
    "knn_top1": "kNN top-1",
    "knn_mean_recall": "kNN recall",
}
DECIDING = "linear_top1"  # the score of the sentences
CONSTANT = "most frequent training class"


def rows(results: ProbeResults) -> list[list[str]]:
    """Return the name and the scores of each network with intervals, of each group of seeds, and of a constant."""
    cells = []
    for network in results.networks:
        scores = [network.scores[name] for name in SCORES]
        cells.append([shorten(network.name), *(f"{s.value:.3f} ({s.low:.3f} to {s.high:.3f})" for s in scores)])
    for group in results.groups():
        values = [f"{group.means[name]:.3f} ± {group.deviations[name]:.3f}" for name in SCORES]
        cells.append([shorten(group.name), *values])
    constant = [results.constant["top1"], results.constant["mean_recall"]] * 2
    return [*cells, [CONSTANT, *(f"{value:.3f}" for value in constant)]]


def sentences(results: ProbeResults) -> list[str]:
    """Return, for each probed network, a sentence that says how it compares with each of its controls."""
    lines = []
    for network in results.probed:
        parts: dict[str, list[str]] = {"higher": [], "lower": [], "undecided": []}
        for contrast in results.contrasts:
            if (contrast.network, contrast.score) == (network.name, DECIDING):
                parts[_verdict(results, contrast.interval)].append(f"{shorten(contrast.control)} {_bounds(contrast)}")
        clauses = [f"{word} than {_listed(parts[word])}" for word in ("higher", "lower") if parts[word]]
        value = f"The linear top-1 accuracy of {shorten(network.name)} is {network.scores[DECIDING].value:.3f}"
        line = f"{value}, {' and '.join(clauses)}" if clauses else value
        if parts["undecided"]:
            line += f"; the images do not decide between it and {_listed(parts['undecided'])}"
        lines.append(f"{line}.")
    return lines


def _verdict(results: ProbeResults, interval: Interval) -> str:
    if results.num_images < MIN_IMAGES or not interval.is_clear:
        return "undecided"
    return "higher" if interval.difference > 0 else "lower"


def _bounds(contrast: Contrast) -> str:
    interval = contrast.interval
    return f"({interval.difference:+.3f}, interval {interval.low:+.3f} to {interval.high:+.3f})"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]


def about(results: ProbeResults) -> str:
    """Describe the table in a few sentences."""
    few = f" {results.num_images} images are too few for reliable intervals." if results.num_images < MIN_IMAGES else ""
    return (
        f"Probes of frozen features on dataset={results.dataset}: trained on {results.num_training} training crops, "
        f"scored on {results.num_objects} crops from {results.num_images} {SPLITS[results.split]} images. Recall is "
        f"the mean over the classes. Ranges are {results.confidence:.0%} intervals over the images, which do "
        f"not include the choice of the seed. ± is the standard deviation over the seeds.{few}"
    )


SPLITS = {"val": "validation", "test": "test"}


def print_results(results: ProbeResults) -> None:
    """Print the table and the sentences."""
    print_line(about(results))
    table = Table()
    table.add_column("")
    for column in COLUMNS.values():
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    for name, *values in rows(results):
        table.add_row(name, *(value.replace(" (", "\n").replace(" to ", "-").removesuffix(")") for value in values))
    console.print(table)
    for sentence in sentences(results):
        print_line(sentence)


def markdown(results: ProbeResults) -> str:
    """Return the results as a Markdown page."""
    lines = [["network", *COLUMNS.values()], ["---", *["---:"] * len(COLUMNS)]]
    lines += [[escape(name), *values] for name, *values in rows(results)]
    contrasts = [
        f"| {escape(shorten(c.network))} | {escape(shorten(c.control))} | {COLUMNS[c.score]} | "
        f"{c.interval.difference:+.3f} | {c.interval.low:+.3f} to {c.interval.high:+.3f} |"
        for c in results.contrasts
    ]
    settings = [f"* {escape(shorten(network.name))}: {_describe(network)}" for network in results.networks]
    page = [
        f"# Probe on {results.num_objects} {SPLITS[results.split]} crops",
        "",
        escape(about(results)),
        "",
        *(f"| {' | '.join(row)} |" for row in lines),
        "",
        *(f"* {escape(sentence)}" for sentence in [*sentences(results), *results.notes]),
        "",
        "![scores](probe.png)",
        "",
    ]
    if contrasts:
        page += ["Differences, with paired intervals:", "", "| network | control | score | difference | interval |"]
        page += ["|---|---|---|---:|---|", *contrasts, ""]
    page += ["The networks:", "", *settings, "", f"Classes: {', '.join(escape(shorten(c)) for c in results.classes)}."]
    return "\n".join(page) + "\n"


def _describe(network: Probed) -> str:
    parts = [
        f"{escape(network.backbone)}" if network.backbone else "",
        f"started from {escape(shorten(network.start))}" if network.start else "",
        f"{network.eval_size} px",
        f"{network.num_features} features",
        f"C = {network.inverse_strength:g}",
        f"run `{network.run_id}`" if network.run_id else "",
    ]
    return ", ".join(part for part in parts if part)


def log_results(sink: Sink, results: ProbeResults) -> None:
    """Record the page, the values and the figure in `probe/`, and the scores of the first network as metrics."""
    first = results.networks[0]
    metrics = {f"{results.split}/{name}": first.scores[name].value for name in SCORES}
    sink.log_metrics(metrics, step=0)
    sink.log_json(to_json(results), f"{FOLDER}/probe.json")
    sink.log_text(markdown(results), f"{FOLDER}/probe.md")
    sink.log_figure(draw_scores(results), f"{FOLDER}/probe.png")


def to_json(results: ProbeResults) -> dict[str, Any]:
    """Return the results as plain values."""
    values = asdict(results)
    for network in values["networks"]:
        network["scores"] = {name: estimate._asdict() for name, estimate in network["scores"].items()}
    values["contrasts"] = [{**c._asdict(), "interval": c.interval._asdict()} for c in results.contrasts]
    values["groups"] = [group._asdict() for group in results.groups()]
    return values


def read_results(store: Store, run_id: str) -> ProbeResults:
    """Read what `log_results` recorded.

    Raises:
        UserError: if the artifact is missing or damaged.
    """
    return store.read(run_id, f"{FOLDER}/probe.json", _read)


def _read(path: Path) -> ProbeResults:
    values = json.loads(path.read_text())
    del values["groups"]  # they follow from the other values
    for network in values["networks"]:
        network["scores"] = {name: Estimate(**estimate) for name, estimate in network["scores"].items()}
    values["networks"] = [Probed(**network) for network in values["networks"]]
    values["contrasts"] = [Contrast(**{**c, "interval": Interval(**c["interval"])}) for c in values["contrasts"]]
    return ProbeResults(**values)


def log_predictions(sink: Sink, results: ProbeResults, index: Index, predictions: Sequence[Predictions]) -> None:
    """Record all predictions, and the confusion matrix of the first network's linear classifier."""
    figure = draw_confusion(index.label, predictions[0].linear, results.classes, results.networks[0].name)
    sink.log_figure(figure, f"{FOLDER}/confusion.png")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.npz"
        np.savez_compressed(
            path,
            networks=[network.name for network in results.networks],
            linear=np.stack([predicted.linear for predicted in predictions]).astype(np.int16),
            knn=np.stack([predicted.knn for predicted in predictions]).astype(np.int16),
            labels=index.label,
            images=[index.catalog.file(int(image)) for image in index.image],
            boxes=index.box,
            classes=list(index.classes),
        )
        sink.log_file(path, FOLDER)
