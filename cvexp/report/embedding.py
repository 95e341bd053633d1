"""Embeddings of the validation crops over the epochs: as artifacts, and as t-SNE pictures that can be compared."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cvexp.data.index import Index
from cvexp.report.style import COLUMN, PAGE, STYLE, add_legend, color, drawable, marker, state_of
from cvexp.tracking.sink import Sink
from cvexp.tracking.store import Store

MIN_CROPS = 5  # fewer make no meaningful t-SNE


def log_embedding(
    sink: Sink,
    index: Index,
    positions: list[int],
    features: NDArray[np.float32],
    layout: NDArray[np.float32] | None,
    epoch: int,
) -> None:
    """Save features as the artifact `embeddings/epoch-NNNN.npz`; epoch 0 is the untrained backbone.

    Args:
        sink: Where they are recorded.
        index: Where the crops come from.
        positions: Which of its objects they are, n of them.
        features: (n, d).
        layout: Their t-SNE, (n, 2); None if there are too few.
        epoch: Number of epochs of training.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"epoch-{epoch:04d}.npz"
        np.savez_compressed(
            path,
            features=features,
            labels=index.label[positions],
            image=np.array([index.catalog.file(i) for i in index.image[positions]]),
            box=index.box[positions],
            layout=np.zeros((0, 2), np.float32) if layout is None else layout,
        )
        sink.log_file(path, "embeddings")


class Embedding(NamedTuple):
    """What `log_embedding` recorded of n crops.

    Attributes:
        features: (n, d).
        labels: (n,), -1 if there are none.
        image: (n,), files relative to the root of the data set.
        box: (n, 4), left, top, width and height in pixels.
        layout: (n, 2), the t-SNE; (0, 2) if there were too few crops, or it was not kept.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int16]
    image: NDArray[np.str_]
    box: NDArray[np.float32]
    layout: NDArray[np.float32]


def read_embedding(store: Store, run_id: str, epoch: int) -> Embedding:
    """Read the embedding that a run recorded after so many epochs.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    return store.read(run_id, f"embeddings/epoch-{epoch:04d}.npz", _read)


def _read(path: Path) -> Embedding:
    nothing = {"layout": np.zeros((0, 2), np.float32)}  # older runs did not keep it
    with np.load(path) as content:
        embedding = Embedding(**{**nothing, **{name: content[name] for name in Embedding._fields if name in content}})
    count = len(embedding.features)
    lengths = [len(array) for array in (embedding.labels, embedding.image, embedding.box)]
    if embedding.features.ndim != 2 or lengths != [count] * 3 or embedding.layout.shape not in ((0, 2), (count, 2)):
        raise ValueError("its arrays have different lengths")
    return embedding


def layout(features: NDArray[np.float32], previous: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Compute the t-SNE of l2-normalized features, (n, d) to (n, 2), starting from the layout of the previous epoch.

    This start keeps clusters roughly where they were, so that pictures of consecutive epochs can be compared. It is
    scaled down because t-SNE needs room to move points past each other (Kobak and Berens 2019).
    """
    from sklearn.manifold import TSNE

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    start: Any = "pca" if previous is None else previous / max(float(previous.std()), 1e-12) * 1e-4
    if previous is None and min(unit.shape) < 2:
        start = "random"
    perplexity = min(30.0, (len(unit) - 1) / 3)
    tsne = TSNE(init=start, perplexity=perplexity, metric="euclidean", random_state=0, max_iter=750)
    points: NDArray[np.float32] = tsne.fit_transform(unit)
    return points


def draw(points: NDArray[np.float32], index: Index, positions: list[int], epoch: int) -> Figure:
    """Draw a t-SNE layout, colored by class."""
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 3.5), layout="constrained")
        axes = figure.subplots()
        _scatter(axes, points, index.label[positions], index.classes, size=9)
        axes.set_title(f"t-SNE of {len(points)} validation crops, {state_of(epoch)}")
        if index.classes:
            _legend(figure, index.classes)
    return figure


def draw_epochs(embeddings: Mapping[int, Embedding], classes: Sequence[str]) -> Figure:
    """Draw the layouts of some epochs side by side."""
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, PAGE / max(len(embeddings), 2) + 0.4), layout="constrained")
        for axes, (epoch, embedding) in zip(
            figure.subplots(1, len(embeddings), squeeze=False)[0], embeddings.items(), strict=True
        ):
            _scatter(axes, embedding.layout, embedding.labels, classes, size=7)
            axes.set_title(state_of(epoch))
        if classes:
            _legend(figure, classes)
    return figure


def _legend(figure: Figure, names: Sequence[str]) -> None:
    add_legend(figure, figure.axes[0].collections[: len(names)], markerscale=1.5)


def _scatter(
    axes: Axes, points: NDArray[np.float32], labels: NDArray[np.int16], classes: Sequence[str], size: int
) -> None:
    for label, name in enumerate(classes or ("no label",)):
        own = points[labels == label] if classes else points
        look: dict[str, Any] = {"color": color(label), "marker": marker(label), "s": size, "alpha": 0.8}
        axes.scatter(own[:, 0], own[:, 1], label=drawable(name), linewidths=0, **look)
    axes.set_xticks([])  # t-SNE's axes have no meaning
    axes.set_yticks([])
