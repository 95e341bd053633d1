"""The results of runs for each scored image, from which studies compute intervals."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvexp.data.index import Index
from cvexp.metrics import iou
from cvexp.report.arrays import read_arrays
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


def read_probe(store: Store, run_id: str, index: Index) -> NDArray[np.int64]:
    """Read for each image of a split how many objects the linear probe classified correctly, and how many there are.

    Args:
        store: Where the probe is recorded.
        run_id: Its run.
        index: The scored split.

    Returns:
        (images, 2).

    Raises:
        UserError: if the predictions are missing, damaged, or those of other objects.
    """

    def read(path: Path) -> NDArray[np.int64]:
        saved = read_arrays(path)
        linear, labels, files = saved["linear"][0], saved["labels"], saved["images"]
        if not np.array_equal(labels, index.label) or files.tolist() != [index.catalog.file(i) for i in index.image]:
            raise ValueError("it is about other objects or labels")
        place, num_images = np.searchsorted(index.images, index.image), len(index.images)
        right = np.bincount(place[linear == labels], minlength=num_images)
        return np.stack([right, np.bincount(place, minlength=num_images)], axis=1)

    return store.read(run_id, "probe/predictions.npz", read)


def read_counts(store: Store, run_id: str, index: Index) -> iou.Counts:
    """Read the pixel counts that a segmentation run recorded for the images of a split.

    Raises:
        UserError: if they are missing, damaged, or those of other images.
    """

    def read(path: Path) -> iou.Counts:
        saved = read_arrays(path)
        counts, fingerprint = saved["counts"], str(saved["fingerprint"])
        if fingerprint != index.fingerprint():
            raise ValueError("it is about other images or labels")
        if counts.shape != (len(index.images), 1 + len(index.classes), 3) or counts.dtype.kind != "i":
            raise ValueError(f"its counts have the shape {counts.shape}")
        return np.asarray(counts, dtype=np.int64)

    return store.read(run_id, FILE, read)
