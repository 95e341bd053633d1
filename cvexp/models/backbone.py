"""Backbones: timm models without their classifier."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session
from torch import Tensor, nn

LOW_STRIDE = 4  # of the low-level feature map, as in the DeepLabV3+ paper

NAMES = {"resnet_mini": "test_resnet"}  # our own names of timm models


class BackboneError(ValueError):
    """A backbone can't be created, or can't do what is needed."""


class UnknownModelError(BackboneError):
    """timm has no model of this name."""


class ArgumentsError(BackboneError):
    """A model does not accept the arguments."""


class PretrainedWeightsError(BackboneError):
    """timm's pretrained weights can't be loaded."""


def known_models() -> list[str]:
    """List all names that `create_backbone` accepts."""
    return [*NAMES, *timm.list_models()]


def create_backbone(name: str, pretrained: bool = False, **args: Any) -> nn.Module:
    """Create a timm model without its classifier.

    It gives feature maps by `forward_intermediates`, and one pooled vector by `forward`.

    Args:
        name: Any name that timm knows, or one of `NAMES`.
        pretrained: Whether to load timm's pretrained weights, from the local cache or its hub.
        args: Passed to `timm.create_model`.

    Raises:
        BackboneError: for an unknown name, arguments that the model does not accept, or weights that can't be loaded.
    """
    if not timm.is_model(NAMES.get(name, name)):
        raise UnknownModelError(f"timm has no model {name!r}")
    try:
        with _cache_if_offline() if pretrained else contextlib.nullcontext():
            return timm.create_model(NAMES.get(name, name), pretrained=pretrained, num_classes=0, **args)
    except Exception as error:  # models raise many kinds
        if isinstance(error, TypeError) and args:
            raise ArgumentsError(f"{name} refuses {args}: {one_line(error)}") from error
        if pretrained:
            raise PretrainedWeightsError(
                f"the pretrained weights of {name} can't be loaded ({one_line(error)})"
            ) from error
        raise BackboneError(f"{name} can't be created with {args or 'its defaults'} ({one_line(error)})") from error


@contextlib.contextmanager
def _cache_if_offline() -> Iterator[None]:
    """Use the local cache alone when the hub can't be reached, where its client would retry for 48 seconds."""
    offline = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of an HTTP library that depends on the client's version
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def one_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Run a model without leaving a trace: in evaluation mode, without gradients, with the random state restored."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        model.train(training)


def feature_dim(backbone: nn.Module, image_size: int) -> int:
    """Measure the length of a backbone's pooled vector, because timm's `num_features` is not always right.

    Args:
        backbone: A timm model.
        image_size: Side length of the image that is tried, in pixels.

    Raises:
        ValueError: if the model returns anything but one vector for each image.
    """
    with _measuring(backbone):
        features = backbone(torch.zeros(1, 3, image_size, image_size))
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"it returns {shape} instead of one vector for each image")
    return features.shape[1]


def feature_maps(backbone: nn.Module) -> list[dict[str, Any]]:
    """Return what timm knows about the feature maps: channels (`num_chs`), stride (`reduction`), place (`module`)."""
    maps = backbone.feature_info
    assert isinstance(maps, list)
    return maps


class Encoder(nn.Module):
    """A backbone that returns two feature maps: a low-level one, which locates edges, and the last one.

    Args:
        backbone: A timm model.
        image_size: Side length in pixels of the image on which the maps are measured.

    Attributes:
        low_channels, high_channels: Number of channels of the two maps.
        stride: Pixels of the image for each position of the last map.

    Raises:
        ValueError: if the model returns anything but feature maps.
    """

    def __init__(self, backbone: nn.Module, image_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        maps = feature_maps(backbone)
        fine = [number for number, map_ in enumerate(maps) if map_["reduction"] <= LOW_STRIDE]
        low = fine[-1] if fine else len(maps) // 4  # of a transformer all maps have the same size
        self.indices = [low, len(maps) - 1]
        self.stride = int(maps[-1]["reduction"])
        self.norm = True
        with _measuring(self):
            images = torch.zeros(1, 3, image_size, image_size)
            try:
                measured = self(images)
            except AssertionError:  # some models can't normalize their maps
                self.norm = False
                measured = self(images)
        if any(map_.ndim != 4 for map_ in measured):
            raise ValueError(f"its feature maps have the shapes {[tuple(map_.shape) for map_ in measured]}")
        self.low_channels, self.high_channels = (map_.shape[1] for map_ in measured)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (b, 3, h, w) to two feature maps (b, c, h', w')."""
        if not hasattr(self.backbone, "forward_intermediates"):
            return self._hooked(images)
        low, high = self.backbone.forward_intermediates(  # type: ignore[operator]
            images, indices=self.indices, norm=self.norm, intermediates_only=True
        )
        return low, high

    def _hooked(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of the modules that `feature_info` names."""
        outputs: dict[int, Tensor] = {}

        def keep(index: int, output: Tensor) -> None:
            channels = feature_maps(self.backbone)[index]["num_chs"]
            channels_last = output.ndim == 4 and output.shape[1] != channels == output.shape[3]
            outputs[index] = output.movedim(3, 1) if channels_last else output

        with contextlib.ExitStack() as stack:
            for index in self.indices:
                module = self.backbone.get_submodule(feature_maps(self.backbone)[index]["module"])
                handle = module.register_forward_hook(lambda _module, _inputs, output, index=index: keep(index, output))
                stack.callback(handle.remove)
            self.backbone.forward_features(images)  # type: ignore[operator]
        low, high = (outputs[index] for index in self.indices)
        return low, high


def forward_crops(backbone: nn.Module, crops: list[Tensor]) -> Tensor:
    """Compute the pooled features of several crops, with one pass of the backbone for each resolution.

    Args:
        crops: (b, 3, h, w) each. Those of equal resolution must be next to each other.

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
