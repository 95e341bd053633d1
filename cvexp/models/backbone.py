"""Backbones: timm models without their classifier.

Shapes: b images, c channels, h x w pixels of an image or positions of a feature map, d features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session
from torch import Tensor, nn

LOW_STRIDE = 4  # output stride of the low-level feature map, as in the DeepLabV3+ paper

ALIASES = {"resnet_mini": "test_resnet"}  # additional names of timm models


class BackboneError(ValueError):
    """A backbone can't be created, or does not fit the purpose."""


class UnknownModelError(BackboneError):
    """timm has no model of this name."""


class ArgumentsError(BackboneError):
    """A model does not accept the arguments."""


class PretrainedWeightsError(BackboneError):
    """timm's pretrained weights can't be loaded."""


def known_models() -> list[str]:
    """List all names that `create_backbone` accepts."""
    return [*ALIASES, *timm.list_models()]


def create_backbone(name: str, pretrained: bool = False, **args: Any) -> nn.Module:
    """Create a timm model without its classifier.

    Its `forward` returns a pooled feature vector, and its `forward_intermediates` returns feature maps.

    Args:
        name: Any name that timm knows, or one of `ALIASES`.
        pretrained: Whether to load timm's pretrained weights, from the local cache or the Hugging Face Hub.
        args: Passed to `timm.create_model`.

    Raises:
        BackboneError: if the name is unknown, the model does not accept the arguments, or the weights can't be loaded.
    """
    if not timm.is_model(ALIASES.get(name, name)):
        raise UnknownModelError(f"timm has no model {name!r}")
    try:
        with _cache_if_offline() if pretrained else contextlib.nullcontext():
            return timm.create_model(ALIASES.get(name, name), pretrained=pretrained, num_classes=0, **args)
    except Exception as error:  # models raise exceptions of many types
        if isinstance(error, TypeError) and args:
            raise ArgumentsError(f"{name} does not accept {args}: {one_line(error)}") from error
        if pretrained:
            raise PretrainedWeightsError(
                f"the pretrained weights of {name} can't be loaded ({one_line(error)})"
            ) from error
        raise BackboneError(f"{name} can't be created with {args or 'its defaults'} ({one_line(error)})") from error


@contextlib.contextmanager
def _cache_if_offline() -> Iterator[None]:
    """Use only the local cache if the hub can't be reached, because the hub's client would retry for 48 seconds."""
    offline = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # which HTTP library raises it depends on the version of the client
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def one_line(error: Exception) -> str:
    """Return the first line of an error message without its period, or the type of the error if there is no message."""
    lines = str(error).strip().splitlines()
    return lines[0].removesuffix(".") if lines else type(error).__name__


@contextlib.contextmanager
def without_side_effects(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode and disable gradients; restore the mode and the random state afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        model.train(training)


def feature_dim(backbone: nn.Module, image_size: int) -> int:
    """Measure the length of a backbone's feature vector, because timm's `num_features` is not always right.

    Args:
        backbone: A timm model.
        image_size: Side length of the image on which to run it, in pixels.

    Raises:
        ValueError: if the model returns anything but one vector for each image.
    """
    with without_side_effects(backbone):
        output = backbone(torch.zeros(1, 3, image_size, image_size))
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"it returns {shape} instead of one vector for each image")
    return output.shape[1]


def feature_maps(backbone: nn.Module) -> list[dict[str, Any]]:
    """Return timm's description of each feature map: `num_chs` (channels), `reduction` (stride), `module` (name)."""
    infos = backbone.feature_info
    assert isinstance(infos, list)
    return infos


class Encoder(nn.Module):
    """A backbone that returns two feature maps: a low-level one, which locates edges, and the last one.

    Args:
        backbone: A timm model.
        image_size: Side length of the image on which to measure the maps, in pixels.

    Attributes:
        low_channels, high_channels: Number of channels of the two maps.
        stride: Output stride of the last map: image pixels per position.

    Raises:
        ValueError: if the model returns anything but feature maps.
    """

    def __init__(self, backbone: nn.Module, image_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        infos = feature_maps(backbone)
        fine = [index for index, info in enumerate(infos) if info["reduction"] <= LOW_STRIDE]
        low = fine[-1] if fine else len(infos) // 4  # all maps of a plain transformer have the same, larger stride
        self.indices = [low, len(infos) - 1]
        self.stride = int(infos[-1]["reduction"])
        self.norm = True
        with without_side_effects(self):
            images = torch.zeros(1, 3, image_size, image_size)
            try:
                outputs = self(images)
            except AssertionError:  # some models do not support the normalization of their maps
                self.norm = False
                outputs = self(images)
        if any(output.ndim != 4 for output in outputs):
            shapes = [tuple(output.shape) for output in outputs]
            raise ValueError(f"its feature maps have the shapes {shapes} instead of (b, c, h, w)")
        self.low_channels, self.high_channels = (output.shape[1] for output in outputs)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (b, 3, h, w) to a low-level and a last feature map, each (b, c, h', w')."""
        low_bchw, high_bchw = forward_maps(self.backbone, images, self.indices, self.norm)
        return low_bchw, high_bchw


def forward_maps(backbone: nn.Module, images: Tensor, indices: list[int], norm: bool) -> list[Tensor]:
    """Map images (b, 3, h, w) to some of the feature maps, each (b, c, h', w').

    Args:
        backbone: A timm model.
        images: Normalized images.
        indices: Positions of the maps in the backbone's `feature_info`, in ascending order.
        norm: Whether to apply the final normalization to the last map.
    """
    if not hasattr(backbone, "forward_intermediates"):
        return _forward_with_hooks(backbone, images, indices)
    maps: list[Tensor] = backbone.forward_intermediates(  # type: ignore[operator]
        images, indices=indices, norm=norm, intermediates_only=True
    )
    return maps


def _forward_with_hooks(backbone: nn.Module, images: Tensor, indices: list[int]) -> list[Tensor]:
    """Return the outputs of the modules that `feature_info` names."""
    outputs: dict[int, Tensor] = {}

    def store(index: int, output: Tensor) -> None:
        channels = feature_maps(backbone)[index]["num_chs"]
        channels_last = output.ndim == 4 and output.shape[1] != channels == output.shape[3]
        outputs[index] = output.movedim(3, 1) if channels_last else output

    with contextlib.ExitStack() as stack:
        for index in indices:
            module = backbone.get_submodule(feature_maps(backbone)[index]["module"])
            handle = module.register_forward_hook(lambda _module, _inputs, output, index=index: store(index, output))
            stack.callback(handle.remove)
        backbone.forward_features(images)  # type: ignore[operator]
    return [outputs[index] for index in indices]


def forward_crops(backbone: nn.Module, crops: list[Tensor]) -> Tensor:
    """Compute the feature vectors of several crops, with one forward pass of the backbone per resolution.

    Args:
        backbone: Maps images to feature vectors.
        crops: Batches of crops, each (b, 3, h, w). Those of equal resolution must be adjacent.

    Returns:
        (len(crops) * b, d), in the order of the crops.
    """
    groups: list[list[Tensor]] = []
    for crop in crops:
        if groups and groups[-1][0].shape[-2:] == crop.shape[-2:]:
            groups[-1].append(crop)
        else:
            groups.append([crop])
    return torch.cat([backbone(torch.cat(group)) for group in groups])
