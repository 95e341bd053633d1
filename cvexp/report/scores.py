"""The pixel counts of the selected checkpoint on the images that are scored, from which studies compute intervals."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from cvexp.data.index import Index
from cvexp.metrics import iou
from cvexp.tracking.sink import Sink
from cvexp.tracking.store import Store

FILE = "scores/counts.npz"


def log_scores(sink: Sink, counts: iou.Counts, index: Index, step: int) -> None:
    """Record the pixel counts of each image, and the scores as `test/NAME` if the images are those of the test split.

    Args:
        sink: Where to record them.
        counts: (images, 1 + c, 3), see `cvexp.metrics.iou`.
        index: The images.
        step: Number of optimizer steps of the training.
    """
    if index.split == "test":
        scores = iou.summarize(counts, index.classes)
        sink.log_metrics({f"test/{name}": score for name, score in scores.items()}, step)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.npz"
        np.savez_compressed(path, counts=counts, split=index.split, fingerprint=index.fingerprint())
        sink.log_file(path, "scores")


def read_counts(store: Store, run_id: str, index: Index) -> iou.Counts:
    """Read the pixel counts that a segmentation run recorded for the images of a split.

    Raises:
        UserError: if they are missing, damaged, or those of other images.
    """

    def read(path: Path) -> iou.Counts:
        with np.load(path) as saved:
            counts, fingerprint = saved["counts"], str(saved["fingerprint"])
        if fingerprint != index.fingerprint():
            raise ValueError("it is about other images or labels")
        if counts.shape != (len(index.images), 1 + len(index.classes), 3) or counts.dtype.kind != "i":
            raise ValueError(f"its counts have the shape {counts.shape}")
        return np.asarray(counts, dtype=np.int64)

    return store.read(run_id, FILE, read)
