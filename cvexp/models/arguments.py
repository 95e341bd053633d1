"""Tests of the arguments, image sizes and output strides that a timm model supports.

Some models accept only one image size, some need an argument to accept others, and some support only one output
stride. timm does not document which.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import nn

from cvexp.models.backbone import (
    ArgumentsError,
    BackboneError,
    Encoder,
    create_backbone,
    feature_dim,
    feature_maps,
    one_line,
)

DEFAULT_STRIDE = 16  # output stride of the last map, if the model supports it

# Arguments with which models accept image sizes other than their default. None of them changes the shape of a
# parameter, so weights that were trained at one size can be loaded for another.
FLEXIBLE: tuple[dict[str, Any], ...] = (
    {},
    {"dynamic_img_size": True},
    {"dynamic_img_size": True, "dynamic_img_pad": True},  # for sizes that are not multiples of the patch size
    {"strict_img_size": False},
)

# With these, a configuration from a store or a checkpoint could make timm read or fetch any file.
LOADING = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}

SUGGESTED = {*range(32, 128, 16), *range(128, 449, 32), *range(28, 449, 28)}  # image sizes: multiples of patch sizes


class StrideError(BackboneError):
    """A model does not support the required output stride."""


class SizeError(BackboneError):
    """A model does not accept images of the required sizes, but accepts others."""


class Needs(NamedTuple):
    """Requirements for a backbone.

    Attributes:
        sizes: Maps the name of each image size, as messages show it, to its side length in pixels.
        maps: Whether to use its feature maps, rather than its feature vector.
        output_stride: Output stride of the last map: image pixels per position. None means 16 if the model supports
            it, and otherwise its default.
    """

    sizes: dict[str, int]
    maps: bool = False
    output_stride: int | None = None


def choose_arguments(name: str, args: dict[str, Any], needs: Needs) -> dict[str, Any]:
    """Choose arguments for `create_backbone` with which a model meets the requirements.

    The choice depends only on the arguments of this function, so the backbone of a finished run can be created again.
    The random state does not change.

    Args:
        name: Any name that `create_backbone` accepts.
        args: Arguments that take precedence over the chosen ones.
        needs: The requirements.

    Returns:
        The chosen arguments, including `args`.

    Raises:
        BackboneError: if there are no such arguments. The message names sizes that the model accepts, or its default
            output stride.
        ArgumentsError: if an argument would load weights.
    """
    if loading := sorted(LOADING & args.keys()):
        raise ArgumentsError(f"leave out {', '.join(loading)}: arguments must not load weights or other files")
    stride = needs.output_stride or DEFAULT_STRIDE
    stride_options: list[dict[str, Any]] = [{"output_stride": stride}, {}] if needs.maps else [{}]
    size_options = list(FLEXIBLE)
    if len(set(needs.sizes.values())) == 1:
        size_options.append({"img_size": min(needs.sizes.values())})
    own_stride, reason = None, ""
    options = [stride_option | size_option | args for stride_option in stride_options for size_option in size_options]
    for index, chosen in enumerate(options):
        if chosen in options[:index]:
            continue
        try:
            own_stride = _measure_stride(name, chosen, needs)
        except BackboneError:
            if chosen == args:
                raise
        except Exception as error:  # models raise exceptions of many types
            reason = one_line(error) if chosen == args else reason
        else:
            if not needs.maps or own_stride == (needs.output_stride or chosen.get("output_stride", own_stride)):
                return chosen
    if own_stride is not None:
        raise StrideError(
            f"got {stride}, but {name} does not support it with these arguments; its default is {own_stride}"
        )
    raise _refusal(name, args, needs, reason)


def _measure_stride(name: str, args: dict[str, Any], needs: Needs) -> int:
    """Create a model, check it, and return the output stride of its last map."""
    with torch.random.fork_rng(devices=[]):
        backbone = create_backbone(name, **args)
        _check(backbone, needs)
    return int(feature_maps(backbone)[-1]["reduction"])


def _check(backbone: nn.Module, needs: Needs) -> None:
    """Raise an error unless a model meets the requirements, in evaluation and in training mode."""
    sizes = sorted(set(needs.sizes.values()))
    if needs.maps:
        network: nn.Module = Encoder(backbone, sizes[0])
    else:
        network = backbone
        lengths = {feature_dim(backbone, size) for size in sizes}
        if len(lengths) > 1:
            raise ValueError(f"the length of its features depends on the image size: {sorted(lengths)}")
    with torch.no_grad():
        network.train()(torch.zeros(2, 3, sizes[0], sizes[0]))


def _refusal(name: str, args: dict[str, Any], needs: Needs, reason: str) -> BackboneError:
    """Return the error for a model that can't be used, which names sizes that the model accepts, if there are any."""
    sizes = " and ".join(map(str, dict.fromkeys(needs.sizes.values())))
    accepted = _find_sizes(name, args, needs)
    changed = [key for key, size in accepted.items() if size != needs.sizes[key]]
    if not changed:
        return BackboneError(f"{name} can't be used ({reason})")
    remedy = " ".join(f"{key}={size}" for key, size in accepted.items())
    return SizeError(f"{', '.join(changed)}: {name} can't take images of {sizes} px ({reason}); it can with {remedy}")


def _find_sizes(name: str, args: dict[str, Any], needs: Needs) -> dict[str, int]:
    """Return the nearest sizes that a model accepts with the same arguments, by name; empty if there are none."""
    best: dict[str, int] = {}
    with torch.random.fork_rng(devices=[]):
        for size in _nearest(max(needs.sizes.values())):  # the same size for all images
            with contextlib.suppress(Exception):  # models raise exceptions of many types
                _check(create_backbone(name, **{"img_size": size} | args), needs._replace(sizes={"": size}))
                best = dict.fromkeys(needs.sizes, size)
                break
        for option in FLEXIBLE:
            max_distance = _distance(best, needs) if best else max(SUGGESTED)
            with contextlib.suppress(BackboneError):  # the model may have no such argument
                backbone = create_backbone(name, **option | args)
                nearest = {
                    key: _nearest_accepted(backbone, size, max_distance, needs) for key, size in needs.sizes.items()
                }
                complete = {key: size for key, size in nearest.items() if size is not None}
                if len(complete) == len(nearest) and (not best or _distance(complete, needs) < max_distance):
                    best = complete
    return best


def _distance(sizes: dict[str, int], needs: Needs) -> int:
    """Return the sum of the absolute differences between the given and the required sizes."""
    return sum(abs(size - needs.sizes[key]) for key, size in sizes.items())


def _nearest_accepted(backbone: nn.Module, wanted: int, max_distance: int, needs: Needs) -> int | None:
    """Return the accepted image size that is nearest to the wanted one, or None if none is within `max_distance`."""
    for size in _nearest(wanted):
        if abs(size - wanted) > max_distance:
            break
        with contextlib.suppress(Exception):  # models raise exceptions of many types
            _check(backbone, needs._replace(sizes={"": size}))
            return size
    return None


def _nearest(wanted: int) -> list[int]:
    """List the image sizes to try, nearest to the wanted one first; of two equally near sizes, the larger first."""
    return sorted({wanted, *SUGGESTED}, key=lambda size: (abs(size - wanted), -size))
