"""The embedding explorer for the user's own images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvexp import progress
from cvexp.console import print_line
from cvexp.data.files.listing import as_text
from cvexp.report.embedding import MIN_CROPS, Embedding, compute_layout
from cvexp.report.explorer import TOOLTIP_SIDE, Words, page
from cvexp.tracking.run import ReadOnlyRun

MAX_FOLDERS = 20  # more could not be distinguished by color


class _Shown(NamedTuple):
    path: Path
    picture: Image.Image
    features: NDArray[np.float32]


class ImageExplorer:
    """Keeps some images with their features, and makes a page of them.

    Args:
        files: All image files.
        max_shown: Maximum number of images on the page; 0 for no page. If there are more, a random sample is shown,
            which is the same for the same number of files.
    """

    def __init__(self, files: Sequence[Path], max_shown: int) -> None:
        chosen = np.random.default_rng(0).permutation(len(files))[:max_shown]
        self.chosen = {files[i] for i in chosen}
        self.num_files, self.max_shown = len(files), max_shown
        self.shown: list[_Shown] = []

    def add(self, files: Sequence[Path], views: NDArray[np.uint8], features: NDArray[np.float32]) -> None:
        """Keep those of b images that are shown.

        Args:
            files: The image files.
            views: What the network saw of them (b, 3, s, s).
            features: (b, d).
        """
        for path, view, row in zip(files, views, features, strict=True):
            if path in self.chosen:
                picture = Image.fromarray(view.transpose(1, 2, 0))
                picture.thumbnail((TOOLTIP_SIDE, TOOLTIP_SIDE))
                self.shown.append(_Shown(path, picture, row))

    def log(self, run: ReadOnlyRun) -> None:
        """Record `explorer.html`, unless there are too few images."""
        if not self.max_shown:
            return
        count = len(self.shown)
        if count < MIN_CROPS:
            print_line(f"no explorer: it needs at least {MIN_CROPS} images")
            return
        paths, pictures, rows = zip(*self.shown, strict=True)
        features = np.stack(rows)
        classes, labels = folders_of(paths)
        names, boxes = np.array([as_text(path) for path in paths]), np.zeros((count, 4), np.float32)
        with progress.step(f"t-SNE of {count} images"):
            embedding = Embedding(features, labels, names, boxes, compute_layout(features, None))
        images = "images" if count == self.num_files else f"of {self.num_files} images"
        words = Words("image", images, "the folders of the images", "Folders")
        run.log_text(page({0: embedding}, pictures, classes, words), "explorer.html")
        print_line(f"explorer: {run.artifacts}/explorer.html")


def folders_of(paths: Sequence[Path]) -> tuple[list[str], NDArray[np.int16]]:
    """Return the names of the folders in which images lie, and the number of each image's folder.

    Returns:
        The names, and the numbers (n,). If all images lie in one folder, or in too many, there are no names, and all
        numbers are -1.
    """
    folders = [as_text(Path(os.path.normpath(path.absolute())).parent.name) for path in paths]
    names, numbers = np.unique(folders, return_inverse=True)
    if not 1 < len(names) <= MAX_FOLDERS:
        return [], np.full(len(paths), -1, np.int16)
    return names.tolist(), numbers.astype(np.int16)
