"""Backbones: timm models without their classifier."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from cvexp.config import nearest
from cvexp.errors import UserError


def create_backbone(name: str, pretrained: bool = False, **args: Any) -> nn.Module:
    """A timm model that gives a feature map by `forward_features` and one pooled vector by `forward`.

    Args:
        name: Any name that timm knows.
        pretrained: With timm's pretrained weights, fetched from its hub.
        args: Passed to `timm.create_model`.

    Raises:
        UserError: for an unknown name, arguments that the model does not take, and weights that can't be fetched.
    """
    if not timm.is_model(name):
        raise UserError(f"backbone.name: timm has no model {name!r}; {nearest(name, timm.list_models())}")
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


def feature_dim(backbone: nn.Module) -> int:
    """The length of a backbone's pooled vector."""
    dim = backbone.num_features
    assert isinstance(dim, int)
    return dim


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
