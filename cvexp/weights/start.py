"""The weights that the networks of a run start from, and the record of what was loaded where."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvexp.config import RunConfig
from cvexp.console import print_line
from cvexp.tracking.run import ReadOnlyRun
from cvexp.tracking.sink import Sink
from cvexp.weights.locate import locate
from cvexp.weights.read import entry, read_checkpoint

log = logging.getLogger("cvexp")


@dataclass
class Start:
    """The initial weights, and what was loaded of them. By default, there are none, and networks stay random.

    Attributes:
        source: The value of `backbone.weights`.
        pretrained: Whether timm's pretrained weights are loaded.
        tensors: The tensors of a checkpoint, by name.
        encoder: The name of the encoder in that checkpoint; empty if it is unknown.
        dataset, task: The configuration of the data and the task of that checkpoint; empty if they are unknown.
        same_classes: Whether the checkpoint's run had the same data set and classes.
        loaded: For each loaded tensor, its name in the checkpoint and the name in the model.
        left_random: Names of tensors in the model that are not in the checkpoint.
    """

    source: str | None = None
    pretrained: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)
    encoder: str = ""
    dataset: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    same_classes: bool = True
    loaded: dict[str, str] = field(default_factory=dict)
    left_random: list[str] = field(default_factory=list)


def open_start(config: RunConfig, run: ReadOnlyRun) -> Start:
    """Find and read the weights that `backbone.weights` names, and record where they come from.

    A resumed run has its own checkpoint, so nothing is read.

    Raises:
        UserError: if the weights can't be found or read.
    """
    weights = config.backbone.weights
    if run.last_checkpoint is not None:
        return Start()
    if weights in (None, "timm"):
        run.set_tag("start", weights or "random")
        return Start(weights, pretrained=weights == "timm")
    with tempfile.TemporaryDirectory() as temporary:
        location = locate(str(weights), config, run, Path(temporary))
        if location.run_id is not None:
            _link(run, location.run_id)
        run.set_tag("start", location.name)
        checkpoint = read_checkpoint(location.path, str(weights))
    former, dataset = entry(checkpoint.config, "dataset"), asdict(config.dataset)
    same_classes = all(former.get(key) == dataset[key] for key in ("name", "root", "classes"))
    return Start(
        weights,
        tensors=checkpoint.tensors,
        encoder=checkpoint.encoder,
        dataset=former,
        task=entry(checkpoint.config, "task"),
        same_classes=same_classes,
    )


def _link(run: ReadOnlyRun, source: str) -> None:
    """Record the run that the weights come from, also as the parent in MLflow unless a sweep is the parent."""
    run.set_tag("weights_from", source)
    if warning := run.store.run(source, "backbone.weights").data.tags.get("warning"):
        print_line(f"the run {source}, from whose weights this one starts, warned: {warning}", style="bold yellow")
    if "mlflow.parentRunId" not in run.tags():
        run.set_tag("mlflow.parentRunId", source)


def record_start(start: Start, sink: Sink, backbone: str) -> None:
    """Print what was loaded, left out and left random, and record a summary as a tag and all names as an artifact.

    Args:
        start: The weights after all networks were created.
        sink: Where to record it.
        backbone: Name of the backbone.
    """
    if start.pretrained:
        sink.set_tag("backbone.loaded", f"timm's pretrained weights of {backbone}")
    if not start.tensors:
        return
    repeated = [key for key in start.tensors.keys() - start.loaded.keys() if _repeats(start.tensors, key)]
    left_out = sorted(start.tensors.keys() - start.loaded.keys() - set(repeated))
    parts_of_model = [name.partition(".")[0] for name in start.loaded.values()]
    lines = [
        f"{len(start.loaded)} of {len(start.tensors)} tensors loaded from {start.source}",
        ", ".join(f"{parts_of_model.count(part)} into the {part}" for part in dict.fromkeys(parts_of_model)),
    ]
    for words, names in (("given twice", repeated), ("left out", left_out), ("left random", start.left_random)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"{words}: {', '.join(names[:3])}{more}")
    summary = "; ".join(line for line in lines if line)
    log.info("weights: %s", summary)
    sink.set_tag("backbone.loaded", summary)
    full = {"loaded": start.loaded, "given_twice": sorted(repeated), "left_out": left_out}
    sink.log_json({**full, "left_random": start.left_random}, "weights.json")


def _repeats(tensors: dict[str, Tensor], key: str) -> bool:
    """Return whether a tensor repeats one of the encoder's first layers, as in the course's checkpoints."""
    twin = "encoder." + key.removeprefix("low_feat.")
    return key.startswith("low_feat.") and twin in tensors and torch.equal(tensors[key], tensors[twin])
