"""`task=neighbors`: what a pretrained network takes to be alike."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import MISSING
from PIL import Image, ImageOps

from cvexp import checkpoints, config, data
from cvexp.config import require, require_one_of
from cvexp.data import augment
from cvexp.data.crops import read_crop
from cvexp.data.images import read_image
from cvexp.data.index import Index
from cvexp.errors import UserError
from cvexp.finished import FinishedRun, embedded_epochs, find_run
from cvexp.metrics.knn import worse_than_untrained
from cvexp.metrics.neighbors import Neighbors, nearest_neighbors, precision_at_k
from cvexp.models.backbone import create_backbone
from cvexp.report import neighbors as report
from cvexp.report.console import print_line
from cvexp.report.embedding import Embedding, read_embedding
from cvexp.report.neighbors import Query
from cvexp.tasks import dino, training
from cvexp.tracking import Run


@dataclass(kw_only=True)
class Config(config.Task):
    works_on: ClassVar[str | None] = "run"
    k: int = MISSING
    queries: list[int] | None = MISSING
    queries_per_class: int = MISSING
    images: list[str] = MISSING
    epoch: int | None = MISSING

    def __post_init__(self) -> None:
        require(self.k >= 1, "task.k", self.k, "at least 1")
        require(self.queries_per_class >= 0, "task.queries_per_class", self.queries_per_class, "at least 0")


def run(config: config.Config, run: Run) -> None:
    """Leave a table, a picture and the precision of the neighbours in `run`.

    Raises:
        UserError: when there is no finished dino run, or it has no such epoch or query, or its data have changed.
    """
    task = config.task
    assert isinstance(task, Config)
    finished = find_run(run.client, config, ["dino"])
    run.set_tag("of_run", finished.id)
    epochs = embedded_epochs(run.client, finished.id)
    epoch = epochs[-1] if task.epoch is None else task.epoch
    require_one_of("task.epoch", str(epoch), map(str, epochs))
    warning = worse_features(finished, run, epoch, is_last=epoch == epochs[-1])
    if warning:
        print_line(warning, style="bold yellow")
    if task.images and epoch != epochs[-1]:
        raise UserError(f"task.images: only the network of the last epoch, {epochs[-1]}, is kept; leave out task.epoch")
    pictures = [_read(name) for name in task.images]
    embedding, untrained = (read_embedding(run.client, finished.id, number) for number in (epoch, epochs[0]))
    index, positions = embedded_crops(finished, embedding)
    own = np.arange(len(positions))

    if index.classes:
        found = [nearest_neighbors(one.features, one.features, task.k, own) for one in (embedding, untrained)]
        precisions = [precision_at_k(one.indices, embedding.labels, embedding.labels) for one in found]
        k = found[0].indices.shape[1]
        report.log_precision(run, index.classes, embedding.labels, precisions[0], precisions[1], k, epoch, warning)

    chosen = choose(task, embedding, index.classes)
    queries = [
        Query(f"{position}", int(embedding.labels[position]), read_crop(index, positions[position]))
        for position in chosen
    ]
    asked = nearest_neighbors(embedding.features, embedding.features[chosen], task.k, np.array(chosen, dtype=np.int64))
    if pictures:
        features = encode(finished, pictures, run, config)
        theirs = nearest_neighbors(embedding.features, features, task.k)
        k = min(asked.indices.shape[1], theirs.indices.shape[1])
        asked = Neighbors(
            np.concatenate([theirs.indices[:, :k], asked.indices[:, :k]]),
            np.concatenate([theirs.cosines[:, :k], asked.cosines[:, :k]]),
        )
        seen = [ImageOps.fit(picture, (min(picture.size),) * 2) for picture in pictures]
        queries = [Query(Path(n).name, -1, p) for n, p in zip(task.images, seen, strict=True)] + queries
    report.log_table(run, queries, asked, embedding, index.classes)
    crops = {int(i): read_crop(index, positions[i]) for i in np.unique(asked.indices)}
    for first in range(0, len(queries), report.ROWS):
        some = slice(first, first + report.ROWS)
        rows = Neighbors(asked.indices[some], asked.cosines[some])
        name = f"grid-{first // report.ROWS + 1}" if first else "grid"
        figure = report.draw(queries[some], rows, crops, embedding.labels, index.classes, epoch)
        run.log_figure(figure, f"neighbors/{name}.png")
    print_line(f"table and pictures: {run.client.get_run(run.id).info.artifact_uri}/neighbors")


def worse_features(finished: FinishedRun, run: Run, epoch: int, is_last: bool) -> str | None:
    """A warning where pretraining lowered the kNN accuracy, at the best epoch or at the one whose features are used."""
    accuracies = run.history_of(finished.id, "val/knn_top1")  # one before training, and one after each epoch
    if len(accuracies) <= epoch:
        return None
    used = "at the last epoch" if is_last else f"after epoch {epoch}"
    trained = {"at the best epoch": finished.metrics["best/knn_top1"], used: accuracies[epoch][1]}
    return worse_than_untrained(dict(accuracies).get(0), trained)


def _read(name: str) -> Image.Image:
    """The user's picture."""
    path = Path(name)
    if not path.is_file():
        raise UserError(f"task.images: {name} is not a file")
    try:
        return read_image(path)
    except UserError as error:
        raise UserError(f"task.images: {error}") from error


