"""The configuration that all segmentation methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from cvexp.config import RunConfig, TaskConfig
from cvexp.errors import UserError
from cvexp.keys import area_scale, choice, color_jitter, number, numbers, share
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

    output_stride: int | None = number(1)
    freeze_backbone: bool = MISSING
    backbone_lr_factor: float = number(0)
    decoder: str = choice(*DECODERS)
    decoder_channels: int = number(1)
    atrous_rates: list[int] = numbers(3, "three whole numbers, at least 1", at_least=1)
    dropout: float = share()
    crop_scale: list[float] = area_scale()
    flip: float = share()
    jitter: list[float] = color_jitter()
    jitter_probability: float = share()
    pictured_images: int = number(0)
    picture_every_n_epochs: int = number(1)
    monitor: str = choice(*(f"val/{name}" for name in ("loss", *MEASURES)))


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
