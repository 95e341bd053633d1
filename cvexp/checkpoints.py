"""What `backbone.weights` may name, and how it is read: files are data, and never run code."""

from __future__ import annotations

import argparse
import pickle
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.exceptions import MlflowException
from torch import Tensor, nn

from cvexp import tracking
from cvexp.config import Config
from cvexp.errors import UserError
from cvexp.models.backbone import create_backbone

FORMS = "null, timm, a .ckpt, .pth or .safetensors file, runs:/RUN_ID/PATH, models:/NAME@ALIAS, or latest:dino"

# Where a backbone's weights lie in the files that people have. What fits most tensors is taken, the first of equals.
PREFIXES = (
    "teacher.backbone.",  # ours
    "teacher.backbone.features.",  # the course's, its teacher first
    "backbone.features.",
    "encoder.",
    "module.backbone.",  # the original DINO's
    "backbone.",
    "module.",
    "",
)


def metadata(config: Config, run_id: str) -> dict[str, Any]:
    """What a checkpoint says of its run, in plain containers, which safe loading accepts."""
    return {"config": asdict(config), "run_id": run_id}


def load_backbone(config: Config, run: tracking.Run) -> nn.Module:
    """The configured backbone with the configured weights; what was loaded is recorded in the run's tags.

    Raises:
        UserError: when the weights can't be found or read, or none of them fits.
    """
    name, weights = config.backbone.name, config.backbone.weights
    backbone = create_backbone(name, pretrained=weights == "timm", **config.backbone.args)
    if weights is None or weights == "timm":
        return backbone
    with tempfile.TemporaryDirectory() as temporary:
        path = _fetch(weights, config, run, Path(temporary))
        state = _backbone_state(read_state(path), backbone)
    own = backbone.state_dict()
    differing = [key for key in state if key in own and own[key].shape != state[key].shape]
    if differing:
        raise UserError(
            f"backbone.weights: {weights} is of another architecture than {name}: {len(differing)} tensors differ in "
            f"shape, the first is {differing[0]}: {tuple(state[differing[0]].shape)} in the file, "
            f"{tuple(own[differing[0]].shape)} in the backbone; choose the one that they were trained with by backbone="
        )
    fitting = {key: value for key, value in state.items() if key in own}
    if not fitting:
        raise UserError(
            f"backbone.weights: nothing in {weights} fits the backbone {name}; give weights of the same architecture, "
            "or choose another with backbone="
        )
    backbone.load_state_dict(fitting, strict=False)
    missing = sorted(own.keys() - fitting.keys())
    said = f"{len(fitting)} of {len(own)} tensors from {weights}"
    if missing:
        said += f"; left random: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
    run.set_tag("backbone.loaded", said)
    return backbone


def _fetch(weights: str, config: Config, run: tracking.Run, folder: Path) -> Path:
    """The file that `backbone.weights` names."""
    if weights == "latest:dino":
        found = tracking.latest_pretraining(run.client, config)
        run.set_tag("mlflow.parentRunId", found)
        weights = f"runs:/{found}/checkpoints/best.ckpt"
    if weights.startswith(("runs:/", "models:/")):
        try:
            return Path(
                mlflow.artifacts.download_artifacts(weights, dst_path=str(folder), tracking_uri=run.client.tracking_uri)
            )
        except (MlflowException, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"backbone.weights: {weights} can't be fetched ({reason}); `make ui` shows the runs and their artifacts"
            ) from error
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"backbone.weights: there is no file {weights!r}; give {FORMS}")
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, by name.

    Raises:
        UserError: when it is no checkpoint, is cut off, or holds objects that would run code on loading.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the course's files hold their options in one
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: the file holds more than tensors, and reading that could run code, so it was refused; save only "
            "the model's state_dict"
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise UserError(f"{path}: this is no readable checkpoint ({type(error).__name__}); write it again") from error
    for key in ("state_dict", "model", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: the file holds no named tensors; save the model's state_dict")
    return tensors


def _backbone_state(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """The part of a file that names the backbone's tensors, with their names in the backbone."""
    own = backbone.state_dict().keys()
    parts = [
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for prefix in PREFIXES
    ]
    return max(parts, key=lambda part: len(part.keys() & own))
