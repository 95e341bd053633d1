"""The parts that segmentation networks are built of, as the configuration says."""

from __future__ import annotations

from torch import nn

from cvexp.config import RunConfig
from cvexp.models.arguments import Needs
from cvexp.models.backbone import Encoder
from cvexp.models.deeplab import DECODERS
from cvexp.training.segmentation_config import SegmentationConfig
from cvexp.weights.backbone import choose_arguments, create_backbone
from cvexp.weights.start import Start


def make_encoder(config: RunConfig, start: Start) -> Encoder:
    """Create the backbone, with its weights, as a network that returns feature maps.

    Raises:
        UserError: if the backbone does not support images of `dataset.image_size`, or the output stride.
    """
    task = config.task
    assert isinstance(task, SegmentationConfig)
    size = config.dataset.image_size
    needs = Needs({"dataset.image_size": size}, maps=True, output_stride=task.output_stride)
    return Encoder(create_backbone(config.backbone, choose_arguments(config.backbone, needs), start), size)


def make_decoder(task: SegmentationConfig, low_channels: int, high_channels: int) -> nn.Module:
    """Create the configured decoder for feature maps with these numbers of channels."""
    decoder = DECODERS[task.decoder]
    return decoder(low_channels, high_channels, task.decoder_channels, task.atrous_rates, task.dropout)
