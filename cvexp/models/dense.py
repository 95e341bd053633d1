"""Feature maps and class attention of any backbone, to look at.

Shapes: b images, c channels, h x w positions of a feature map, n heads, t tokens of a vision transformer: its prefix
tokens (the class token and registers, if there are any), then one for each position.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cvexp.models.backbone import feature_maps, forward_maps, one_line, without_side_effects

SIDE = 14  # positions per side that a map should have
ENOUGH = (12, 6)  # positions per side that it must have, and those of a network that takes only one image size
MAX_ENLARGEMENT = 5  # largest image size relative to the size in training, because features depend on the scale


class DenseView(NamedTuple):
    """Which feature map is looked at, and the side length in pixels of the images.

    Attributes:
        size: Side length of the images in pixels.
        map_index: Position of the map in the backbone's `feature_info`.
        stride: Image pixels per position.
    """

    size: int
    map_index: int
    stride: int


class Dense(NamedTuple):
    """What a backbone computes at each position of a batch of images.

    Attributes:
        maps: The feature map, (b, c, h, w) float32.
        attention: How much each head of the last block attends to each position, (b, n, h, w) float32; None unless the
            backbone is a vision transformer. Without prefix tokens, the weights of a head sum to one.
        of_class_token: Whether the query is the class token. Otherwise it is the mean over all positions.
    """

    maps: Tensor
    attention: Tensor | None
    of_class_token: bool


def choose_view(backbone: nn.Module, trained_size: int, size: int | None = None) -> DenseView:
    """Choose the last feature map that has about 14 positions per side on images that are not enlarged too much.

    Args:
        backbone: A timm model.
        trained_size: Side length in pixels of the images that the backbone is known to accept.
        size: Required side length of the images; None to choose it.

    Raises:
        ValueError: if the backbone has no feature maps, or does not accept the required size.
    """
    if not getattr(backbone, "feature_info", None):
        raise ValueError("it does not describe its feature maps")
    reductions = [int(info["reduction"]) for info in feature_maps(backbone)]
    largest, stride = MAX_ENLARGEMENT * trained_size, min(reductions)
    candidates = [SIDE * r for r in dict.fromkeys(reversed(reductions)) if SIDE * r <= largest]
    candidates = candidates or [largest // stride * stride]
    reason = ""
    for candidate in [*candidates, trained_size] if size is None else [size]:
        images = torch.zeros(1, 3, candidate, candidate).to(next(backbone.parameters()))
        try:
            with without_side_effects(backbone):
                sides = [min(map_bchw.shape[-2:]) for map_bchw in _forward(backbone, images, range(len(reductions)))]
        except Exception as error:  # models raise exceptions of many types
            reason = one_line(error)
        else:
            return DenseView(candidate, index := _choose_map(sides), max(1, candidate // sides[index]))
    raise ValueError(f"it returns no feature maps of images of {size or trained_size} px ({reason})")


def _choose_map(sides: list[int]) -> int:
    """Return the position of the last map with enough positions per side, or else of the last of the largest."""
    for least in ENOUGH:
        if enough := [index for index, side in enumerate(sides) if side >= least]:
            return enough[-1]
    return max(range(len(sides)), key=lambda index: (sides[index], index))


def _forward(backbone: nn.Module, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
    """Compute feature maps (b, c, h, w), normalized if the backbone supports it.

    Raises:
        ValueError: if the backbone returns anything else.
    """
    try:
        maps = forward_maps(backbone, images, list(indices), norm=True)
    except AssertionError:  # some models do not support the normalization of their maps
        maps = forward_maps(backbone, images, list(indices), norm=False)
    if any(features.ndim != 4 for features in maps):
        raise ValueError(f"its feature maps have the shapes {[tuple(features.shape) for features in maps]}")
    return maps


def compute_dense(backbone: nn.Module, images: Tensor, map_index: int) -> Dense:
    """Compute a feature map, and the attention in the last block of a vision transformer.

    The mode of the backbone, its buffers and the random state do not change.

    Args:
        backbone: A timm model.
        images: Normalized images (b, 3, height, width).
        map_index: Position of the map in the backbone's `feature_info`.
    """
    images = images.to(next(backbone.parameters()))
    with (
        without_side_effects(backbone),
        torch.autocast(images.device.type, enabled=False),
        _recorded_attention(backbone) as recorded,
    ):
        (maps_bchw,) = _forward(backbone, images, [map_index])
    of_class_token = has_class_token(backbone)
    attention = _of_query(recorded[-1].float(), backbone, maps_bchw, of_class_token) if recorded else None
    return Dense(maps_bchw.float(), attention, of_class_token and attention is not None)


def has_class_token(backbone: nn.Module) -> bool:
    """Return whether a vision transformer takes its feature vector from a class token, which is then trained."""
    return getattr(backbone, "cls_token", None) is not None and getattr(backbone, "global_pool", "token") == "token"


def _of_query(weights_bntt: Tensor, backbone: nn.Module, maps_bchw: Tensor, of_class_token: bool) -> Tensor | None:
    """Return the attention (b, n, h, w) of the class token, or the mean over all positions, to each position."""
    num_images, _, height, width = maps_bchw.shape
    num_prefix = int(getattr(backbone, "num_prefix_tokens", 0))
    num_tokens = num_prefix + height * width
    if weights_bntt.ndim != 4 or weights_bntt[:, 0].shape != (num_images, num_tokens, num_tokens):
        return None  # for example the attention within windows
    to_positions = weights_bntt[..., num_prefix:]
    of_query = to_positions[:, :, 0] if of_class_token else to_positions[:, :, num_prefix:].mean(2)
    attention: Tensor = of_query.unflatten(-1, (height, width))
    return attention


@contextlib.contextmanager
def _recorded_attention(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Record the attention weights (b, n, t, t) of the last block, if it is one of a vision transformer.

    timm's fused attention does not compute the weights, so it is switched off in this block for the time being.
    """
    recorded: list[Tensor] = []
    blocks = getattr(backbone, "blocks", None)
    has_blocks = isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) > 0
    layers = list(blocks[-1].modules()) if has_blocks else []  # type: ignore[index]
    layer = next((m for m in layers if hasattr(m, "fused_attn") and isinstance(m.attn_drop, nn.Module)), None)
    if layer is None:
        yield recorded
        return
    dropout = layer.attn_drop
    assert isinstance(dropout, nn.Module)
    handle = dropout.register_forward_hook(lambda _module, _inputs, weights: recorded.append(weights))
    is_fused = layer.fused_attn
    layer.fused_attn = False
    try:
        yield recorded
    finally:
        layer.fused_attn = is_fused
        handle.remove()
