"""The embedding explorer: a self-contained HTML page with the t-SNE of crops at each epoch, or of whole images."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bokeh.embed import file_html
from bokeh.models import (
    CDSView,
    ColumnDataSource,
    HoverTool,
    IndexFilter,
    PanTool,
    Range1d,
    ResetTool,
    TapTool,
    WheelZoomTool,
)
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Template
from numpy.typing import NDArray
from PIL import Image

from cvexp import progress
from cvexp.colors import color
from cvexp.data.crops import Crops
from cvexp.data.index import Index
from cvexp.metrics.neighbors import nearest_neighbors
from cvexp.report.embedding import Embedding, read_embedding
from cvexp.report.style import marker, shorten
from cvexp.tracking.finished import embedded_epochs
from cvexp.tracking.run import ReadOnlyRun

NUM_NEIGHBORS = 8
MAX_EPOCH_BYTES, MAX_SPRITE_BYTES = 4_500_000, 2_800_000  # in base64; with Bokeh's 1.5 MB the page stays below 10 MB
SPRITE_QUALITIES = ((64, 80), (56, 70), (48, 70), (40, 65), (32, 60), (24, 50))  # pixels of a crop's side, WebP quality
TOOLTIP_SIDE = 96  # pixels

BOKEH_MARKERS = {
    "o": "circle",
    "s": "square",
    "^": "triangle",
    "*": "star",
    "P": "plus",
    "D": "diamond",
    "v": "inverted_triangle",
    "X": "x",
}
MARKER_SYMBOLS = dict(zip("os^*PDvX", "●■▲★✚◆▼✖", strict=True))


class Words(NamedTuple):
    """What a page calls the crops and their classes."""

    crop: str
    crops: str
    classes: str
    legend: str


CROPS = Words("crop", "validation crops", "classes, which pretraining did not use", "Classes")


def log_explorer(run: ReadOnlyRun, index: Index, positions: Sequence[int]) -> None:
    """Record `explorer.html`, made from the embeddings that a pretraining run recorded.

    Nothing is recorded if there are too few crops for a t-SNE.

    Args:
        run: The pretraining run.
        index: The index of the validation objects.
        positions: Positions in the index of the embedded crops.
    """
    epochs = kept_epochs(embedded_epochs(run.kept, run.id), len(positions))
    embeddings = {epoch: read_embedding(run.kept, run.id, epoch) for epoch in epochs}
    if any(len(embedding.layout) == 0 for embedding in embeddings.values()):
        return
    reader = Crops(index, resolution=TOOLTIP_SIDE)
    crops = [reader.picture(position) for position in progress.track(positions, "reading crops for the explorer")]
    with progress.step("writing the explorer"):
        run.log_text(page(embeddings, crops, index.classes), "explorer.html")


def kept_epochs(epochs: Sequence[int], num_crops: int) -> list[int]:
    """Return as many evenly spaced epochs as fit on the page, always including the first and the last one."""
    bytes_per_epoch = num_crops * (2 + 2 * NUM_NEIGHBORS) * 2 * 4 / 3
    num_epochs = min(len(epochs), max(2, int(MAX_EPOCH_BYTES / bytes_per_epoch)))
    return [epochs[i] for i in np.unique(np.linspace(0, len(epochs) - 1, num_epochs).round().astype(int))]


def page(
    embeddings: Mapping[int, Embedding], crops: Sequence[Image.Image], classes: Sequence[str], words: Words = CROPS
) -> str:
    """Return the explorer as HTML.

    Args:
        embeddings: Embeddings by epoch, in order. All are of the same n crops, and have a layout.
        crops: Images of the n crops.
        classes: Class names; empty if there are no labels.
        words: What the page calls the crops and the classes.
    """
    first = next(iter(embeddings.values()))
    labels = first.labels.astype(int).clip(min=0)
    num_columns, sprite_uri = sprite(crops)
    neighbors = [
        nearest_neighbors(embedding.features, embedding.features, NUM_NEIGHBORS, exclude=np.arange(len(crops)))
        for embedding in embeddings.values()
    ]
    names = [shorten(name) for name in classes] or ["no label"]
    content = {
        "epochs": list(embeddings),
        "classes": names,
        "colors": [color(label) for label in range(len(names))],
        "symbols": [MARKER_SYMBOLS[marker(label)] for label in range(len(names))],
        "labels": labels.tolist(),
        "images": first.image.tolist(),
        "layouts": [_encode_layout(embedding.layout) for embedding in embeddings.values()],
        "neighbors": [_encode(of_epoch.indices) for of_epoch in neighbors],
        "distances": [_encode(((1 - of_epoch.cosines) / 2).clip(0, 1) * 65535) for of_epoch in neighbors],
        "k": neighbors[0].indices.shape[1],
        "columns": num_columns,
    }
    html: str = file_html(
        [_plot(labels, len(names), num_columns)],
        Resources(mode="inline"),
        title="Embedding explorer",
        template=Template((Path(__file__).parent / "explorer.html.jinja").read_text(), autoescape=False),
        template_variables={
            "data": _script_json(content),
            "sprite": sprite_uri,
            "count": len(crops),
            "words": words,
            "labeled": bool(classes),
        },
    )
    return html


def sprite(crops: Sequence[Image.Image]) -> tuple[int, str]:
    """Put all crops into one image, at the largest size and quality that fit on the page.

    Returns:
        The number of crops in a row, and the image as a data URI.
    """
    columns = math.ceil(math.sqrt(len(crops)))
    for side, quality in SPRITE_QUALITIES:
        sheet = Image.new("RGB", (columns * side, math.ceil(len(crops) / columns) * side))
        for i, crop in enumerate(crops):
            sheet.paste(crop.resize((side, side), Image.Resampling.BICUBIC), (i % columns * side, i // columns * side))
        content = io.BytesIO()
        sheet.save(content, "WEBP", quality=quality, method=4)
        encoded = base64.b64encode(content.getvalue()).decode()
        if len(encoded) <= MAX_SPRITE_BYTES:
            break
    return columns, f"data:image/webp;base64,{encoded}"


def _plot(labels: NDArray[np.int_], num_classes: int, num_columns: int) -> Any:
    """Create the scatter plot. Its points have no coordinates yet; the page sets those of the selected epoch.

    Args:
        labels: (n,), the class of each crop.
        num_classes: Number of classes.
        num_columns: Number of crops in a row of the sprite.
    """
    plot = figure(
        x_range=Range1d(start=-1.05, end=1.05),
        y_range=Range1d(start=-1.05, end=1.05),
        match_aspect=True,
        sizing_mode="stretch_both",
        toolbar_location=None,
        output_backend="canvas",  # without a GPU, it draws 5000 points faster than WebGL
        tools=[],
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border=0,
        name="plot",
    )
    plot.axis.visible = False
    plot.grid.visible = False
    rings = ColumnDataSource({"x": [], "y": [], "size": []}, name="rings")
    plot.scatter("x", "y", source=rings, size="size", fill_color=None, line_color="#888888", line_width=2.5)
    points = _point_source(len(labels), num_columns)
    renderers = [_draw_class(plot, points, label, np.flatnonzero(labels == label)) for label in range(num_classes)]
    tooltip = _tooltip(len(labels), num_columns)
    hover = HoverTool(renderers=renderers, tooltips=tooltip, point_policy="follow_mouse")
    wheel = WheelZoomTool()
    plot.add_tools(hover, TapTool(renderers=renderers), PanTool(), wheel, ResetTool())
    plot.toolbar.active_scroll = wheel
    return plot


def _point_source(num_crops: int, num_columns: int) -> ColumnDataSource:
    """Create the data of the points, with the offset of each crop in the sprite for the tooltips."""
    return ColumnDataSource(
        {
            "x": np.full(num_crops, np.nan),
            "y": np.full(num_crops, np.nan),
            "left": [-(i % num_columns) * TOOLTIP_SIDE for i in range(num_crops)],
            "top": [-(i // num_columns) * TOOLTIP_SIDE for i in range(num_crops)],
            "class": [""] * num_crops,
            "file": [""] * num_crops,
            "number": list(range(num_crops)),
        },
        name="points",
    )


def _draw_class(plot: Any, points: ColumnDataSource, label: int, positions: NDArray[np.intp]) -> Any:
    """Draw the points of one class with a renderer of their own, so that the page can hide them."""
    return plot.scatter(
        "x",
        "y",
        source=points,
        view=CDSView(filter=IndexFilter(indices=positions.tolist())),
        marker=BOKEH_MARKERS[marker(label)],
        size=8,
        fill_color=color(label),
        line_color="#80808080",
        fill_alpha=0.85,
        nonselection_fill_alpha=0.4,
        nonselection_line_alpha=0.2,
        selection_line_color="#888888",
        name=f"class {label}",
    )


def _tooltip(num_crops: int, num_columns: int) -> str:
    """Return the HTML of a tooltip: the crop, cut out of the sprite, with its number, class and file."""
    num_rows = math.ceil(num_crops / num_columns)
    return (
        f'<div style="width:{TOOLTIP_SIDE}px;height:{TOOLTIP_SIDE}px;background-image:var(--crops);'
        f"image-rendering:auto;background-size:{num_columns * TOOLTIP_SIDE}px {num_rows * TOOLTIP_SIDE}px;"
        'background-position:@left{0}px @top{0}px"></div><div>@number @class</div>'
        '<div style="max-width:20rem;overflow-wrap:anywhere">@file</div>'
    )


def _encode_layout(layout: NDArray[np.float32]) -> str:
    """Encode coordinates, centered and scaled to -1 to 1. The scale differs between epochs."""
    centered = layout - (layout.max(axis=0) + layout.min(axis=0)) / 2
    return _encode((centered / np.abs(centered).max().clip(1e-12) + 1) / 2 * 65535)


def _encode(values: NDArray[Any]) -> str:
    """Encode numbers from 0 to 65535 as the base64 of 16-bit integers."""
    return base64.b64encode(values.round().astype("<u2").tobytes()).decode()


def _script_json(content: dict[str, Any]) -> str:
    """Return JSON that is safe inside a script element, whatever the names of files and classes contain."""
    return json.dumps(content).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
