"""What both segmentation tasks share: data, schedule of the training, scores, pictures."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from omegaconf import MISSING
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cvexp import checkpoints, config, data
from cvexp.config import require
from cvexp.data import augment
from cvexp.data.enlargement import image_advice
from cvexp.data.index import BACKGROUND, IGNORE, Index, Splits
from cvexp.data.loaders import FixedBatches, make_loader
from cvexp.data.masks import Masks
from cvexp.errors import UserError
from cvexp.metrics import iou
from cvexp.models.backbone import Encoder
from cvexp.models.deeplab import DECODERS
from cvexp.models.probe import DEFAULT_STRIDE, Needs, choose_arguments
from cvexp.models.segmenters import Prediction
from cvexp.report import segmentation as pictures
from cvexp.report.console import print_line
from cvexp.tasks import training
from cvexp.tracking import Run


@dataclass(kw_only=True)
class SegmentationTask(config.Task):
    """The keys that both tasks have."""

    output_stride: int | None = MISSING
    freeze_backbone: bool = MISSING
    backbone_lr_factor: float = MISSING
    decoder: str = MISSING
    decoder_channels: int = MISSING
    atrous_rates: list[int] = MISSING
    dropout: float = MISSING
    crop_scale: list[float] = MISSING
    flip: float = MISSING
    jitter: list[float] = MISSING
    jitter_probability: float = MISSING
    pictured_images: int = MISSING
    picture_every_n_epochs: int = MISSING
    monitor: str = MISSING

    def __post_init__(self) -> None:
        stride = self.output_stride
        require(stride is None or stride >= 1, "task.output_stride", stride, "at least 1, or null")
        for key in ("decoder_channels", "picture_every_n_epochs"):
            require(getattr(self, key) >= 1, f"task.{key}", getattr(self, key), "at least 1")
        for key in ("flip", "jitter_probability", "dropout"):
            require(0 <= getattr(self, key) <= 1, f"task.{key}", getattr(self, key), "from 0 to 1")
        config.require_one_of("task.decoder", self.decoder, DECODERS)
        rates = self.atrous_rates
        require(len(rates) == 3 and min(rates) >= 1, "task.atrous_rates", rates, "three whole numbers, at least 1")
        scale = self.crop_scale
        fits = len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1
        require(fits, "task.crop_scale", scale, "two shares of the area, 0 < least <= largest <= 1")
        fits = len(self.jitter) == 4 and min(self.jitter) >= 0 and self.jitter[3] <= 0.5
        require(fits, "task.jitter", self.jitter, "brightness, contrast, saturation >= 0, and hue from 0 to 0.5")
        require(self.backbone_lr_factor >= 0, "task.backbone_lr_factor", self.backbone_lr_factor, "at least 0")
        require(self.pictured_images >= 0, "task.pictured_images", self.pictured_images, "at least 0")
        known = [f"val/{name}" for name in ("loss", *MEASURES)]
        config.require_one_of("task.monitor", self.monitor, known)


BEST_SHOWN = 2  # images of each kind

MEASURES = ("miou", "miou_all", "pixel_accuracy", "miou_image", "presence_f1")


def run(module: type[Segmentation], config: config.Config, run: Run) -> None:
    """Train a segmenter, and leave checkpoints, metrics and pictures in `run`."""
    splits = data.load(config.dataset, "segmentation")
    task = config.task
    assert isinstance(task, SegmentationTask)
    if min(config.loader.batch_size, len(splits.train.images)) < 2:
        raise UserError(
            f"loader.batch_size: got {config.loader.batch_size}, with {len(splits.train.images)} training images, but "
            "the decoder's batch norm needs at least 2 images in a batch"
            + ("; choose a larger dataset.limit=" if config.dataset.limit == 1 else "")
        )
    run.log_data(config.dataset.name, splits)
    if config.resume is None and (advice := image_advice(splits.train, config.dataset.image_size)):
        print_line(advice, style="bold yellow")
    trained = module(config, splits, run)
    training.train(trained, config, run, monitor=task.monitor)
    trained.picture_best()


def make_encoder(config: config.Config, start: checkpoints.StartingPoint) -> Encoder:
    """The backbone with its weights, as it gives feature maps.

    Raises:
        UserError: when it can't take images of `dataset.image_size`, or have the output stride.
    """
    task = config.task
    assert isinstance(task, SegmentationTask)
    size = config.dataset.image_size
    needs = Needs({"dataset.image_size": size}, maps=True, output_stride=task.output_stride)
    encoder = Encoder(start.backbone(choose_arguments(config.backbone.name, config.backbone.args, needs)), size)
    if start.run is not None and task.output_stride is None and encoder.stride != DEFAULT_STRIDE:
        print_line(f"output stride: {encoder.stride}, as {config.backbone.name} can't have {DEFAULT_STRIDE}")
    return encoder


def make_decoder(task: SegmentationTask, low_channels: int, high_channels: int) -> nn.Module:
    decoder = DECODERS[task.decoder]
    return decoder(low_channels, high_channels, task.decoder_channels, task.atrous_rates, task.dropout)


class Segmentation(pl.LightningModule):
    """Trains a segmenter and scores it; `model` has `encoder` and `predict`.

    Shapes: b images of h x w pixels, c classes without the background.
    """

    trained_scores: ClassVar = {"miou": "miou", "pixel_accuracy": "pixel_accuracy"}  # what they are called in training

    def __init__(self, config: config.Config, splits: Splits, run: Run) -> None:
        super().__init__()
        assert isinstance(config.task, SegmentationTask)
        self.config = config
        self.task = config.task
        self.splits = splits
        self.classes = splits.train.classes
        self.run_ = run
        torch.manual_seed(config.seed)
        start = checkpoints.StartingPoint(config, run)
        self.model = self.make_model(config, len(self.classes), start)
        start.record()
        if self.task.freeze_backbone:
            self.model.encoder.requires_grad_(False)
        self.train()  # Lightning trains in the mode that it finds
        self.trained = np.zeros((1 + len(self.classes), 3), dtype=np.int64)  # counts of the epoch
        self.pictured = choose_pictured(splits.val, self.task.pictured_images)

    @staticmethod
    @abstractmethod
    def make_model(config: config.Config, classes: int, start: checkpoints.StartingPoint) -> nn.Module:
        """The segmenter with the weights of a starting point."""

    @abstractmethod
    def learn(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch of normalised images (b, 3, h, w) and labels (b, h, w), and counts (1 + c, 3)."""

    @abstractmethod
    def predict(self, images: Tensor, labels: Tensor) -> tuple[Prediction, Tensor]:
        """What the model says of normalised images, and its loss, for each of them (b,)."""

    def scores(self) -> dict[str, float]:
        """The scores of the validation, from `counts`."""
        return iou.summarize(np.concatenate(self.counts), self.classes)

    # Data

    def setup(self, stage: str) -> None:
        self.batches = training.make_batches(self, len(self.splits.train.images), self.config)
        self.total_steps = training.total_steps(self.config.trainer, len(self.batches))

    def train_dataloader(self) -> DataLoader[Any]:
        task = self.task
        view = augment.LabelledView(
            self.config.dataset.image_size, task.crop_scale, task.flip, task.jitter, task.jitter_probability
        )
        return make_loader(Masks(self.splits.train, view, self.config.seed), self.batches, self.config.loader)

    def val_dataloader(self) -> DataLoader[Any]:
        return validation_loader(self.config, self.splits)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        dataset = self.config.dataset
        return augment.normalize(images, dataset.mean, dataset.std), labels.long()

    # Training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        factors = {} if self.task.freeze_backbone else {self.model.encoder: self.task.backbone_lr_factor}
        return training.make_optimizer(self.model, self.config.optimizer, factors)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Segmentation:
        super().train(mode)
        if self.task.freeze_backbone:
            self.model.encoder.eval()  # type: ignore[union-attr]  # or batch norm's statistics would go on changing
        return self

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss, counts = self.learn(*batch)
        self.trained += counts.cpu().numpy()
        if self.global_step % self.run_.log_every_n_steps == 0:
            self.run_.log_metrics({"train/loss": loss.detach()}, self.global_step)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["cvexp"] = checkpoints.metadata(self.config, self.run_.id)
        checkpoint["trained"] = torch.from_numpy(self.trained)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trained = checkpoint["trained"].numpy().copy()

    # Validation

    def on_validation_epoch_start(self) -> None:
        self.loss = 0.0
        self.counts: list[iou.Counts] = []
        self.shown: list[pictures.Example] = []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        prediction, loss = self.predict(images, labels)
        self.loss += float(loss.sum()) / len(self.splits.val.images)
        self.count(prediction, labels)
        if self._pictures_now():
            first = batch_idx * self.config.loader.batch_size
            pixels = augment.denormalize(images, self.config.dataset.mean, self.config.dataset.std)
            for i in range(len(labels)):
                if first + i in self.pictured:
                    seen = (self.splits.val, first + i, pixels[i], labels[i])
                    self.shown.append(pictures.example(*seen, prediction, i))

    def count(self, prediction: Prediction, labels: Tensor) -> None:
        """Count the pixels of a batch of the validation."""
        counts = iou.count_labels(prediction.labels, labels, len(self.classes), IGNORE)
        self.counts.append(counts.cpu().numpy())

    def on_validation_epoch_end(self) -> None:
        if self.trained.any():
            scores = iou.summarize(self.trained[None], self.classes)
            named = {f"train/{own}": scores[name] for name, own in self.trained_scores.items() if name in scores}
            self.run_.log_metrics(named, self.global_step)
            self.trained = np.zeros_like(self.trained)
        if not np.concatenate(self.counts)[:, 1:, 2].any():
            raise UserError(
                f"dataset: no validation image has any of the classes {list(self.classes)}, so nothing can be scored; "
                "choose other classes, or other validation images"
            )
        training.log_validation(self, self.run_, {"loss": self.loss, **self.scores()})
        if self.shown:
            for key, figure in self.draw().items():
                self.run_.log_image(key, figure, self.global_step)

    def draw(self) -> dict[str, Any]:
        """Pictures of the chosen validation images, by MLflow's key."""
        return {"predictions": pictures.predictions(self.shown, self.classes, self._when())}

    def picture_best(self) -> None:
        """Record pictures of what best.ckpt says of its best, median and worst validation images."""
        state = checkpoints.read_checkpoint(self.run_.folder / "checkpoints" / "best.ckpt").tensors
        self.load_state_dict(state)
        device = training.device(self.config.trainer)  # Lightning has taken the module off it
        predictor = Predictor(self.model.to(device).eval(), self.config, device)
        counts = evaluate(predictor, self.config, self.splits)
        masks = Masks(self.splits.val, augment.PlainLabelledView(self.config.dataset.image_size), self.config.seed)
        examples = []
        areas = evaluated_areas(self.splits.val, self.config.dataset.image_size)
        for word, positions in best_median_worst([counts], areas, BEST_SHOWN).items():
            for position in positions:
                image, labels = masks[0, position]
                seen = pictures.example(self.splits.val, position, image, labels, predictor.predict(image[None]), 0)
                examples.append((f"{word}\nmIoU {float(iou.mean_iou(counts[position, 1:])):.2f}", seen))
        for name, figure in self.draw_best(examples).items():
            self.run_.log_figure(figure, f"pictures/{name}.png")

    def draw_best(self, examples: list[tuple[str, pictures.Example]]) -> dict[str, Any]:
        """Pictures of captioned examples, by name."""
        rows = [(word, {"image": e.image, "label": e.labels, "prediction": e.predicted}) for word, e in examples]
        return {"best_median_worst": pictures.grid(rows, self.classes, "validation images, best checkpoint")}

    def _when(self) -> str:
        epoch = math.ceil(self.global_step / len(self.batches))
        return "untrained" if epoch == 0 else f"after epoch {epoch}"

    def _pictures_now(self) -> bool:
        epoch = math.ceil(self.global_step / len(self.batches))
        return self.global_step == self.total_steps or epoch % self.task.picture_every_n_epochs == 0


