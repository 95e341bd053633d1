"""Embeddings of the validation crops at several epochs, as artifacts and as t-SNE figures."""

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

from cvexp.colors import color
from cvexp.data.index import Index
from cvexp.report.arrays import read_arrays
from cvexp.report.style import COLUMN, PAGE, STYLE, add_legend, drawable, marker, state_of
from cvexp.tracking.kept import KeptFiles
from cvexp.tracking.sink import Sink
from cvexp.tracking.store import Store

MIN_CROPS = 5  # a t-SNE of fewer crops is meaningless


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
        sink: Where to record them.
        index: The index of the validation objects.
        positions: Positions in the index of the n embedded crops.
        features: (n, d).
        layout: The t-SNE of the features, (n, 2); None if there are too few.
        epoch: Number of epochs of training so far.
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
    """An embedding of n crops, as `log_embedding` recorded it.

    Attributes:
        features: (n, d).
        labels: (n,), the class of each crop; -1 if there are no labels.
        image: (n,), the file of each crop, relative to the root of the data set.
        box: (n, 4), left, top, width and height in pixels.
        layout: (n, 2), the t-SNE; (0, 2) if there were too few crops, or the run did not record it.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int16]
    image: NDArray[np.str_]
    box: NDArray[np.float32]
    layout: NDArray[np.float32]


def read_embedding(store: Store | KeptFiles, run_id: str, epoch: int) -> Embedding:
    """Read the embedding that a run recorded at an epoch.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    return store.read(run_id, f"embeddings/epoch-{epoch:04d}.npz", _read)


def _read(path: Path) -> Embedding:
    defaults = {"layout": np.zeros((0, 2), np.float32)}  # older runs did not record it
    content = read_arrays(path)
    embedding = Embedding(**{**defaults, **{name: content[name] for name in Embedding._fields if name in content}})
    num_crops = len(embedding.features)
    lengths = [len(array) for array in (embedding.labels, embedding.image, embedding.box)]
    if (
        embedding.features.ndim != 2
        or lengths != [num_crops] * 3
        or embedding.layout.shape not in ((0, 2), (num_crops, 2))
    ):
        raise ValueError("its arrays have different lengths")
    return embedding


def compute_layout(features: NDArray[np.float32], previous: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Compute the t-SNE (n, 2) of l2-normalized features, starting from the layout of the previous epoch.

    Starting there keeps clusters roughly in place, so that figures of consecutive epochs can be compared. The start is
    scaled down because t-SNE needs small initial coordinates to move points past each other (Kobak and Berens 2019).

    Args:
        features: (n, d).
        previous: (n, 2); None at the first epoch.
    """
    from sklearn.manifold import TSNE

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    start: Any = "pca" if previous is None else previous / max(float(previous.std()), 1e-12) * 1e-4
    if previous is None and (min(unit.shape) < 2 or not np.ptp(unit, axis=0).any()):  # there is no second component
        start = "random"
    perplexity = min(30.0, (len(unit) - 1) / 3)
    tsne = TSNE(init=start, perplexity=perplexity, metric="euclidean", random_state=0, max_iter=750)
    points: NDArray[np.float32] = tsne.fit_transform(unit)
    return points


def draw(points: NDArray[np.float32], index: Index, positions: list[int], epoch: int) -> Figure:
    """Draw a t-SNE layout (n, 2), colored by class; the arguments are those of `log_embedding`."""
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 3.5), layout="constrained")
        ax = figure.subplots()
        _scatter(ax, points, index.label[positions], index.classes, size=9)
        ax.set_title(f"t-SNE of {len(points)} validation crops, {state_of(epoch)}")
        if index.classes:
            _legend(figure, index.classes)
    return figure


def draw_epochs(embeddings: Mapping[int, Embedding], classes: Sequence[str]) -> Figure:
    """Draw the layouts of several epochs side by side, colored by class."""
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, PAGE / max(len(embeddings), 2) + 0.4), layout="constrained")
        axes = figure.subplots(1, len(embeddings), squeeze=False)[0]
        for ax, (epoch, embedding) in zip(axes, embeddings.items(), strict=True):
            _scatter(ax, embedding.layout, embedding.labels, classes, size=7)
            ax.set_title(state_of(epoch))
        if classes:
            _legend(figure, classes)
    return figure


def _legend(figure: Figure, names: Sequence[str]) -> None:
    add_legend(figure, figure.axes[0].collections[: len(names)], markerscale=1.5)


def _scatter(
    ax: Axes, points: NDArray[np.float32], labels: NDArray[np.int16], classes: Sequence[str], size: int
) -> None:
    for label, name in enumerate(classes or ("no label",)):
        of_class = points[labels == label] if classes else points
        style: dict[str, Any] = {"color": color(label), "marker": marker(label), "s": size, "alpha": 0.8}
        ax.scatter(of_class[:, 0], of_class[:, 1], label=drawable(name), linewidths=0, **style)
    ax.set_xticks([])  # the axes of a t-SNE have no meaning
    ax.set_yticks([])
