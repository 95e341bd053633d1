"""Reading and writing checkpoints. Files are treated as data, and never run code."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cvexp.checkpoints import verify_checksums
from cvexp.config import RunConfig, without_passwords
from cvexp.errors import UserError


class Checkpoint(NamedTuple):
    """What a checkpoint file holds.

    Attributes:
        tensors: The tensors by name.
        config: The configuration of the run that wrote the file, which is not trusted; empty for files of other
            programs.
        encoder: The name of the encoder in the checkpoint; empty for files of other programs.
        run_id: The run that wrote the file; empty for files of other programs.
        classes: Class names, in the order of their labels; None in files of other programs or older versions.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    encoder: str = ""
    run_id: str = ""
    classes: tuple[str, ...] | None = None


def metadata(config: RunConfig, run_id: str, encoder: str, classes: Sequence[str]) -> dict[str, Any]:
    """Return what a checkpoint says about its run, in plain containers, which safe loading accepts."""
    plain = without_passwords(asdict(config))
    return {"config": plain, "run_id": run_id, "encoder": encoder, "classes": list(classes)}


def read_checkpoint(path: Path, name: str = "") -> Checkpoint:
    """Read a checkpoint file, after its checksums are verified if it has any.

    Args:
        path: The file.
        name: What it is called in messages, if that is not its path.

    Raises:
        UserError: if it is not a checkpoint, is damaged, or holds objects that would run code when loaded.
    """
    name = name or str(path)
    try:
        verify_checksums(path)
    except ValueError as error:
        raise UserError(f"{name}: the file is damaged, or can't be read ({error}); copy or fetch it again") from error
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return Checkpoint(load_file(path), {})
        with torch.serialization.safe_globals([argparse.Namespace]):  # type of the options in the course's files
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{name}: the file holds more than tensors, and reading that could run code, so it was refused; save only "
            "the model's state_dict"
        ) from error
    except Exception as error:  # torch and safetensors raise many types for damaged files
        raise UserError(f"{name}: this is not a readable checkpoint ({type(error).__name__}); save it again") from error
    metadata = entry(content, "cvexp")
    for key in ("state_dict", "model", "teacher"):
        content = entry(content, key) or content
    tensors = {}
    if isinstance(content, dict):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{name}: the file holds no named tensors; save the model's state_dict")
    classes = metadata.get("classes")
    return Checkpoint(
        tensors,
        config=entry(metadata, "config"),
        encoder=str(metadata.get("encoder", "")),
        run_id=str(metadata.get("run_id", "")),
        classes=tuple(map(str, classes)) if isinstance(classes, list) else None,
    )


def entry(content: Any, key: str) -> dict[Any, Any]:
    """Return an inner dictionary, or an empty one if there is none."""
    entry = content.get(key) if isinstance(content, dict) else None
    return entry if isinstance(entry, dict) else {}