def choose_pictured(index: Index, count: int) -> set[int]:
    """Positions of some images of an index, spread over the classes and over the index, the same ones each time.

    Images without an object of the classes are chosen only where no image has one.
    """
    catalog = index.catalog
    value = index.value_of[catalog.label]
    is_object = ~catalog.crowd & (value != BACKGROUND) & (value != IGNORE)
    images = {
        number: np.flatnonzero(np.isin(index.images, catalog.image[is_object & (value == number)])).tolist()
        for number in np.unique(value[is_object]).tolist()
    }
    classes: dict[int, set[int]] = {}  # by position
    for number, positions in images.items():
        for position in positions:
            classes.setdefault(position, set()).add(number)
    if not classes:
        most = len(index.images)
        return set(np.linspace(0, most - 1, min(count, most)).astype(int).tolist())
    chosen: set[int] = set()
    shown = dict.fromkeys(images, 0)  # how many of the chosen images have each class
    while len(chosen) < min(count, len(classes)):
        free = {number: [i for i in positions if i not in chosen] for number, positions in images.items()}
        number = min((number for number in images if free[number]), key=lambda number: shown[number])
        farthest = max(free[number], key=lambda i: min((abs(i - other) for other in chosen), default=0))
        chosen.add(farthest)
        for other in classes[farthest]:
            shown[other] += 1
    return chosen


