"""The embedding explorer: one page, which needs no network, of the crops' t-SNE over the epochs."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

from cvexp.data.crops import read_crop
from cvexp.data.index import Index
from cvexp.metrics.neighbors import nearest_neighbors
from cvexp.report.embedding import Embedding, read_embedding
from cvexp.report.style import color, marker, shorten
from cvexp.tracking.finished import embedded_epochs
from cvexp.tracking.run import ReadOnlyRun

NEIGHBORS = 8
BYTES_OF_EPOCHS, BYTES_OF_PICTURES = 4_500_000, 2_800_000  # as base64; with Bokeh's 1.5 MB the page stays below 10 MB
BOKEHS_NAMES = {"o": "circle", "s": "square", "^": "triangle", "*": "star", "P": "plus", "D": "diamond"}
BOKEHS_NAMES |= {"v": "inverted_triangle", "X": "x"}
MARKS = dict(zip("os^*PDvX", "●■▲★✚◆▼✖", strict=True))


def log_explorer(run: ReadOnlyRun, index: Index, positions: Sequence[int]) -> None:
    """Record `explorer.html`, from the embeddings that the run has recorded.

    Args:
        run: A pretraining.
        index, positions: Where the crops come from.
    """
    epochs = kept_epochs(embedded_epochs(run.store, run.id), len(positions))
    embeddings = {epoch: read_embedding(run.store, run.id, epoch) for epoch in epochs}
    if any(len(embedding.layout) == 0 for embedding in embeddings.values()):
        return  # too few crops for a t-SNE
    crops = [read_crop(index, position, resolution=96) for position in positions]
    run.log_text(page(embeddings, crops, index.classes), "explorer.html")


def kept_epochs(epochs: Sequence[int], crops: int) -> list[int]:
    """As many epochs as the page has room for, evenly spread, the first and the last among them."""
    bytes_each = crops * (2 + 2 * NEIGHBORS) * 2 * 4 / 3
    most = min(len(epochs), max(2, int(BYTES_OF_EPOCHS / bytes_each)))
    return [epochs[i] for i in np.unique(np.linspace(0, len(epochs) - 1, most).round().astype(int))]


def page(embeddings: dict[int, Embedding], crops: Sequence[Image.Image], classes: Sequence[str]) -> str:
    """The explorer as HTML.

    Args:
        embeddings: By epoch, in order; each of the same n crops, with a layout.
        crops: Their pictures.
        classes: Names; empty where there are no labels.
    """
    first = next(iter(embeddings.values()))
    labels = first.labels.astype(int)
    side, columns, pictures = sprite(crops)
    data = {
        "epochs": list(embeddings),
        "classes": [shorten(name) for name in classes] or ["no label"],
        "colors": [color(label) for label in range(max(len(classes), 1))],
        "marks": [MARKS[marker(label)] for label in range(max(len(classes), 1))],
        "labels": labels.clip(min=0).tolist(),
        "images": first.image.tolist(),
        "layouts": [_layout(embedding.layout) for embedding in embeddings.values()],
        "neighbors": [],
        "distances": [],
        "k": min(NEIGHBORS, len(labels) - 1),
        "side": side,
        "columns": columns,
    }
    for embedding in embeddings.values():
        features = embedding.features
        found = nearest_neighbors(features, features, NEIGHBORS, exclude=np.arange(len(features)))
        data["neighbors"].append(_packed(found.indices))
        data["distances"].append(_packed(((1 - found.cosines) / 2).clip(0, 1) * 65535))
    template = Template((Path(__file__).parent / "explorer.html.jinja").read_text(), autoescape=False)
    html: str = file_html(
        [_plot(labels.clip(min=0), len(data["classes"]), columns)],
        Resources(mode="inline"),
        title="Embedding explorer",
        template=template,
        template_variables={
            "data": _in_script(data),
            "pictures": pictures,
            "count": len(crops),
            "labeled": bool(classes),
        },
    )
    return html


def sprite(crops: Sequence[Image.Image]) -> tuple[int, int, str]:
    """All crops in one picture, as large and as good as the page has room for.

    Returns:
        The side of a crop in pixels, how many are in a row, and the picture as a data URI.
    """
    columns = math.ceil(math.sqrt(len(crops)))
    for side, quality in ((64, 80), (56, 70), (48, 70), (40, 65), (32, 60), (24, 50)):
        sheet = Image.new("RGB", (columns * side, math.ceil(len(crops) / columns) * side))
        for i, crop in enumerate(crops):
            sheet.paste(crop.resize((side, side), Image.Resampling.BICUBIC), (i % columns * side, i // columns * side))
        content = io.BytesIO()
        sheet.save(content, "WEBP", quality=quality, method=4)
        encoded = base64.b64encode(content.getvalue()).decode()
        if len(encoded) <= BYTES_OF_PICTURES:
            break
    return side, columns, f"data:image/webp;base64,{encoded}"


def _plot(labels: NDArray[np.int_], classes: int, columns: int) -> Any:
    """The points, still without places: the page sets those of the chosen epoch."""
    count = len(labels)
    nowhere = np.full(count, np.nan)
    points = ColumnDataSource(
        {
            "x": nowhere,
            "y": nowhere,
            "left": [-(i % columns) * 96 for i in range(count)],
            "top": [-(i // columns) * 96 for i in range(count)],
            "class": [""] * count,
            "number": list(range(count)),
        },
        name="points",
    )
    rings = ColumnDataSource({"x": [], "y": [], "size": []}, name="rings")
    plot = figure(
        x_range=Range1d(start=-1.05, end=1.05),
        y_range=Range1d(start=-1.05, end=1.05),
        match_aspect=True,
        sizing_mode="stretch_both",
        toolbar_location=None,
        output_backend="canvas",  # of 5000 points faster than WebGL where there is no GPU
        tools=[],
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border=0,
        name="plot",
    )
    plot.axis.visible = False
    plot.grid.visible = False
    plot.scatter("x", "y", source=rings, size="size", fill_color=None, line_color="#888888", line_width=2.5)
    drawn: list[Any] = [
        plot.scatter(
            "x",
            "y",
            source=points,
            view=CDSView(filter=IndexFilter(indices=np.flatnonzero(labels == label).tolist())),
            marker=BOKEHS_NAMES[marker(label)],
            size=8,
            fill_color=color(label),
            line_color="#80808080",
            fill_alpha=0.85,
            nonselection_fill_alpha=0.4,
            nonselection_line_alpha=0.2,
            selection_line_color="#888888",
            name=f"class {label}",
        )
        for label in range(classes)
    ]
    rows = math.ceil(count / columns)
    picture = (
        '<div style="width:96px;height:96px;background-image:var(--crops);image-rendering:auto;'
        f"background-size:{columns * 96}px {rows * 96}px;"
        'background-position:@left{0}px @top{0}px"></div><div>@number @class</div>'
    )
    hover = HoverTool(renderers=drawn, tooltips=picture, point_policy="follow_mouse")
    wheel = WheelZoomTool()
    plot.add_tools(hover, TapTool(renderers=drawn), PanTool(), wheel, ResetTool())
    plot.toolbar.active_scroll = wheel
    return plot


def _layout(layout: NDArray[np.float32]) -> str:
    """Places from -1 to 1, as whole numbers; the scale changes from epoch to epoch, and means nothing."""
    centered = layout - (layout.max(axis=0) + layout.min(axis=0)) / 2
    return _packed((centered / np.abs(centered).max().clip(1e-12) + 1) / 2 * 65535)


def _packed(values: NDArray[Any]) -> str:
    return base64.b64encode(values.round().astype("<u2").tobytes()).decode()


def _in_script(data: dict[str, Any]) -> str:
    """JSON that can't end the script that it stands in, whatever files and classes are called."""
    return json.dumps(data).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
