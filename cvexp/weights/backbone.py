"""The configured backbone with its weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from cvexp.config import BackboneConfig
from cvexp.errors import UserError, nearest
from cvexp.models import arguments as model_arguments
from cvexp.models import backbone as models
from cvexp.models.arguments import Needs
from cvexp.weights.fitting import fit_backbone
from cvexp.weights.start import Start


def choose_arguments(config: BackboneConfig, needs: Needs) -> dict[str, Any]:
    """Choose the arguments with which the configured backbone meets the needs of a task.

    Raises:
        UserError: naming sizes that the backbone accepts, or its default output stride, if no arguments will do.
    """
    with _explained(config):
        return model_arguments.choose_arguments(config.name, config.args, needs)


def create_backbone(config: BackboneConfig, arguments: dict[str, Any], start: Start) -> nn.Module:
    """Create the configured backbone with its initial weights.

    Args:
        config: Names the backbone.
        arguments: From :func:`choose_arguments`.
        start: The initial weights. What was loaded is noted here.

    Raises:
        UserError: if the backbone can't be created, or the weights don't fit.
    """
    with _explained(config):
        backbone = models.create_backbone(config.name, start.pretrained, **arguments)
    if start.tensors:
        fit_backbone(backbone, start, config.name)
    return backbone


@contextlib.contextmanager
def _explained(config: BackboneConfig) -> Iterator[None]:
    """Turn errors into user errors that name the wrong configuration key."""
    try:
        yield
    except models.UnknownModelError as error:
        raise UserError(f"backbone.name: {error}; {nearest(config.name, models.known_models())}") from error
    except models.ArgumentsError as error:
        raise UserError(f"backbone.args: {error}") from error
    except models.PretrainedWeightsError as error:
        raise UserError(
            f"backbone.weights=timm: {error}; check the internet connection, or give a file with backbone.weights=PATH"
        ) from error
    except model_arguments.StrideError as error:
        raise UserError(f"task.output_stride: {error}") from error
    except model_arguments.SizeError as error:  # the message names the keys
        raise UserError(str(error)) from error
    except models.BackboneError as error:
        raise UserError(
            f"backbone.name: {error}; change backbone.args, or choose another backbone with backbone.name="
        ) from error
