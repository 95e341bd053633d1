"""Whether the network of one run is better than that of another, on images that neither was trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cvexp import data
from cvexp.config import RunConfig
from cvexp.data.disjoint import NAMES
from cvexp.data.index import Index, Splits
from cvexp.errors import UserError
from cvexp.inference.networks import choose_device, load_segmenter
from cvexp.metrics.bootstrap import MIN_IMAGES, Interval, paired_difference
from cvexp.metrics.iou import mean_iou
from cvexp.metrics.knn import knn_predict
from cvexp.metrics.probing import bootstrap, bounds, stratified_subset
from cvexp.probing.dataset import load as load_labeled
from cvexp.probing.features import compute_features
from cvexp.probing.networks import from_run
from cvexp.tracking.finished import FinishedRun


class Contest(NamedTuple):
    """The scores of two networks on the same images.

    Attributes:
        score: The name of the score.
        split: The name of the split, ``"test"``, or ``"val"`` if there is no test split.
        num_images: The number of images.
        new, current: The scores.
        low, high: The ends of the interval of their difference, new minus current.
        confidence: Its confidence level.
    """

    score: str
    split: str
    num_images: int
    new: float
    current: float
    low: float
    high: float
    confidence: float

    @property
    def is_better(self) -> bool:
        """Whether the new network is better beyond chance."""
        return self.num_images >= MIN_IMAGES and self.low > 0

    def __str__(self) -> str:
        few = f"; at least {MIN_IMAGES} are needed" if self.num_images < MIN_IMAGES else ""
        return (
            f"{self.score} {self.new:.4f} instead of {self.current:.4f}, difference {self.new - self.current:+.4f} "
            f"({self.confidence:.0%} interval {self.low:+.4f} to {self.high:+.4f}) on {self.num_images} "
            f"{NAMES[self.split]} images{few}"
        )


class Rules(NamedTuple):
    """How networks are compared.

    Attributes:
        samples: Number of bootstrap samples of the images.
        confidence: Confidence level of the interval.
        knn_k: Number of neighbors that vote.
        knn_bank: Maximum number of training crops searched for neighbors.
    """

    samples: int
    confidence: float
    knn_k: int
    knn_bank: int


def compare(new: FinishedRun, current: FinishedRun, rules: Rules, config: RunConfig) -> Contest:
    """Score the best checkpoints of two runs of the same role and data: segmenters by mIoU, encoders by kNN.

    Args:
        new, current: The runs.
        rules: How they are compared.
        config: The configuration of this process, which names the device and the loader.

    Raises:
        UserError: if the data have changed, have no labels, or are not there any more; or a checkpoint isn't.
    """
    segments = new.role == "segmentation"
    score, values, interval, scored = (_segmenters if segments else _encoders)(new, current, rules, config)
    return Contest(
        score=score,
        split=scored.split,
        num_images=len(np.unique(scored.images if segments else scored.image)),
        new=values[0],
        current=values[1],
        low=interval[0],
        high=interval[1],
        confidence=rules.confidence,
    )


Outcome = tuple[str, tuple[float, float], tuple[float, float], Index]  # score, values, interval, images


def _segmenters(new: FinishedRun, current: FinishedRun, rules: Rules, config: RunConfig) -> Outcome:
    """Compare networks by their mIoU."""
    scored = data.load(new.config.dataset, "segmentation", needs_training=False).scored
    _check_unchanged(new, scored)
    device = choose_device(config.trainer)
    first, second = (load_segmenter(run, device).evaluate(scored)[:, 1:] for run in (new, current))
    interval: Interval = paired_difference(first[None], second[None], rules.samples, rules.confidence)
    values = (float(mean_iou(first.sum(0))), float(mean_iou(second.sum(0))))
    return "mIoU", values, (interval.low, interval.high), scored


def _encoders(new: FinishedRun, current: FinishedRun, rules: Rules, config: RunConfig) -> Outcome:
    """Compare encoders by the share of crops that the nearest neighbors of their features classify correctly."""
    splits = load_labeled(new.config.dataset)
    scored = splits.scored
    _check_unchanged(new, scored)
    first, second = (_predict(run, splits, rules, config) for run in (new, current))
    labels, images = scored.label.astype(np.int64), scored.image.astype(np.int64)
    resampled = bootstrap(np.stack([first, second]), labels, images, rules.samples)
    top1 = resampled.samples[:, :, 0]
    values = (float(resampled.values[0, 0]), float(resampled.values[1, 0]))
    return "kNN top-1 accuracy", values, bounds(top1[:, 0] - top1[:, 1], rules.confidence), scored


def _predict(run: FinishedRun, splits: Splits, rules: Rules, config: RunConfig) -> NDArray[np.int64]:
    """Classify the scored crops by the features of a run's encoder, (n,)."""
    network, device = from_run(run, "best", None).network, choose_device(config.trainer)
    for module in (network.module, network.normalize):
        assert module is not None
        module.to(device).to(memory_format=torch.channels_last).eval()
    train, scored = (
        compute_features([network], index, config.loader, device)[0] for index in (splits.train, splits.scored)
    )
    labels = splits.train.label.astype(np.int64)
    bank = stratified_subset(labels, rules.knn_bank)
    bank_labels = torch.from_numpy(labels[bank])
    predicted: NDArray[np.int64] = knn_predict(
        train[bank], bank_labels, scored, len(splits.train.classes), rules.knn_k
    ).numpy()
    return predicted


def _check_unchanged(run: FinishedRun, scored: Index) -> None:
    """Raise a UserError unless the scored images are those that a run recorded."""
    if scored.fingerprint() != run.tags.get(f"data.{scored.split}.fingerprint"):
        raise UserError(
            f"dataset: the {NAMES[scored.split]} images or labels in {scored.place} have changed since the run {run.id}"
        )
