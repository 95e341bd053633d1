"""Backbones: timm models without their classifier."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from cvexp.config import nearest
from cvexp.errors import UserError

LOW_STRIDE = 4  # of the early map, as in the DeepLabV3+ paper


def create_backbone(name: str, pretrained: bool = False, output_stride: int | None = None, **args: Any) -> nn.Module:
    """A timm model that gives a feature map by `forward_features` and one pooled vector by `forward`.

    Args:
        name: Any name that timm knows.
        pretrained: With timm's pretrained weights, fetched from its hub.
        output_stride: How many pixels of the image a position of the last map stands for, reached by dilation where
            the model can; None is the model's own.
        args: Passed to `timm.create_model`.

    Raises:
        UserError: for an unknown name, arguments that the model does not take, an output stride that it can't have, and
            weights that can't be fetched.
    """
    if not timm.is_model(name):
        raise UserError(f"backbone.name: timm has no model {name!r}; {nearest(name, timm.list_models())}")
    if output_stride is not None:
        try:
            backbone = _create(name, pretrained, {**args, "output_stride": output_stride})
        except (UserError, AssertionError, NotImplementedError):  # it has no such argument, or not this value of it
            backbone = _create(name, pretrained, args)
        if (own := _feature_maps(backbone)[-1]["reduction"]) != output_stride:
            raise UserError(
                f"task.output_stride: got {output_stride}, but {name} can't have it, at least not with these "
                f"backbone.args; its own is {own}"
            )
        return backbone
    return _create(name, pretrained, args)


def _create(name: str, pretrained: bool, args: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **args)
    except TypeError as error:
        raise UserError(f"backbone.args: {name} refuses {args}: {error}") from error
    except Exception as error:
        if not pretrained:
            raise
        raise UserError(
            f"backbone.weights=timm: the pretrained weights of {name} can't be fetched ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); check the network, or give a file with backbone.weights=PATH"
        ) from error


def _feature_maps(backbone: nn.Module) -> list[dict[str, Any]]:
    """What timm knows of the feature maps: channels (`num_chs`) and stride (`reduction`)."""
    maps = backbone.feature_info
    assert isinstance(maps, list)
    return maps


def feature_dim(backbone: nn.Module) -> int:
    """The length of a backbone's pooled vector."""
    dim = backbone.num_features
    assert isinstance(dim, int)
    return dim


class Encoder(nn.Module):
    """A backbone that gives two feature maps: an early one, which knows where edges are, and the last one.

    Attributes:
        low_channels, high_channels: Of the two maps.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        maps = _feature_maps(backbone)
        fine = [number for number, map_ in enumerate(maps) if map_["reduction"] <= LOW_STRIDE]
        low = fine[-1] if fine else len(maps) // 4  # of a transformer all maps have the same size
        self.indices = [low, len(maps) - 1]
        self.low_channels, self.high_channels = (int(maps[index]["num_chs"]) for index in self.indices)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, h, w) to two maps (b, c, h', w')."""
        low, high = self.backbone.forward_intermediates(  # type: ignore[operator]
            images, indices=self.indices, norm=True, intermediates_only=True
        )
        return low, high


def forward_crops(backbone: nn.Module, crops: list[Tensor]) -> Tensor:
    """Pooled features of several crops, with one pass of the backbone for each resolution.

    Args:
        crops: (b, 3, h, w) each; those of equal resolution must be neighbours in the list.

    Returns:
        (len(crops) * b, d), crop by crop.
    """
    groups: list[list[Tensor]] = []
    for crop in crops:
        if groups and groups[-1][0].shape[-2:] == crop.shape[-2:]:
            groups[-1].append(crop)
        else:
            groups.append([crop])
    return torch.cat([backbone(torch.cat(group)) for group in groups])
