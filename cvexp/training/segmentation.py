"""What all segmentation methods share: images with masks, scores, pictures, and the best checkpoint."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cvexp import data, processes
from cvexp.config import RunConfig
from cvexp.console import print_line
from cvexp.data.augment.labeled import LabeledView
from cvexp.data.batches import PendingViews
from cvexp.data.enlargement import image_advice
from cvexp.data.examples import choose_images
from cvexp.data.index import IGNORE
from cvexp.data.kept import Source
from cvexp.data.loaders import make_loader
from cvexp.data.masks import LabeledImages, LabeledSquares, MaskBatches, evaluated_areas
from cvexp.errors import UserError
from cvexp.inference.networks import choose_device
from cvexp.inference.segmenter import Segmenter
from cvexp.metrics import iou
from cvexp.metrics.ranking import best_median_worst
from cvexp.models.arguments import DEFAULT_STRIDE
from cvexp.models.segmenters import Prediction, SegmentationNetwork
from cvexp.report import segmentation as pictures
from cvexp.report.scores import log_scores
from cvexp.report.style import SCREEN_DPI, state_of
from cvexp.tracking.data_record import record_data
from cvexp.tracking.run import ReadOnlyRun
from cvexp.training.fit import fit
from cvexp.training.module import TrainingModule
from cvexp.training.segmentation_config import SegmentationConfig, require_large_batch
from cvexp.weights.read import read_checkpoint
from cvexp.weights.start import Start, open_start, record_start

NUM_BEST = 2  # images of each kind in the picture of the best checkpoint


class SegmentationTraining(TrainingModule):
    """Trains a segmenter and scores it.

    A method defines its network, its loss, and what it predicts. Shapes: b images of h x w pixels, c classes without
    the background.

    Attributes:
        train_counts: The pixels that this process counted in the epoch so far; see `cvexp.metrics.iou`.
        model: The network.
        classes: Class names, without the background.
    """

    encoder_name = "model.encoder.backbone"
    train_counts: Tensor

    def build(self, start: Start) -> None:
        self.classes = self.splits.train.classes
        self.model = self.build_model(self.config, len(self.classes), start)
        if self.model.has_background and not self.config.dataset.has_background:
            raise UserError(
                f"task={self.task.name}: its network can label a pixel as background, but dataset.background_value is "
                "null; choose another task, or name the value of the background"
            )
        self._report_stride()
        if self.task.freeze_backbone:
            self.model.encoder.requires_grad_(False)
        self.train()  # Lightning trains in the mode that it finds
        counts = torch.zeros(1 + len(self.classes), 3, dtype=torch.int64)  # of the epoch so far
        self.register_buffer("train_counts", counts, persistent=False)
        self._ddp_params_and_buffers_to_ignore = ["train_counts"]  # or DDP would replace them by the first process's
        self._pictured = choose_images(self.splits.val, self.task.pictured_images)

    @property
    def task(self) -> SegmentationConfig:
        assert isinstance(self.config.task, SegmentationConfig)
        return self.config.task

    @property
    def num_samples(self) -> int:
        return len(self.splits.train.images)

    # What a method defines

    @staticmethod
    @abstractmethod
    def build_model(config: RunConfig, num_classes: int, start: Start) -> SegmentationNetwork:
        """Create the network with its initial weights.

        Args:
            config: The run's configuration.
            num_classes: Number of classes, c.
            start: The initial weights.
        """

    @abstractmethod
    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of normalized images (b, 3, h, w) and labels (b, h, w).

        The metrics include `counts` (1 + c, 3), see `cvexp.metrics.iou`, which are summed over the epoch.
        """

    @abstractmethod
    def predict(self, images: Tensor, labels: Tensor) -> tuple[Prediction, Tensor]:
        """Return what the network predicts for normalized images, and the loss of each image (b,)."""

    def training_scores(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Return the training scores to log as `train/NAME`, renamed if they differ from the validation scores."""
        return {name: scores[name] for name in ("miou", "pixel_accuracy") if name in scores}

    def scores(self) -> dict[str, float]:
        """Return the validation scores."""
        return iou.summarize(self.counts, self.classes)

    def draw(self) -> dict[str, Any]:
        """Draw pictures of the chosen validation images, by their key in MLflow."""
        return {"predictions": pictures.predictions(self._examples, self.classes, self._state(), SCREEN_DPI)}

    def draw_best(self, examples: list[tuple[str, pictures.Example]]) -> dict[str, Any]:
        """Draw pictures of captioned examples that the best checkpoint predicted, and return them by picture name."""
        rows = [(caption, {"image": e.image, "label": e.labels, "prediction": e.predicted}) for caption, e in examples]
        return {"best_median_worst": pictures.grid(rows, self.classes, "validation images, best checkpoint")}

    # Data

    def sources(self) -> list[Source]:
        size, smallest = self.config.dataset.image_size, self.task.crop_scale[0]
        # At this resolution, even the smallest region is reduced by half, which keeps the edges of its labels exact.
        train = LabeledImages(self.splits.train, 2 * size / math.sqrt(smallest))
        return [train, LabeledSquares(self.splits.val, size)]

    def train_dataloader(self) -> DataLoader[Any]:
        task = self.task
        view = LabeledView(
            self.config.dataset.image_size, task.crop_scale, task.flip, task.jitter, task.jitter_probability
        )
        masks = MaskBatches(self.images[0], view, self.config.seed, self.draws_on_device)
        return make_loader(masks, self.batches, self.config.loader)

    def val_dataloader(self) -> DataLoader[Any]:
        masks = MaskBatches(self.images[1], is_pending=self.draws_on_device)
        self._evaluated = self.fixed_batches(list(range(len(masks))))
        return make_loader(masks, self._evaluated, self.config.loader)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Make the views on the device, if the loader did not, and normalize the images."""
        if isinstance(batch, PendingViews):
            (batch,) = batch.make()
        images, labels = batch
        return self.normalize(images), labels.long()

    # Training

    def lr_factors(self) -> dict[nn.Module, float]:
        return {} if self.task.freeze_backbone else {self.model.encoder: self.task.backbone_lr_factor}

    def train(self, mode: bool = True) -> SegmentationTraining:
        super().train(mode)
        if self.task.freeze_backbone:
            self.model.encoder.eval()  # or the statistics of batch norm would change
        return self

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss, metrics = self.step(batch)
        self.train_counts += metrics.pop("counts")
        self.log_step(loss, metrics)
        return loss

    def extra_state(self) -> dict[str, Any]:
        return {"trained": self._sum_train_counts()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.train_counts.zero_()
        if processes.rank() == 0:  # which saved the counts of all processes
            self.train_counts.copy_(state["trained"])

    def _sum_train_counts(self) -> Tensor:
        """Return the pixels that all processes counted."""
        total: Tensor = self.trainer.strategy.reduce(self.train_counts.clone(), reduce_op="sum")
        return total

    # Validation

    def on_validation_epoch_start(self) -> None:
        # Lists with an entry for each batch, so that those of all processes can be put in order.
        self._losses: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._examples_of_batches: list[list[pictures.Example]] = []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        number = self._evaluated.batch_number(batch_idx)
        if number is None:
            return
        images, labels = batch
        prediction, loss = self.predict(images, labels)
        self._losses.append(loss.sum() / len(self.splits.val.images))
        self.count(prediction, labels)
        if self._draws_now():
            first = number * self.config.loader.batch_size
            pixels = self.normalize.invert(images)
            examples = [
                pictures.make_example(self.splits.val, first + i, pixels[i], labels[i], prediction, i)
                for i in range(len(labels))
                if first + i in self._pictured
            ]
            self._examples_of_batches.append(examples)

    def count(self, prediction: Prediction, labels: Tensor) -> None:
        """Count the pixels of a validation batch, without waiting for the device."""
        self._counts.append(iou.count_labels(prediction.labels, labels, len(self.classes), IGNORE))

    @property
    def counts(self) -> iou.Counts:
        """The pixels of each validation image, (images, 1 + c, 3)."""
        counts: iou.Counts = torch.cat(self._counts).cpu().numpy()
        return counts

    def log_scores(self) -> None:
        train_counts = self._sum_train_counts().cpu().numpy()
        if train_counts.any():
            scores = self.training_scores(iou.summarize(train_counts[None], self.classes))
            self.sink.log_metrics({f"train/{name}": score for name, score in scores.items()}, self.global_step)
            self.train_counts.zero_()
        self._counts = processes.gather_in_order(self._counts)
        if not self.counts[:, 1:, 2].any():
            raise UserError(
                f"dataset: no validation image has any of the classes {list(self.classes)}, so nothing can be scored; "
                "choose other classes, or other validation images"
            )
        loss = float(sum(processes.gather_in_order(self._losses)))
        self.log_validation({"loss": loss, **self.scores()})

    def log_pictures(self) -> None:
        self._examples = [e for examples in processes.gather_in_order(self._examples_of_batches) for e in examples]
        if self._examples and processes.rank() == 0:
            for key, figure in self.draw().items():
                self.sink.log_image(key, figure, self.global_step)

    def _draws_now(self) -> bool:
        return self.global_step == self.total_steps or self.epochs_done % self.task.picture_every_n_epochs == 0

    def _state(self) -> str:
        return state_of(self.epochs_done)

    def _report_stride(self) -> None:
        stride = self.model.encoder.stride
        if self.task.output_stride is None and stride != DEFAULT_STRIDE:
            name = self.config.backbone.name
            print_line(f"output stride: {stride}, as {name} does not support {DEFAULT_STRIDE}")

    def picture_best(self, segmenter: Segmenter, counts: iou.Counts) -> dict[str, Any]:
        """Draw what a segmenter predicts for its best, median and worst validation images, given their counts.

        Returns:
            Figures by name.
        """
        size = self.config.dataset.image_size
        squares = LabeledSquares(self.splits.val, size)
        examples = []
        chosen = best_median_worst([counts], evaluated_areas(self.splits.val, size), NUM_BEST)
        for word, positions in chosen.items():
            for position in positions:
                image, labels = squares.pair(position)
                prediction = segmenter.predict_squares(image[None])
                example = pictures.make_example(self.splits.val, position, image, labels, prediction, 0)
                examples.append((f"{word}\nmIoU {float(iou.mean_iou(counts[position, 1:])):.2f}", example))
        return self.draw_best(examples)


def train_segmenter(method: type[SegmentationTraining], config: RunConfig, run: ReadOnlyRun) -> float:
    """Train a segmenter with a method, and record checkpoints, metrics and pictures in `run`.

    Returns:
        The monitored metric at the best epoch.
    """
    task = config.task
    assert isinstance(task, SegmentationConfig)
    splits = data.load(config.dataset, "segmentation")
    require_large_batch(config, len(splits.train.images))
    record_data(run, config.dataset.name, splits)
    if config.resume is None and (advice := image_advice(splits.train, config.dataset.image_size)):
        print_line(advice, style="bold yellow")
    start = open_start(config, run)
    module = method(config, splits, run, start)
    record_start(start, run, config.backbone.name)
    best = fit(module, run, task.monitor)
    if processes.rank() == 0:
        module.load_state_dict(read_checkpoint(run.folder / "checkpoints" / "best.ckpt").tensors)
        segmenter = Segmenter(module.model, config, module.classes, choose_device(config.trainer))
        counts = segmenter.evaluate(splits.val)
        for name, figure in module.picture_best(segmenter, counts).items():
            run.log_figure(figure, f"pictures/{name}.png")
        if splits.test is not None:
            counts = segmenter.evaluate(splits.test)
        log_scores(run, counts, splits.scored, module.total_steps)
    return best
