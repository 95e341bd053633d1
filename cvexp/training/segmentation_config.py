"""The configuration that all segmentation methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from cvexp.config import RunConfig, TaskConfig, require, require_fraction, require_jitter, require_one_of, require_scale
from cvexp.errors import UserError
from cvexp.models.deeplab import DECODERS
from cvexp.training.strategy import in_processes, normalized_together

MEASURES = ("miou", "miou_all", "pixel_accuracy", "miou_image", "presence_f1")


@dataclass(kw_only=True)
class SegmentationConfig(TaskConfig):
    """Keys of every segmentation method; each method adds its own.

    Attributes:
        description: What the method does, to complete "The method NAME ..." in the report.
        description_of_background: What to add to it if the data have a background.
        is_baseline: Whether the method is the baseline that others are compared with.
    """

    role: ClassVar[str] = "segmentation"
    description: ClassVar[str] = ""
    description_of_background: ClassVar[str] = ""
    is_baseline: ClassVar[bool] = False

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
            require_fraction(f"task.{key}", getattr(self, key))
        require_one_of("task.decoder", self.decoder, DECODERS)
        rates = self.atrous_rates
        require(len(rates) == 3 and min(rates) >= 1, "task.atrous_rates", rates, "three whole numbers, at least 1")
        require_scale("task.crop_scale", self.crop_scale)
        require_jitter("task.jitter", self.jitter)
        require(self.backbone_lr_factor >= 0, "task.backbone_lr_factor", self.backbone_lr_factor, "at least 0")
        require(self.pictured_images >= 0, "task.pictured_images", self.pictured_images, "at least 0")
        require_one_of("task.monitor", self.monitor, [f"val/{name}" for name in ("loss", *MEASURES)])


def require_large_batch(config: RunConfig, num_images: int) -> None:
    """Raise a UserError unless a batch is large enough for the decoder's batch norm.

    Args:
        config: The run's configuration.
        num_images: Number of training images.
    """
    if normalized_together(config, num_images) < 2:
        raise UserError(
            f"loader.batch_size: got {config.loader.batch_size}{in_processes()}, with {num_images} training images, "
            "but the decoder's batch norm needs at least 2 images in the batch of each process"
            + ("; choose a larger dataset.limit=" if config.dataset.limit == 1 else "")
        )
