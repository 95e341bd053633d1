"""`task=embed`: the features of the user's own images, as a table and as a page to explore."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import MISSING

from cvexp import progress
from cvexp.config import LoaderConfig, RunConfig, TaskConfig
from cvexp.console import print_line
from cvexp.data.files.listing import as_text, list_images
from cvexp.errors import UserError, opening
from cvexp.inference.embedder import Embedder
from cvexp.inference.feature_table import copy_table, new_table
from cvexp.inference.networks import choose_device, load_embedder
from cvexp.inference.reading import read_pictures
from cvexp.keys import choice, number, require
from cvexp.report.image_explorer import ImageExplorer
from cvexp.report.left_out import LeftOut
from cvexp.tracking.finished import FinishedRun, find_trained_run
from cvexp.tracking.run import ReadOnlyRun

FOLDER = "embeddings"  # of the artifacts


@dataclass(kw_only=True)
class Config(TaskConfig):
    works_on: ClassVar[str | None] = "run"

    images: list[str] = MISSING
    out: str | None = MISSING
    checkpoint: str = choice("best", "last")
    batch_size: int = number(1)
    max_explorer: int = number(0)

    def __post_init__(self) -> None:
        fits = self.out is None or Path(self.out).suffix in (".parquet", ".npz")
        require(fits, "task.out", self.out, "null, or the name of a file that ends in .parquet or .npz")


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Record `embeddings/features.parquet` and `explorer.html`, and write the file that `task.out` names.

    Raises:
        Incomplete: after everything else was written, if some images can't be read.
        UserError: if there are no images or there is no finished pretraining run, or `task.out` can't be written.
    """
    task = config.task
    assert isinstance(task, Config)
    files = list_images(task.images, "task.images")
    out = _new_file(task.out)
    finished = find_trained_run(run.store, config, "pretraining")
    run.set_tag("of_run", finished.id)
    embedder = load_embedder(finished, choose_device(config.trainer), task.checkpoint)

    left_out, explorer = LeftOut("task.images"), ImageExplorer(files, task.max_explorer)
    path = run.folder / FOLDER / "features.parquet"
    path.parent.mkdir(exist_ok=True)
    with new_table(path, embedder.num_features(), _origin(finished, embedder, task.checkpoint)) as table:
        for batch in embed_files(files, embedder, task.batch_size, config.loader, left_out):
            table.write([as_text(name) for name in batch.files], batch.sizes, batch.features)
            explorer.add(batch.files, batch.views, batch.features)
    if table.num_rows:
        run.log_file(path, FOLDER)
        print_line(f"features of {table.num_rows} images: {run.artifacts}/{FOLDER}/{path.name}")
        if out is not None:
            copy_table(path, out)
            print_line(f"the same: {out}")
        explorer.log(run)
    left_out.finish(run, len(files), FOLDER)


class Embedded(NamedTuple):
    """The images of a batch.

    Attributes:
        files: The b files.
        sizes: Their widths and heights.
        views: What the network saw of them (b, 3, s, s) uint8.
        features: (b, d).
    """

    files: Sequence[Path]
    sizes: Sequence[tuple[int, int]]
    views: NDArray[np.uint8]
    features: NDArray[np.float32]


def embed_files(
    files: Sequence[Path], embedder: Embedder, batch_size: int, config: LoaderConfig, left_out: LeftOut
) -> Iterator[Embedded]:
    """Compute the features of image files in order, one batch after another.

    Args:
        files: The image files.
        embedder: The network.
        batch_size: Number of images in a batch.
        config: The number of worker processes that read images.
        left_out: Gets the images that can't be read.
    """
    paths: list[Path] = []
    sizes: list[tuple[int, int]] = []
    views: list[NDArray[np.uint8]] = []
    pictures = progress.track(read_pictures(files, config, embedder.view), "embedding", len(files), "images")
    for num_read, picture in enumerate(pictures, 1):
        if picture.pixels is None:
            left_out.add(picture.path, picture.reason)
        else:
            paths.append(picture.path)
            sizes.append((picture.width, picture.height))
            views.append(picture.pixels.numpy().copy())  # memory shared with a worker takes a file descriptor
        if len(views) == batch_size or (views and num_read == len(files)):
            batch = np.stack(views)
            yield Embedded(paths, sizes, batch, embedder.encode(torch.from_numpy(batch)))
            paths, sizes, views = [], [], []


def _new_file(name: str | None) -> Path | None:
    """Return the path of a file that does not exist yet, whose folder is created.

    Raises:
        UserError: if the file exists, or its folder can't be created.
    """
    if name is None:
        return None
    path = Path(name)
    with opening("task.out"):
        if path.exists():
            raise UserError(f"task.out: {name} exists already; choose another name, or remove the file")
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _origin(finished: FinishedRun, embedder: Embedder, checkpoint: str) -> dict[str, Any]:
    """Say where features come from, for the metadata of their table."""
    return {
        "run": finished.id,
        "checkpoint": checkpoint,
        "task": finished.task,
        "backbone": finished.config.backbone.name,
        "eval_size": embedder.view.size,
        "versions": {name: version(name) for name in ("cvexp", "torch", "timm", "pillow")},
    }