def embedded_crops(finished: FinishedRun, embedding: Embedding) -> tuple[Index, list[int]]:
    """The validation objects of a dino run's embedding, as an index and positions in it.

    Raises:
        UserError: when the data are no longer those of the run.
    """
    index = data.load(finished.config.dataset, "pretraining", needs_training=False).val
    assert isinstance(finished.config.task, dino.Config)
    if (recorded := finished.tags.get("data.val.fingerprint")) is None:
        raise UserError(f"run: {finished.id} did not record its data, so its crops are unknown; pretrain again")
    if index.fingerprint() != recorded:
        raise UserError(
            f"dataset: the validation images or objects in {index.root} have changed since the run {finished.id}; put "
            "the old ones back, or pretrain again"
        )
    return index, dino.sample(index, finished.config.task.embed_crops)


def choose(task: Config, embedding: Embedding, classes: Sequence[str]) -> list[int]:
    """The crops that are asked: those that the configuration names, or the first of each class, or the first of all.

    Raises:
        UserError: for one that is not there.
    """
    count = len(embedding.labels)
    if task.queries is not None:
        for position in task.queries:
            require(0 <= position < count, "task.queries", position, f"from 0 to {count - 1}, a place in the embedding")
        return task.queries
    if not classes:
        return list(range(count))[: report.ROWS * task.queries_per_class]
    groups = [np.flatnonzero(embedding.labels == label) for label in range(len(classes))]
    return [int(position) for group in groups for position in group[: task.queries_per_class]]


@torch.inference_mode()
def encode(
    finished: FinishedRun, pictures: Sequence[Image.Image], run: Run, config: config.Config
) -> NDArray[np.float32]:
    """The features of any pictures, by the teacher as it was at the run's end; of each its middle square."""
    settings = finished.config
    assert isinstance(settings.task, dino.Config)
    backbone = create_backbone(settings.backbone.name, **dino.fit_views(settings).arguments)
    with tempfile.TemporaryDirectory() as temporary:
        uri = f"runs:/{finished.id}/checkpoints/last.ckpt"
        path = checkpoints.download(uri, run.client, Path(temporary), key="run")
        state = checkpoints.read_checkpoint(path).tensors
    prefix = "teacher.backbone."
    backbone.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    device = training.device(config.trainer)
    backbone = backbone.to(device).eval()
    view = augment.plain_view(settings.task.eval_size)
    images = torch.stack([view(torch.from_numpy(np.array(picture)).permute(2, 0, 1)) for picture in pictures])
    normal = augment.normalize(images.to(device), settings.dataset.mean, settings.dataset.std)
    features: NDArray[np.float32] = torch.cat([backbone(some).float().cpu() for some in normal.split(64)]).numpy()
    return features
