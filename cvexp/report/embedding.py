"""Embeddings of the validation crops over the epochs: as artifacts, and as t-SNE pictures that can be compared."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cvexp.data.index import Index
from cvexp.report.style import STYLE, color, marker
from cvexp.tracking import Run

FEWEST = 5  # crops of which a t-SNE says anything


def log_embedding(run: Run, index: Index, positions: list[int], features: NDArray[np.float32], epoch: int) -> None:
    """Save features as the artifact `embeddings/epoch-NNNN.npz`; epoch 0 is the untrained backbone.

    Args:
        index: Where the crops come from.
        positions: Which of its objects they are, n of them.
        features: (n, d).
        epoch: How many epochs were trained.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"epoch-{epoch:04d}.npz"
        np.savez_compressed(
            path,
            features=features,
            labels=index.label[positions],
            image=np.array([index.catalog.file(i) for i in index.image[positions]]),
            box=index.box[positions],
        )
        run.log_file(path, "embeddings")


def layout(features: NDArray[np.float32], previous: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The t-SNE of l2-normalised features, (n, d) to (n, 2); started from the previous epoch's layout.

    The start keeps clusters roughly where they were, so that pictures of consecutive epochs can be compared. It is
    shrunk, as t-SNE needs room to move points past each other (Kobak and Berens 2019).
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
    """A t-SNE layout, coloured by class."""
    labels = index.label[positions]
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 6), layout="constrained")
        axes = figure.subplots()
        for label, name in enumerate(index.classes or ("no label",)):
            own = points[labels == label] if index.classes else points
            look: dict[str, Any] = {"color": color(label), "marker": marker(label), "s": 22, "alpha": 0.8}
            axes.scatter(own[:, 0], own[:, 1], label=name, linewidths=0, **look)
        state = "untrained" if epoch == 0 else f"after epoch {epoch}"
        axes.set_title(f"t-SNE of {len(points)} validation crops, {state}")
        axes.set_xticks([])  # t-SNE's axes have no meaning
        axes.set_yticks([])
        if index.classes:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
