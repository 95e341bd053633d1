"""What `backbone.weights` may name, and how it is read: files are data, and never run code."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import torch
from mlflow.exceptions import MlflowException
from torch import Tensor, nn

from cvexp import tracking
from cvexp.config import Config, without_passwords
from cvexp.errors import UserError
from cvexp.finished import latest_pretraining
from cvexp.models.backbone import create_backbone

log = logging.getLogger("cvexp")

FORMS = "null, timm, a .ckpt, .pth or .safetensors file, runs:/RUN_ID/PATH, models:/NAME@ALIAS, or latest:dino"

SUFFIXES = (".ckpt", ".pth", ".safetensors")

# Where a backbone's weights lie in the files that people have. What fits most tensors is taken, the first of equals.
PREFIXES = (
    "teacher.backbone.",  # ours
    "model.encoder.backbone.",
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
    return {"config": without_passwords(asdict(config)), "run_id": run_id}


class StartingPoint:
    """Where a run's weights come from: what `backbone.weights` names, and what of it went where.

    A run that goes on has its own checkpoint, so that nothing is read for it.

    Raises:
        UserError: when the weights can't be found or read.
    """

    def __init__(self, config: Config, run: tracking.Run | None) -> None:
        """
        Args:
            config: The run's.
            run: Where it is recorded; None for a model that is filled from its own checkpoint.
        """
        self.config = config.backbone
        self.run = run
        self.goes_on = run is None or run.last_checkpoint is not None
        self.state: dict[str, Tensor] = {}
        self.same_classes = True
        self.loaded: dict[str, str] = {}  # name in the file to name in the model
        self.left_random: list[str] = []
        if run is None or self.goes_on:
            return
        if self.config.weights in (None, "timm"):
            run.set_tag("start", self.config.weights or "random")
        else:
            with tempfile.TemporaryDirectory() as temporary:
                self.state, theirs = read_checkpoint(self._fetch(config, run, Path(temporary)))
            ours = asdict(config.dataset)
            self.same_classes = all(theirs.get(key) == ours[key] for key in ("name", "root", "classes"))

    def backbone(self, arguments: dict[str, Any]) -> nn.Module:
        """The configured backbone with its weights.

        Args:
            arguments: For `create_backbone`, from `choose_arguments`.

        Raises:
            UserError: when it can't be created, none of the weights fits, or one has another shape.
        """
        name, weights = self.config.name, self.config.weights
        pretrained = weights == "timm" and not self.goes_on
        backbone = create_backbone(name, pretrained, **arguments)
        if not self.state:
            return backbone
        own = backbone.state_dict()
        prefix = max(PREFIXES, key=lambda prefix: sum(prefix + key in self.state for key in own))
        found = {key: self.state[prefix + key] for key in own if prefix + key in self.state}
        differing = [key for key in found if own[key].shape != found[key].shape]
        if differing:
            raise UserError(
                f"backbone.weights: {weights} is of another architecture than {name}: {len(differing)} tensors differ "
                f"in shape, the first is {differing[0]}: {tuple(found[differing[0]].shape)} in the file, "
                f"{tuple(own[differing[0]].shape)} in the backbone; choose the one that they were trained with by "
                "backbone="
            )
        if not found:
            raise UserError(
                f"backbone.weights: nothing in {weights} fits the backbone {name}; give weights of the same "
                "architecture, or choose another with backbone="
            )
        backbone.load_state_dict(found, strict=False)
        self.loaded |= {prefix + key: f"backbone.{key}" for key in found}
        self.left_random += [f"backbone.{key}" for key in own if key not in found]
        return backbone

    def load_decoder(self, model: nn.Module, of_classes: str) -> None:
        """Take what follows the encoder too, where the file has what fits: the course's decoder, or parts of ours.

        Args:
            model: The segmenter, whose `encoder` is left alone.
            of_classes: The part whose tensors mean certain classes; it is taken only from a run with the same ones.
        """
        if not self.state:
            return
        own = model.state_dict()
        for name, value in own.items():
            part = name.partition(".")[0]
            if part == "encoder":
                continue
            for source in (f"model.{name}", _course_name(name)):
                found = self.state.get(source)
                if found is None or (part == of_classes and not self.same_classes):
                    continue
                if part == "classifier" and len(found) == 2 and len(value) == 1:
                    found = found[1:] - found[:1]  # softmax over background and foreground is one sigmoid
                if found.shape == value.shape:
                    own[name] = found
                    self.loaded[source] = name
                    break
            else:
                self.left_random.append(name)
        model.load_state_dict(own)

    def record(self) -> None:
        """Print what was loaded, left out and left random, and record it: in short as a tag, in full as an artifact."""
        if self.run is None or self.goes_on:
            return
        if self.config.weights == "timm":
            self.run.set_tag("backbone.loaded", f"timm's pretrained weights of {self.config.name}")
        if not self.state:
            return
        repeated = [key for key in self.state.keys() - self.loaded.keys() if self._repeats(key)]
        left_out = self.state.keys() - self.loaded.keys() - set(repeated)
        parts = [f"{len(self.loaded)} of {len(self.state)} tensors loaded from {self.config.weights}"]
        for said, names in (
            ("into", [name.partition(".")[0] for name in self.loaded.values()]),
            ("given twice", repeated),
            ("left out", sorted(left_out)),
            ("left random", self.left_random),
        ):
            if names and said == "into":
                parts.append(", ".join(f"{names.count(part)} into the {part}" for part in dict.fromkeys(names)))
            elif names:
                parts.append(f"{said}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}")
        log.info("weights: %s", "; ".join(parts))
        self.run.set_tag("backbone.loaded", "; ".join(parts))
        record = {"loaded": self.loaded, "given_twice": sorted(repeated), "left_out": sorted(left_out)}
        self.run.log_json({**record, "left_random": self.left_random}, "weights.json")

    def _repeats(self, key: str) -> bool:
        """Whether a tensor is the course's second view of its encoder's first layers."""
        twin = "encoder." + key.removeprefix("low_feat.")
        return key.startswith("low_feat.") and twin in self.state and torch.equal(self.state[key], self.state[twin])

    def _fetch(self, config: Config, run: tracking.Run, folder: Path) -> Path:
        """The file that `backbone.weights` names."""
        weights = str(self.config.weights)
        if weights == "latest:dino":  # a run that was interrupted before its first checkpoint has chosen already
            source = run.source or latest_pretraining(run.client, config)
            weights = f"runs:/{source}/checkpoints/best.ckpt"
        if weights.startswith("models:/"):
            return self._fetch_registered(weights, run, folder)
        if weights.startswith("runs:/"):
            run.set_tag("start", run.link_source(weights.split("/")[1]))
            return download(weights, run.client, folder, key="backbone.weights")
        run.set_tag("start", Path(weights).stem)
        path = Path(weights)
        if not path.is_file():
            raise UserError(f"backbone.weights: there is no file {weights!r}; give {FORMS}")
        return path

    @staticmethod
    def _fetch_registered(weights: str, run: tracking.Run, folder: Path) -> Path:
        """The checkpoint of a version in MLflow's model registry: models:/NAME@ALIAS, or models:/NAME/VERSION."""
        name, at, alias = weights.removeprefix("models:/").partition("@")
        try:
            if at:
                version = run.client.get_model_version_by_alias(name, alias)
            else:
                version = run.client.get_model_version(*name.rsplit("/", 1))
            source = run.client.get_model_version_download_uri(version.name, version.version)
        except (MlflowException, TypeError) as error:
            raise UserError(
                f"backbone.weights: the registry has no {weights} ({str(error).splitlines()[0]}); `make ui` shows its "
                "models, and models:/NAME@ALIAS or models:/NAME/VERSION names one"
            ) from error
        run.set_tag("start", run.link_source(version.run_id) if version.run_id else name)
        path = download(source, run.client, folder, key="backbone.weights")
        found = [file for file in sorted(path.rglob("*")) if file.suffix in SUFFIXES] if path.is_dir() else [path]
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise UserError(
                f"backbone.weights: {weights} is a folder and should hold one checkpoint, but holds {names}; register "
                "the file itself"
            )
        return found[0]


