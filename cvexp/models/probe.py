"""What a timm model accepts, found by trying it.

Some models accept only one image size, some need an argument to accept others, and some have only their own output
stride. timm doesn't say which.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import nn

from cvexp.models.backbone import BackboneError, Encoder, create_backbone, feature_dim, feature_maps, one_line

DEFAULT_STRIDE = 16  # of the last map, where the model can have it

# Arguments with which models accept images of another size than their own. None changes the shape of a parameter, so
# that weights trained at one size can be loaded for another.
FLEXIBLE: tuple[dict[str, Any], ...] = (
    {},
    {"dynamic_img_size": True},
    {"dynamic_img_size": True, "dynamic_img_pad": True},  # for sizes that are no multiple of the patch size
    {"strict_img_size": False},
)

SUGGESTED = {*range(32, 128, 16), *range(128, 449, 32), *range(28, 449, 28)}  # image sizes: multiples of patch sizes


class StrideError(BackboneError):
    """A model can't have the output stride that is needed."""


class SizeError(BackboneError):
    """A model can't take images of the sizes that are needed, but it can take others."""


class Needs(NamedTuple):
    """What is needed from a backbone.

    Attributes:
        sizes: Side lengths of its images in pixels, by a name for each, which messages use.
        maps: Whether feature maps are used; otherwise the pooled vector is.
        output_stride: Pixels for each position of the last map; None means 16 if the model can have it, and otherwise
            its own.
    """

    sizes: dict[str, int]
    maps: bool = False
    output_stride: int | None = None


def choose_arguments(name: str, args: dict[str, Any], needs: Needs) -> dict[str, Any]:
    """Choose arguments for `create_backbone` with which a model does what is needed.

    The choice depends on the arguments of this function alone, so that a finished run's backbone can be created again.
    The random state is left as it was.

    Args:
        name: Any name that timm knows.
        args: Arguments that are given, which always win.
        needs: What the model must do.

    Raises:
        BackboneError: if no arguments will do, with sizes that the model accepts, or its own output stride.
    """
    stride = needs.output_stride or DEFAULT_STRIDE
    strides: list[dict[str, Any]] = [{"output_stride": stride}, {}] if needs.maps else [{}]
    sizes = list(FLEXIBLE)
    if len(set(needs.sizes.values())) == 1:
        sizes.append({"img_size": min(needs.sizes.values())})
    own_stride, reason = None, ""
    options = [of_stride | of_size | args for of_stride in strides for of_size in sizes]
    for number, chosen in enumerate(options):
        if chosen in options[:number]:
            continue
        try:
            own_stride = _try(name, chosen, needs)
        except BackboneError:
            if chosen == args:
                raise
        except Exception as error:  # models raise many kinds
            reason = one_line(error) if chosen == args else reason
        else:
            if not needs.maps or own_stride == (needs.output_stride or chosen.get("output_stride", own_stride)):
                return chosen
    if own_stride is not None:
        raise StrideError(
            f"got {stride}, but {name} can't have it, at least not with these arguments; its own is {own_stride}"
        )
    raise _refusal(name, args, needs, reason)


def _try(name: str, args: dict[str, Any], needs: Needs) -> int:
    """Create a model, try it, and return the output stride of its last map."""
    with torch.random.fork_rng(devices=[]):
        backbone = create_backbone(name, **args)
        _check(backbone, needs)
    return int(feature_maps(backbone)[-1]["reduction"])


def _check(backbone: nn.Module, needs: Needs) -> None:
    """Raise an error unless a model does what a task needs, in training mode too."""
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
    """Return the error for a model that can't be used, with sizes that it accepts if there are any."""
    sizes = " and ".join(map(str, dict.fromkeys(needs.sizes.values())))
    accepted = _find_sizes(name, args, needs)
    changed = [key for key, size in accepted.items() if size != needs.sizes[key]]
    if not changed:
        return BackboneError(f"{name} can't be used for this ({reason})")
    remedy = " ".join(f"{key}={size}" for key, size in accepted.items())
    return SizeError(f"{', '.join(changed)}: {name} can't take images of {sizes} px ({reason}); it can with {remedy}")


def _find_sizes(name: str, args: dict[str, Any], needs: Needs) -> dict[str, int]:
    """Return the nearest sizes that a model accepts together, by their names; empty if there are none."""
    best: dict[str, int] = {}
    with torch.random.fork_rng(devices=[]):
        for size in _nearest(max(needs.sizes.values())):  # one size for all
            with contextlib.suppress(Exception):  # models raise many kinds
                _check(create_backbone(name, **{"img_size": size} | args), needs._replace(sizes={"": size}))
                best = dict.fromkeys(needs.sizes, size)
                break
        for option in FLEXIBLE:
            within = _distance(best, needs) if best else max(SUGGESTED)
            with contextlib.suppress(BackboneError):  # it has no such argument
                backbone = create_backbone(name, **option | args)
                sizes = {key: _first_accepted(backbone, size, within, needs) for key, size in needs.sizes.items()}
                complete = {key: size for key, size in sizes.items() if size is not None}
                if len(complete) == len(sizes) and (not best or _distance(complete, needs) < within):
                    best = complete
    return best


def _distance(sizes: dict[str, int], needs: Needs) -> int:
    return sum(abs(size - needs.sizes[key]) for key, size in sizes.items())


def _first_accepted(backbone: nn.Module, wanted: int, within: int, needs: Needs) -> int | None:
    """Return the image size nearest to the wanted one that a model accepts; None if there is none so near."""
    for size in _nearest(wanted):
        if abs(size - wanted) > within:
            break
        with contextlib.suppress(Exception):  # models raise many kinds
            _check(backbone, needs._replace(sizes={"": size}))
            return size
    return None


def _nearest(wanted: int) -> list[int]:
    """List the image sizes to try, nearest to the wanted one first, and of two equally near ones the larger first."""
    return sorted({wanted, *SUGGESTED}, key=lambda size: (abs(size - wanted), -size))