def validation_loader(config: config.Config, splits: Splits) -> DataLoader[Any]:
    """All validation images, whole, in order."""
    masks = Masks(splits.val, augment.PlainLabelledView(config.dataset.image_size), config.seed)
    batches = FixedBatches(list(range(len(masks))), config.loader.batch_size)
    return make_loader(masks, batches, config.loader)


class Predictor:
    """A segmenter that takes images (b, 3, h, w) uint8, and sees them as it was trained to."""

    def __init__(self, model: nn.Module, settings: config.Config, device: torch.device) -> None:
        self.model, self.dataset, self.device = model, settings.dataset, device

    @torch.inference_mode()
    def label(self, images: Tensor) -> Tensor:
        """Label maps (b, h, w), on the CPU."""
        labels: Tensor = self.model.label(self._normalize(images)).cpu()  # type: ignore[operator]
        return labels

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Prediction:
        """All that the model says."""
        prediction: Prediction = self.model.predict(self._normalize(images))  # type: ignore[operator]
        return prediction

    def _normalize(self, images: Tensor) -> Tensor:
        return augment.normalize(images.to(self.device), self.dataset.mean, self.dataset.std)


def evaluate(predictor: Predictor, settings: config.Config, splits: Splits) -> iou.Counts:
    """Counts of every validation image, (images, 1 + c, 3)."""
    return np.concatenate(
        [
            iou.count_labels(predictor.label(images), labels, len(splits.val.classes), IGNORE).numpy()
            for images, labels in validation_loader(settings, splits)
        ]
    )


