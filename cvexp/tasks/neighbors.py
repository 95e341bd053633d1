"""`task=neighbors`: which crops a pretrained network considers similar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from omegaconf import MISSING
from PIL import Image, ImageOps

from cvexp import data
from cvexp.config import RunConfig, TaskConfig
from cvexp.console import print_line
from cvexp.data.crops import Crops
from cvexp.data.examples import sample
from cvexp.data.files.images import read_image
from cvexp.data.index import Index
from cvexp.errors import UserError
from cvexp.inference.networks import choose_device, load_embedder
from cvexp.keys import number, require, require_one_of
from cvexp.metrics.knn import worse_than_untrained
from cvexp.metrics.neighbors import Neighbors, nearest_neighbors, precision_at_k
from cvexp.report import neighbors as report
from cvexp.report.embedding import Embedding, read_embedding
from cvexp.report.neighbors import Query
from cvexp.tracking.finished import FinishedRun, embedded_epochs, find_trained_run
from cvexp.tracking.run import ReadOnlyRun


@dataclass(kw_only=True)
class Config(TaskConfig):
    works_on: ClassVar[str | None] = "run"

    k: int = number(1)
    queries: list[int] | None = MISSING
    queries_per_class: int = number(0)
    images: list[str] = MISSING
    epoch: int | None = MISSING


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Record a table, pictures and the precision of the neighbors in `run`.

    Raises:
        UserError: if there is no finished pretraining run, it has no such epoch or query, a single validation crop, or
            its data have changed.
    """
    task = config.task
    assert isinstance(task, Config)
    finished = find_trained_run(run.store, config, "pretraining")
    run.set_tag("of_run", finished.id)
    epochs = embedded_epochs(run.store, finished.id)
    epoch = epochs[-1] if task.epoch is None else task.epoch
    require_one_of("task.epoch", str(epoch), map(str, epochs))
    warning = worse_features(finished, epoch, is_last=epoch == epochs[-1])
    if warning:
        print_line(warning, style="bold yellow")
    if task.images and epoch != epochs[-1]:
        raise UserError(f"task.images: only the network of the last epoch, {epochs[-1]}, is kept; leave out task.epoch")
    pictures = [read_picture(name) for name in task.images]
    embedding, untrained = (read_embedding(run.store, finished.id, number) for number in (epoch, epochs[0]))
    if len(embedding.features) < 2:
        raise UserError(
            f"run: the run {finished.id} has a single validation crop, which has no neighbors; pretrain with more "
            "validation images, for example with a larger dataset.val_fraction"
        )
    index = validation_data(finished)
    positions = sample(index, finished.config.task.embed_crops)  # type: ignore[attr-defined]
    if index.classes:
        _log_precision(run, task.k, index.classes, embedding, untrained, epoch, warning)

    chosen = choose_queries(task, embedding, index.classes)
    crops = Crops(index)
    queries = [Query(f"{i}", int(embedding.labels[i]), crops.picture(positions[i])) for i in chosen]
    neighbors = nearest_neighbors(
        embedding.features, embedding.features[chosen], task.k, np.array(chosen, dtype=np.int64)
    )
    if pictures:
        features = load_embedder(finished, choose_device(config.trainer)).embed(pictures)
        neighbors = _joined(nearest_neighbors(embedding.features, features, task.k), neighbors)
        squares = [ImageOps.fit(picture, (min(picture.size),) * 2) for picture in pictures]
        queries = [Query(Path(name).name, -1, p) for name, p in zip(task.images, squares, strict=True)] + queries
    report.log_table(run, queries, neighbors, embedding, index.classes)
    shown = {int(i): crops.picture(positions[i]) for i in np.unique(neighbors.indices)}
    report.log_grids(run, queries, neighbors, shown, embedding.labels, index.classes, epoch)
    print_line(f"table and pictures: {run.artifacts}/neighbors")


def _log_precision(
    run: ReadOnlyRun,
    k: int,
    classes: Sequence[str],
    embedding: Embedding,
    untrained: Embedding,
    epoch: int,
    warning: str | None,
) -> None:
    own = np.arange(len(embedding.labels))
    neighbors = [nearest_neighbors(e.features, e.features, k, own) for e in (embedding, untrained)]
    precisions = [precision_at_k(n.indices, embedding.labels, embedding.labels) for n in neighbors]
    k = neighbors[0].indices.shape[1]
    report.log_precision(run, classes, embedding.labels, precisions[0], precisions[1], k, epoch, warning)


def _joined(first: Neighbors, second: Neighbors) -> Neighbors:
    """Concatenate the neighbors of two groups of queries, cut to the same number per query."""
    k = min(first.indices.shape[1], second.indices.shape[1])
    return Neighbors(
        np.concatenate([first.indices[:, :k], second.indices[:, :k]]),
        np.concatenate([first.cosines[:, :k], second.cosines[:, :k]]),
    )


def worse_features(finished: FinishedRun, epoch: int, is_last: bool) -> str | None:
    """Return a warning if pretraining lowered the kNN accuracy, at the selected epoch or at the epoch in use."""
    accuracies = finished.history("val/knn_top1")  # one before training, and one after each epoch
    if len(accuracies) <= epoch:
        return None
    used = "at the last epoch" if is_last else f"after epoch {epoch}"
    trained = {"at the selected epoch": finished.metrics["best/knn_top1"], used: accuracies[epoch][1]}
    return worse_than_untrained(dict(accuracies).get(0), trained, finished.num_validation_crops)


def read_picture(name: str) -> Image.Image:
    """Read an image file that `task.images` names.

    Raises:
        UserError: if it is missing or broken.
    """
    path = Path(name)
    if not path.is_file():
        raise UserError(f"task.images: {name} is not a file")
    try:
        return read_image(path)
    except UserError as error:
        raise UserError(f"task.images: {error}") from error


def validation_data(finished: FinishedRun) -> Index:
    """Return the validation data of a pretraining run.

    Raises:
        UserError: if they are no longer those of the run.
    """
    index = data.load(finished.config.dataset, "pretraining", needs_training=False).val
    if (recorded := finished.tags.get("data.val.fingerprint")) is None:
        raise UserError(f"run: {finished.id} did not record its data, so its crops are unknown; pretrain again")
    if index.fingerprint() != recorded:
        raise UserError(
            f"dataset: the validation images or objects in {index.place} have changed since the run {finished.id}; "
            "restore the old ones, or pretrain again"
        )
    return index


def choose_queries(task: Config, embedding: Embedding, classes: Sequence[str]) -> list[int]:
    """Return the configured queries, or else the first crops of each class, or of all crops if there are no labels.

    Raises:
        UserError: if a named query does not exist.
    """
    num_crops = len(embedding.labels)
    if task.queries is not None:
        for position in task.queries:
            needed = f"from 0 to {num_crops - 1}, a position in the embedding"
            require(0 <= position < num_crops, "task.queries", position, needed)
        return task.queries
    if not classes:
        return list(range(num_crops))[: report.NUM_ROWS * task.queries_per_class]
    groups = [np.flatnonzero(embedding.labels == label) for label in range(len(classes))]
    return [int(position) for group in groups for position in group[: task.queries_per_class]]
