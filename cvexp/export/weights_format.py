"""The weights of a pretrained backbone, under the names that timm gives them (.safetensors)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from cvexp.data.augment.normalization import Normalization
from cvexp.errors import UserError
from cvexp.export.about import KEY, About, digest, parse
from cvexp.export.formats import FileFormat, Run
from cvexp.export.subject import Outputs, Subject, quiet


class Weights(FileFormat):
    """Weights for `timm.create_model(name, num_classes=0, checkpoint_path=...)`."""

    name = "safetensors"
    file_name = "backbone.safetensors"

    def write(self, subject: Subject, path: Path, about: About, is_dynamic: bool) -> None:
        network: Any = subject.graph.network
        tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        complete = {**about, "digest": _digest(tensors)}
        path.write_bytes(save(tensors, {"format": "pt", KEY: json.dumps(complete)}))

    def load(self, path: Path) -> Run:
        about = self.read_about(path)
        with quiet():
            model = timm.create_model(about["backbone"], num_classes=0, checkpoint_path=str(path), **about["args"])
        model.eval().requires_grad_(False)
        normalize = Normalization(about["mean"], about["std"])

        def run(images: Tensor) -> Outputs:
            return {"features": model(normalize(images))}

        return run

    def read_about(self, path: Path) -> About:
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
        except Exception as error:  # safetensors raises many types for damaged files
            raise UserError(f"{path}: this is not a readable .safetensors file ({type(error).__name__})") from error
        return parse(metadata.get(KEY), str(path))

    def check(self, path: Path, about: About, fresh: Path) -> Run:
        tensors, expected = load_file(path), load_file(fresh)  # mapped into memory, so a huge file does no harm
        if _outline(tensors) != _outline(expected) or _digest(tensors) != _digest(expected):
            raise UserError(f"{path}: its weights are not those of the checkpoint; export it again")
        return self.load(fresh)


def _outline(tensors: dict[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _digest(tensors: dict[str, Tensor]) -> str:
    return digest({name: tensor.numpy() for name, tensor in tensors.items()})