def evaluated_areas(index: Index, size: int) -> NDArray[np.int64]:
    """The pixels that each image of an index has where its longer side is `size`, (images,)."""
    return np.array([math.prod(augment.fit(index.size(int(image)), size)) for image in index.images])


def best_median_worst(counts: Sequence[iou.Counts], areas: NDArray[np.int64], number: int) -> dict[str, list[int]]:
    """Positions of images that have a class, by the mean of the runs' mIoU of that image.

    Images of which more than half is ignored are left out, unless all are like that: their mIoU says little.

    Args:
        counts: Of each run, (images, 1 + c, 3).
        areas: The pixels of each image, ignored ones included, (images,).
        number: Of each kind; fewer where there are not enough images.
    """
    scores = np.mean([iou.mean_iou(one[:, 1:]) for one in counts], axis=0)
    labelled = counts[0][:, 1:, 2].any(axis=1)
    is_judged = labelled & (2 * counts[0][:, :, 2].sum(axis=1) >= areas)
    ranked = set(np.flatnonzero(is_judged if is_judged.any() else labelled).tolist())
    order = [int(i) for i in np.argsort(-scores, kind="stable") if i in ranked]
    number = max(1, min(number, len(order) // 3))
    middle = (len(order) - number) // 2
    return {"best": order[:number], "median": order[middle : middle + number], "worst": order[-number:]}
