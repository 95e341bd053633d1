"""Nearest neighbors, as a table and as figures, and how often they have the same class."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from cvexp.colors import color
from cvexp.console import console
from cvexp.metrics.names import safe_name
from cvexp.metrics.neighbors import Neighbors
from cvexp.report.embedding import Embedding
from cvexp.report.style import PAGE, SMALL, STYLE, fitting, shorten, state_of
from cvexp.tracking.sink import Sink

SIDE = (0.5, 0.62)  # inches, the smallest and largest side of a crop
NUM_ROWS = 5  # queries in a figure


class Query(NamedTuple):
    """A crop or image file whose neighbors are searched for.

    Attributes:
        name: The position in the embedding, or the name of the file.
        label: The class; -1 if it is unknown.
        picture: The crop, or the image.
    """

    name: str
    label: int
    picture: Image.Image


def log_precision(
    sink: Sink,
    classes: Sequence[str],
    labels: NDArray[np.int16],
    trained: NDArray[np.float64],
    untrained: NDArray[np.float64],
    k: int,
    epoch: int,
    warning: str | None,
) -> None:
    """Print and record the precision at k of each class, and compare it with the untrained backbone and with chance.

    Args:
        sink: Where to record it.
        classes: Class names.
        labels: (n,), the class of each crop.
        trained, untrained: (n,), the share of each crop's neighbors that have its class.
        k: Number of neighbors of each crop.
        epoch: The epoch of the trained features.
        warning: A warning that the features are worse than the untrained ones, or None.
    """
    rows: list[tuple[Any, ...]] = []
    for label, name in enumerate(classes):
        is_class = labels == label
        if is_class.any():
            chance = (is_class.sum() - 1) / max(len(labels) - 1, 1)
            rows.append((name, int(is_class.sum()), trained[is_class].mean(), untrained[is_class].mean(), chance))
    weights = np.array([row[1] for row in rows])
    overall = [float((np.array([row[column] for row in rows]) * weights).sum() / weights.sum()) for column in (2, 3, 4)]
    total: tuple[Any, ...] = ("all", int(weights.sum()), *overall)
    table = Table(title=f"share of the {k} nearest neighbors that have the same class", title_justify="left")
    for column in ("class", "crops", "trained", "untrained", "chance"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, num_crops, *values in [*rows, total]:
        table.add_row(shorten(name), str(num_crops), *(f"{value:.3f}" for value in values))
    console.print(table)
    keys = ("crops", "precision", "untrained", "chance")
    (_, total_values), *by_class = ((name, dict(zip(keys, values, strict=True))) for name, *values in [total, *rows])
    precision = {"epoch": epoch, "k": k, "warning": warning, "classes": dict(by_class), "all": total_values}
    sink.log_json(precision, "neighbors/precision.json")
    for metric, key in (("precision", "precision"), ("precision_untrained", "untrained")):
        class_values = {f"{metric}/{safe_name(name)}": values[key] for name, values in by_class}
        sink.log_metrics({metric: total_values[key], **class_values}, step=0)


def log_table(
    sink: Sink, queries: Sequence[Query], neighbors: Neighbors, embedding: Embedding, classes: Sequence[str]
) -> None:
    """Record `neighbors/neighbors.csv`, with a line for each neighbor of each query."""
    lines = io.StringIO()
    table = csv.writer(lines)
    table.writerow(
        ["query", "query_class", "rank", "neighbor", "class", "distance", "image", "left", "top", "width", "height"]
    )
    for query, indices, cosines in zip(queries, neighbors.indices, neighbors.cosines, strict=True):
        for rank, (i, cosine) in enumerate(zip(indices, cosines, strict=True), start=1):
            location = [embedding.image[i], *(f"{value:g}" for value in embedding.box[i])]
            names = _name(classes, query.label), _name(classes, int(embedding.labels[i]))
            table.writerow([query.name, names[0], rank, int(i), names[1], f"{1 - cosine:.6f}", *location])
    sink.log_text(lines.getvalue(), "neighbors/neighbors.csv")


def log_grids(
    sink: Sink,
    queries: Sequence[Query],
    neighbors: Neighbors,
    crops: Mapping[int, Image.Image],
    labels: NDArray[np.int16],
    classes: Sequence[str],
    epoch: int,
) -> None:
    """Record figures of a few queries each, with their neighbors; the arguments are those of `draw`."""
    for first in range(0, len(queries), NUM_ROWS):
        part = slice(first, first + NUM_ROWS)
        rows = Neighbors(neighbors.indices[part], neighbors.cosines[part])
        name = f"grid-{first // NUM_ROWS + 1}" if first else "grid"
        sink.log_figure(draw(queries[part], rows, crops, labels, classes, epoch), f"neighbors/{name}.png")


def draw(
    queries: Sequence[Query],
    neighbors: Neighbors,
    crops: Mapping[int, Image.Image],
    labels: NDArray[np.int16],
    classes: Sequence[str],
    epoch: int,
) -> Figure:
    """Draw a row for each query, with its neighbors. Frames have the colors of the classes.

    Args:
        queries: The queries.
        neighbors: The neighbors of the queries.
        crops: Images of the neighbors, by position in the embedding.
        labels: (n,), the class of each crop of the embedding.
        classes: Class names.
        epoch: The epoch of the embedding.
    """
    columns = 1 + neighbors.indices.shape[1]
    side = min(max(PAGE / columns, SIDE[0]), SIDE[1])
    with rc_context(STYLE):
        figure = Figure(figsize=(max(side * columns, 2.2), (side + 0.22) * len(queries) + 0.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)  # type: ignore[union-attr,call-arg]
        axes = figure.subplots(len(queries), columns, squeeze=False)
        for row, query, indices, cosines in zip(axes, queries, neighbors.indices, neighbors.cosines, strict=True):
            _show(row[0], query.picture, query.label, _caption([_name(classes, query.label), query.name], side - 0.04))
            for ax, i, cosine in zip(row[1:], indices, cosines, strict=True):
                label = int(labels[i])
                _show(ax, crops[int(i)], label, _caption([_name(classes, label), f"{1 - cosine:.3f}"], side - 0.04))
        axes[0, 0].set_title("query", fontweight="bold")
        for rank, ax in enumerate(axes[0, 1:], start=1):
            ax.set_title(f"{rank}")
        figure.suptitle(f"cosine distances, {state_of(epoch)}")
    return figure


def _show(ax: Axes, picture: Image.Image, label: int, caption: str) -> None:
    ax.imshow(picture.resize((160, 160)))
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.set_xlabel(caption, fontsize=SMALL, labelpad=1.5)
    for spine in ax.spines.values():
        spine.set(visible=True, color=color(label) if label >= 0 else "#888888", linewidth=1.5)


def _caption(lines: Sequence[str], inches: float) -> str:
    return "\n".join(fitting(line, inches) for line in lines if line)


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label] if label >= 0 else ""
