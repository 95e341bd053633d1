"""What all self-supervised methods share: crops, kNN accuracy, measures of collapse, embeddings, t-SNE, explorer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cvexp import data, processes, progress
from cvexp.config import RunConfig, TaskConfig
from cvexp.console import print_line
from cvexp.data.augment.views import BatchView, CenterView
from cvexp.data.batches import PendingViews
from cvexp.data.crops import CropBatches, Crops
from cvexp.data.enlargement import crop_advice
from cvexp.data.examples import sample, sample_from_few_shards
from cvexp.data.kept import Source
from cvexp.data.loaders import make_loader
from cvexp.data.order import Groups, group_by_shard
from cvexp.errors import UserError
from cvexp.keys import choice, number
from cvexp.metrics import collapse, selection
from cvexp.metrics.knn import knn_top1
from cvexp.models.arguments import Needs
from cvexp.models.backbone import feature_dim
from cvexp.report import embedding, explorer
from cvexp.report.dense import MAX_IMAGES
from cvexp.tracking.data_record import record_data
from cvexp.tracking.run import ReadOnlyRun
from cvexp.training.dense import DensePictures
from cvexp.training.fit import fit
from cvexp.training.module import TrainingModule
from cvexp.weights.backbone import choose_arguments, create_backbone
from cvexp.weights.start import Start, open_start, record_start


@dataclass(kw_only=True)
class PretrainingConfig(TaskConfig):
    """Keys of every pretraining method; each method adds its own.

    Attributes:
        measures: The metrics of the validation besides the loss, without the prefix ``val/``.
    """

    role: ClassVar[str] = "pretraining"
    measures: ClassVar[tuple[str, ...]] = ("knn_top1", "feature_std", "feature_rank")

    eval_size: int = number(2, unit="pixels")
    knn_k: int = number(1)
    knn_bank: int = number(1)
    embed_every_n_epochs: int = number(1)
    embed_crops: int = number(1)
    dense_images: int = number(0, at_most=MAX_IMAGES, unit="pictures")
    monitor: str = choice(of=lambda owner: [selection.LAST, *(f"val/{name}" for name in ("loss", *owner.measures))])


class Backbone(NamedTuple):
    """A backbone, and the views that it takes.

    Attributes:
        backbone: The network, which returns a feature vector for each image.
        sizes: Side lengths of the images in pixels, by the configuration key that sets them.
    """

    backbone: nn.Module
    sizes: dict[str, int]


class Pretraining(TrainingModule):
    """Trains an encoder on views of object crops, and measures its features on whole crops.

    A method defines the sizes of its images, its views, its networks, its loss, and what its validation measures.
    Shapes: v views, b images, n crops, d features.

    Attributes:
        sizes: Side lengths of the images in pixels, by the configuration key that sets them.
        features: Features of the validation crops (n, d).
        layout: The latest t-SNE, (n, 2).
    """

    validation_parts = ("", "training crops for kNN")

    def build(self, start: Start) -> None:
        backbone, self.sizes = self.build_backbone(self.config, start)
        self.layout: NDArray[np.float32] | None = None
        self.dense = DensePictures(self.splits.val, self.task.dense_images, self.task.eval_size)
        self.make_networks(backbone, feature_dim(backbone, self.task.eval_size))

    @property
    def task(self) -> PretrainingConfig:
        assert isinstance(self.config.task, PretrainingConfig)
        return self.config.task

    @property
    def num_samples(self) -> int:
        return len(self.splits.train)

    @property
    def encoder(self) -> nn.Module:
        """The network whose features are measured, and from which other runs start."""
        return self.get_submodule(self.encoder_name)

    # What a method defines

    @classmethod
    @abstractmethod
    def choose_sizes(cls, config: RunConfig) -> list[dict[str, int]]:
        """List possible side lengths of all images in pixels, by configuration key, preferred ones first.

        The first sizes that the backbone accepts are used.
        """

    @abstractmethod
    def make_networks(self, backbone: nn.Module, num_features: int) -> None:
        """Create the networks around a backbone whose feature vectors have this length."""

    @abstractmethod
    def views(self) -> list[BatchView]:
        """Return the random views of each crop."""

    @abstractmethod
    def crop_resolution(self) -> float:
        """Return the side length in pixels at which even the smallest part that a view shows is not upsampled."""

    @abstractmethod
    def evaluate(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Compute the `loss` of a validation batch, and other means over its images, without waiting for the device."""

    def summarize(self, means: dict[str, Tensor]) -> dict[str, float]:
        """Turn the means over all validation images into further measures."""
        return {}

    def collapse_warnings(self, measures: dict[str, float]) -> list[str]:
        """Return reasons to suspect a collapse that are specific to this method."""
        return []

    @abstractmethod
    def describe_collapse(self) -> str:
        """Describe the losses that indicate a collapse of this method, for the report."""

    # Backbone

    @classmethod
    def build_backbone(cls, config: RunConfig, start: Start) -> Backbone:
        """Create the backbone. The choice of sizes and arguments depends on the configuration alone.

        Raises:
            UserError: if the backbone can't take the views, or the weights don't fit.
        """
        refusals = []
        for sizes in cls.choose_sizes(config):
            try:
                arguments = choose_arguments(config.backbone, Needs(sizes))
            except UserError as error:
                refusals.append(error)
            else:
                return Backbone(create_backbone(config.backbone, arguments, start), sizes)
        raise refusals[0]

    # Data

    def sources(self) -> list[Source]:
        return [Crops(index, self.crop_resolution()) for index in (self.splits.train, self.splits.val)]

    def shards(self) -> Groups | None:
        train = self.splits.train
        if (members := train.catalog.members) is None:
            return None
        return group_by_shard(members.shard[train.image], len(members.shards), members.shuffle_shards)

    def train_dataloader(self) -> DataLoader[Any]:
        crops = CropBatches(self.splits.train, self.images[0], self.views(), self.config.seed, self.draws_on_device)
        return make_loader(crops, self.batches, self.config.loader)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return loaders of the validation crops, in a plain view and in random ones, and of the kNN bank."""
        plain, seed = CenterView(self.task.eval_size), self.config.seed
        val = CropBatches(self.splits.val, self.images[1], [plain, *self.views()], seed, self.draws_on_device)
        bank = CropBatches(self.splits.train, self.images[0], [plain], seed, self.draws_on_device)
        chosen = sample_from_few_shards(self.splits.train, self.task.knn_bank)
        self._evaluated = [self.fixed_batches(positions) for positions in (list(range(len(val))), chosen)]
        loaders = zip((val, bank), self._evaluated, strict=True)
        return [make_loader(crops, keys, self.config.loader) for crops, keys in loaders]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[list[Tensor], Tensor]:
        """Make the views on the device, if the loader did not, and normalize them."""
        views, labels = batch
        if isinstance(views, PendingViews):
            views = views.make()
        return [self.normalize(view) for view in views], labels

    # Validation

    def on_validation_epoch_start(self) -> None:
        # Lists with an entry for each batch, so that those of all processes can be put in order.
        self._means: list[dict[str, Tensor]] = []
        self._features: list[list[Tensor]] = [[], []]
        self._labels: list[list[Tensor]] = [[], []]

    def validation_step(self, batch: tuple[list[Tensor], Tensor], batch_idx: int, dataloader_idx: int) -> None:
        if self._evaluated[dataloader_idx].batch_number(batch_idx) is None:
            return
        (plain, *views), labels = batch
        self._features[dataloader_idx].append(self.encoder(plain).float())
        self._labels[dataloader_idx].append(labels)
        if views:
            share = len(labels) / len(self.splits.val)
            self._means.append({name: share * mean for name, mean in self.evaluate(views).items()})

    def log_scores(self) -> None:
        means = self._sum_means()
        loss = float(means.pop("loss"))
        self.check_loss(loss)
        features, bank = (torch.cat(processes.gather_in_order(values, self.device)) for values in self._features)
        self.features = features
        labels, bank_labels = (torch.cat(processes.gather_in_order(values, self.device)) for values in self._labels)
        num_classes = len(self.splits.val.classes)
        measures = {"feature_std": collapse.feature_std(features), "feature_rank": collapse.effective_rank(features)}
        measures = {**self.summarize(means), **measures}
        if num_classes:
            accuracy = knn_top1(bank, bank_labels, features, labels, num_classes, self.task.knn_k)
            measures = {"knn_top1": accuracy, **measures}
        self.log_validation({"loss": loss, **measures})
        if self.global_step > 0:  # an untrained network looks collapsed
            warnings = [*self.collapse_warnings(measures), *collapse.feature_warnings(measures, features.shape[1])]
            if warnings:
                self.warn(f"collapse: {'; '.join(warnings)}")
            elif processes.rank() == 0 and self.sink.tags().get("warning"):  # it has recovered
                self.sink.set_tag("warning", "")

    def _sum_means(self) -> dict[str, Tensor]:
        """Sum the weighted means of the batches of all processes, in the order in which one process would do it."""
        parts = processes.gather_in_order(self._means, self.device)
        return {name: sum((part[name] for part in parts[1:]), parts[0][name]) for name in parts[0]}

    def log_pictures(self) -> None:
        is_due = self.global_step == self.total_steps or self.epochs_done % self.task.embed_every_n_epochs == 0
        if is_due and processes.rank() == 0:
            chosen = sample(self.splits.val, self.task.embed_crops)
            self._embed(self.features[chosen].cpu().numpy(), chosen)
            self.dense.log(self.sink, self.encoder, self.normalize, self.epochs_done, self.global_step)

    def _embed(self, features: NDArray[np.float32], chosen: list[int]) -> None:
        """Record the features of some validation crops, and draw their t-SNE."""
        val, epoch = self.splits.val, self.epochs_done
        if len(features) >= embedding.MIN_CROPS:
            with progress.step(f"t-SNE of {len(features)} crops"):
                self.layout = embedding.compute_layout(features, self.layout)
        embedding.log_embedding(self.sink, val, chosen, features, self.layout, epoch)
        if self.layout is not None:
            self.sink.log_image("tsne", embedding.draw(self.layout, val, chosen, epoch), self.global_step)

    def extra_state(self) -> dict[str, Any]:
        # The next pictures follow from the last ones, even after an interruption.
        last = {"tsne": self.layout, "dense": self.dense.reference}
        return {key: torch.from_numpy(array) for key, array in last.items() if array is not None}

    def load_extra_state(self, state: Any) -> None:
        arrays = {key: state[key].numpy() for key in ("tsne", "dense") if key in state}
        self.layout, self.dense.reference = arrays.get("tsne"), arrays.get("dense")


def pretrain(method: type[Pretraining], config: RunConfig, run: ReadOnlyRun) -> float:
    """Pretrain with a method, record the results in `run`, and return what :func:`cvexp.training.fit.fit` returns."""
    task = config.task
    assert isinstance(task, PretrainingConfig)
    splits = data.load(config.dataset, "pretraining")
    if task.monitor == "val/knn_top1" and not splits.val.classes:
        raise UserError(
            f"task.monitor: got 'val/knn_top1', which needs labels, but {splits.val.place} has none; choose last"
        )
    record_data(run, config.dataset.name, splits)
    if config.dataset.fraction < 1:
        print_line("dataset.fraction does not apply: pretraining needs no labels, and uses all training images")
    start = open_start(config, run)
    module = method(config, splits, run, start)
    record_start(start, run, config.backbone.name)
    run.set_tag("collapse", module.describe_collapse())
    if config.resume is None and (advice := crop_advice(splits.train, module.sizes)):
        print_line(advice, style="bold yellow")
    best = fit(module, run, task.monitor)
    if processes.rank() == 0:
        explorer.log_explorer(run, splits.val, sample(splits.val, task.embed_crops))
    return best
