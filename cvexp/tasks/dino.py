"""`task=dino`: self-supervised pretraining on object crops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from omegaconf import MISSING
from torch import Tensor
from torch.utils.data import DataLoader

from cvexp import checkpoints, config, data
from cvexp.config import require
from cvexp.data import augment
from cvexp.data.crops import Crops, mix
from cvexp.data.enlargement import crop_advice
from cvexp.data.index import Index, Splits
from cvexp.data.loaders import FixedBatches, make_loader
from cvexp.errors import UserError
from cvexp.metrics import collapse
from cvexp.metrics.knn import knn_top1
from cvexp.models.backbone import feature_dim
from cvexp.models.dino import DINOHead, DINOLoss, DINONetwork, make_teacher, update_teacher
from cvexp.models.probe import Needs, choose_arguments
from cvexp.models.schedules import cosine, warmup_constant
from cvexp.report import embedding, explorer
from cvexp.report.console import print_line
from cvexp.tasks import training
from cvexp.tracking import Run


@dataclass(kw_only=True)
class Config(config.Task):
    global_crops: int = MISSING
    global_size: int = MISSING
    global_scale: list[float] = MISSING
    local_crops: int = MISSING
    local_size: int | None = MISSING
    local_scale: list[float] = MISSING
    flip: float = MISSING
    jitter: list[float] = MISSING
    jitter_probability: float = MISSING
    gray: float = MISSING
    blur: list[float] = MISSING
    solarize: list[float] = MISSING
    eval_size: int = MISSING
    hidden_dim: int = MISSING
    bottleneck_dim: int = MISSING
    out_dim: int = MISSING
    batch_norm: bool = MISSING
    freeze_last_layer: float = MISSING
    student_temperature: float = MISSING
    warmup_teacher_temperature: float = MISSING
    teacher_temperature: float = MISSING
    teacher_temperature_warmup: float = MISSING
    center_momentum: float = MISSING
    teacher_momentum: float = MISSING
    final_teacher_momentum: float = MISSING
    knn_k: int = MISSING
    knn_bank: int = MISSING
    embed_every_n_epochs: int = MISSING
    embed_crops: int = MISSING
    monitor: str = MISSING

    def __post_init__(self) -> None:
        require(self.global_crops >= 1, "task.global_crops", self.global_crops, "at least 1")
        require(
            self.global_crops + self.local_crops >= 2 and self.local_crops >= 0,
            "task.local_crops",
            self.local_crops,
            "such that there are at least two views in all, global and local",
        )
        for key in ("global_size", "eval_size"):
            require(getattr(self, key) >= 2, f"task.{key}", getattr(self, key), "at least 2 (pixels)")
        size = self.local_size
        require(size is None or size >= 2, "task.local_size", size, "at least 2 (pixels), or null")
        for key in ("hidden_dim", "bottleneck_dim", "knn_k", "knn_bank", "embed_crops"):
            require(getattr(self, key) >= 1, f"task.{key}", getattr(self, key), "at least 1")
        require(self.out_dim >= 2, "task.out_dim", self.out_dim, "at least 2")
        require(self.embed_every_n_epochs >= 1, "task.embed_every_n_epochs", self.embed_every_n_epochs, "at least 1")
        for key in ("global_scale", "local_scale"):
            low_high = getattr(self, key)
            fits = len(low_high) == 2 and 0 < low_high[0] <= low_high[1] <= 1
            require(fits, f"task.{key}", low_high, "two shares of the area, 0 < least <= largest <= 1")
        for key in ("flip", "jitter_probability", "gray", "freeze_last_layer", "teacher_temperature_warmup"):
            require(0 <= getattr(self, key) <= 1, f"task.{key}", getattr(self, key), "from 0 to 1")
        for key in ("center_momentum", "teacher_momentum", "final_teacher_momentum"):
            require(0 <= getattr(self, key) <= 1, f"task.{key}", getattr(self, key), "from 0 to 1")
        for key in ("student_temperature", "warmup_teacher_temperature", "teacher_temperature"):
            require(getattr(self, key) > 0, f"task.{key}", getattr(self, key), "positive")
        for key in ("blur", "solarize"):
            probabilities = getattr(self, key)
            fits = len(probabilities) == 3 and all(0 <= p <= 1 for p in probabilities)
            require(fits, f"task.{key}", probabilities, "three probabilities: first global, other global, local views")
        fits = len(self.jitter) == 4 and min(self.jitter) >= 0 and self.jitter[3] <= 0.5
        require(fits, "task.jitter", self.jitter, "brightness, contrast, saturation >= 0, and hue from 0 to 0.5")
        known = [f"val/{name}" for name in ("loss", *MEASURES)]
        config.require_one_of("task.monitor", self.monitor, known)


MEASURES = ("knn_top1", "teacher_entropy", "teacher_kl", "feature_std", "feature_rank")


def run(config: config.Config, run: Run) -> None:
    """Pretrain, and leave checkpoints, metrics, embeddings and pictures in `run`."""
    splits = data.load(config.dataset, "pretraining")
    assert isinstance(config.task, Config)
    if config.task.monitor == "val/knn_top1" and not splits.val.classes:
        raise UserError(
            f"task.monitor: got 'val/knn_top1', which needs labels, and {splits.val.root} has none; choose val/loss"
        )
    run.log_data(config.dataset.name, splits)
    if config.resume is None and (
        advice := crop_advice(splits.train, max(config.task.global_size, config.task.eval_size))
    ):
        print_line(advice, style="bold yellow")
    training.train(DINO(config, splits, run), config, run, monitor=config.task.monitor)
    explorer.log_explorer(run, splits.val, sample(splits.val, config.task.embed_crops))


class DINO(pl.LightningModule):
    """Student, teacher, and how one learns from the other.

    Shapes: v views, t of them global, b images, k outputs of the head, d features.
    """

    def __init__(self, config: config.Config, splits: Splits, run: Run) -> None:
        super().__init__()
        assert isinstance(config.task, Config)
        self.config = config
        self.task = config.task
        self.splits = splits
        self.run_ = run
        torch.manual_seed(config.seed)
        start = checkpoints.StartingPoint(config, run)
        self.local_size, arguments = fit_views(config)
        backbone = start.backbone(arguments)
        start.record()
        task = self.task
        if task.local_crops and task.local_size is None and self.local_size != (half := half_size(task)):
            print_line(f"local views: {self.local_size} px, as {config.backbone.name} can't take {half} px")
        features = feature_dim(backbone, task.global_size)
        head = DINOHead(features, task.hidden_dim, task.bottleneck_dim, task.out_dim, batch_norm=task.batch_norm)
        self.student = DINONetwork(backbone, head)
        self.teacher = make_teacher(self.student)
        self.loss = DINOLoss(self.task.out_dim, self.task.student_temperature, self.task.center_momentum)
        self.layout: NDArray[np.float32] | None = None  # of the last t-SNE

    def setup(self, stage: str) -> None:
        self.batches = training.make_batches(self, len(self.splits.train), self.config)
        self.total_steps = training.total_steps(self.config.trainer, len(self.batches))

    # Data

    def train_dataloader(self) -> DataLoader[Any]:
        views, resolution = _views(self.task, self.local_size), _resolution(self.task, self.local_size)
        crops = Crops(self.splits.train, views, self.config.seed, resolution)
        return make_loader(crops, self.batches, self.config.loader)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The validation crops, with a plain view before the random ones; the training crops that vote in kNN."""
        plain = augment.plain_view(self.task.eval_size)
        views, resolution = _views(self.task, self.local_size), _resolution(self.task, self.local_size)
        val = Crops(self.splits.val, [plain, *views], self.config.seed, resolution)
        bank = Crops(self.splits.train, [plain], self.config.seed, resolution)
        chosen = sample(self.splits.train, self.task.knn_bank)
        return [
            make_loader(val, FixedBatches(list(range(len(val))), self.config.loader.batch_size), self.config.loader),
            make_loader(bank, FixedBatches(chosen, self.config.loader.batch_size), self.config.loader),
        ]

    def normalize(self, images: Tensor) -> Tensor:
        return augment.normalize(images, self.config.dataset.mean, self.config.dataset.std)

    # Training

    @property
    def done(self) -> float:
        """The fraction of the run's steps that is done."""
        return self.global_step / self.total_steps

    @property
    def teacher_temperature(self) -> float:
        task = self.task
        return warmup_constant(
            self.done, task.teacher_temperature_warmup, task.warmup_teacher_temperature, task.teacher_temperature
        )

    def logits(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The teacher's logits of the global views (t, b, k), and the student's of all (v, b, k)."""
        views = [self.normalize(view) for view in views]
        with torch.no_grad():
            teacher_tbk: Tensor = self.teacher(views[: self.task.global_crops])
        return teacher_tbk, self.student(views)

    def training_step(self, batch: tuple[list[Tensor], Tensor], batch_idx: int) -> Tensor:
        views, _ = batch
        teacher_tbk, student_vbk = self.logits(views)
        loss: Tensor = self.loss(teacher_tbk, student_vbk, self.teacher_temperature)
        self.loss.update_center(teacher_tbk)
        if self.global_step % self.run_.log_every_n_steps == 0:
            self.run_.log_metrics({"train/loss": loss.detach()}, self.global_step)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return training.make_optimizer(self.student, self.config.optimizer)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.done < self.task.freeze_last_layer:
            self.student.head.last_layer.grad = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        momentum = cosine(self.done, self.task.teacher_momentum, self.task.final_teacher_momentum)
        super().optimizer_step(*args, **kwargs)
        update_teacher(self.teacher, self.student, momentum)

    # Validation

    def on_validation_epoch_start(self) -> None:
        self._loss = self._entropy = 0.0
        self._mean_probability = torch.zeros(self.task.out_dim, device=self.device)
        self._features: list[list[Tensor]] = [[], []]
        self._labels: list[list[Tensor]] = [[], []]

    def validation_step(self, batch: tuple[list[Tensor], Tensor], batch_idx: int, dataloader_idx: int) -> None:
        (plain, *views), labels = batch
        self._features[dataloader_idx].append(self.teacher.backbone(self.normalize(plain)).float())
        self._labels[dataloader_idx].append(labels)
        if views:
            teacher_tbk, student_vbk = self.logits(views)
            p_tbk = self.loss.teacher_probabilities(teacher_tbk, self.teacher_temperature)
            share = len(labels) / len(self.splits.val)
            self._loss += share * self.loss(teacher_tbk, student_vbk, self.teacher_temperature).item()
            self._entropy += share * collapse.entropy(p_tbk.flatten(0, 1))
            self._mean_probability += share * p_tbk.mean((0, 1))

    def on_validation_epoch_end(self) -> None:
        training.check_loss(self, self._loss)
        features, bank = (torch.cat(values) for values in self._features)
        labels, bank_labels = (torch.cat(values) for values in self._labels)
        classes = len(self.splits.val.classes)
        knn = {"knn_top1": knn_top1(bank, bank_labels, features, labels, classes, self.task.knn_k)} if classes else {}
        measures = {
            **knn,
            "teacher_entropy": self._entropy,
            "teacher_kl": collapse.kl_from_uniform(self._mean_probability),
            "feature_std": collapse.feature_std(features),
            "feature_rank": collapse.effective_rank(features),
        }
        training.log_validation(self, self.run_, {"loss": self._loss, **measures})
        if self.global_step > 0:  # an untrained network looks collapsed
            warning = collapse.collapse_warning(measures, self.task.out_dim, features.shape[1])
            training.warn(self, self.run_, f"collapse: {warning}" if warning else None)
        if self._embeds_now():
            chosen = sample(self.splits.val, self.task.embed_crops)
            self.embed(features[chosen].cpu().numpy(), chosen)

    def embed(self, features: NDArray[np.float32], chosen: list[int]) -> None:
        """Record the features of some validation crops, and draw their t-SNE."""
        val, epoch = self.splits.val, self.epochs_done
        if len(features) >= embedding.FEWEST:
            self.layout = embedding.layout(features, self.layout)
        embedding.log_embedding(self.run_, val, chosen, features, self.layout, epoch)
        if self.layout is not None:
            self.run_.log_image("tsne", embedding.draw(self.layout, val, chosen, epoch), self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["cvexp"] = checkpoints.metadata(self.config, self.run_.id)
        if self.layout is not None:  # the next picture starts from it, after an interruption too
            checkpoint["tsne"] = torch.from_numpy(self.layout)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "tsne" in checkpoint:
            self.layout = checkpoint["tsne"].numpy()

    @property
    def epochs_done(self) -> int:
        """0 before training, then how many epochs the training has had, a cut-off last one included."""
        return math.ceil(self.global_step / len(self.batches))

    def _embeds_now(self) -> bool:
        return self.global_step == self.total_steps or self.epochs_done % self.task.embed_every_n_epochs == 0


class Fitted(NamedTuple):
    """What suits a backbone.

    Attributes:
        local_size: Side length of the local views in pixels.
        arguments: For `create_backbone`, with which it takes the views of all sizes.
    """

    local_size: int
    arguments: dict[str, Any]


def fit_views(settings: config.Config) -> Fitted:
    """Choose the size of the local views, where `task.local_size` is null, and the backbone's arguments.

    The choice depends on the configuration alone, so that a finished run's backbone can be created again. The random
    state is left as it was.

    Raises:
        UserError: when the backbone can't take the views.
    """
    task = settings.task
    assert isinstance(task, Config)
    refusals = []
    for size in [half_size(task), task.global_size] if task.local_size is None else [task.local_size]:
        sizes = {"task.global_size": task.global_size}
        if task.local_crops:
            sizes["task.local_size"] = size
        if task.eval_size != task.global_size:
            sizes["task.eval_size"] = task.eval_size
        try:
            return Fitted(size, choose_arguments(settings.backbone.name, settings.backbone.args, Needs(sizes)))
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def half_size(task: Config) -> int:
    """Half the size of the global views, in pixels."""
    return max(2, task.global_size // 2)


def _views(task: Config, local_size: int) -> list[Any]:
    """The random views of an item: the global ones, then the local ones."""
    kinds = [0] + [1] * (task.global_crops - 1) + [2] * task.local_crops
    return [
        augment.view(
            size=local_size if kind == 2 else task.global_size,
            scale=task.local_scale if kind == 2 else task.global_scale,
            flip=task.flip,
            jitter=task.jitter,
            jitter_probability=task.jitter_probability,
            gray=task.gray,
            blur=task.blur[kind],
            solarize=task.solarize[kind],
        )
        for kind in kinds
    ]


def _resolution(task: Config, local_size: int) -> float:
    """How many pixels a side of a crop needs, so that the smallest part of it that a view shows has enough."""
    kinds = ((task.global_size, task.global_scale[0]), (local_size, task.local_scale[0]), (task.eval_size, 1.0))
    return max(size / math.sqrt(scale) for size, scale in kinds)


def sample(index: Index, most: int) -> list[int]:
    """At most so many positions of an index, the same ones each time."""
    order = np.random.RandomState(mix(0, len(index)) % 2**32).permutation(len(index))
    return sorted(order[:most].tolist())