def download(uri: str, client: mlflow.MlflowClient, folder: Path, key: str) -> Path:
    """Fetch an artifact of MLflow.

    Raises:
        UserError: naming the key that asked for it, when there is none.
    """
    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=client.tracking_uri))
    except (MlflowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{key}: {uri} can't be fetched ({reason}); `make ui` shows the runs and their artifacts"
        ) from error


class Checkpoint(NamedTuple):
    """What a checkpoint file holds.

    Attributes:
        tensors: By name.
        dataset: The configuration of what it was trained on; empty in files that aren't ours.
    """

    tensors: dict[str, Tensor]
    dataset: dict[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file.

    Raises:
        UserError: when it is no checkpoint, is cut off, or holds objects that would run code on loading.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return Checkpoint(load_file(path), {})
        with torch.serialization.safe_globals([argparse.Namespace]):  # the course's files hold their options in one
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: the file holds more than tensors, and reading that could run code, so it was refused; save only "
            "the model's state_dict"
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise UserError(f"{path}: this is no readable checkpoint ({type(error).__name__}); write it again") from error
    dataset = content
    for key in ("cvexp", "config", "dataset"):
        dataset = _entry(dataset, key)
    for key in ("state_dict", "model", "teacher"):
        content = _entry(content, key) or content
    tensors = {}
    if isinstance(content, dict):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: the file holds no named tensors; save the model's state_dict")
    return Checkpoint(tensors, dataset)


def _entry(content: Any, key: str) -> dict[Any, Any]:
    """An inner dictionary, empty where there is none."""
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


# The names of the decoder in the course's binary_segmentation.pth, for ours.
COURSE_NAMES = (
    (r"decoder\.aspp\.convs\.4\.([12])\.", r"decoder.global_avg_pool.\1."),
    *((rf"decoder\.aspp\.convs\.{i}\.0\.", f"decoder.aspp{i + 1}.atrous_convolution.") for i in range(4)),
    *((rf"decoder\.aspp\.convs\.{i}\.1\.", f"decoder.aspp{i + 1}.bn.") for i in range(4)),
    (r"decoder\.aspp\.project\.0\.", "decoder.conv1."),
    (r"decoder\.aspp\.project\.1\.", "decoder.bn1."),
    (r"decoder\.reduce_low\.0\.", "decoder.conv2."),
    (r"decoder\.reduce_low\.1\.", "decoder.bn2."),
    (r"decoder\.refine\.", "decoder.last_conv."),
    (r"classifier\.", "decoder.last_conv.6."),
)


def _course_name(name: str) -> str:
    for pattern, course in COURSE_NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, course, name)
    return name
