"""`task=register`: a finished training run as a version of a model in MLflow's registry."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from omegaconf import MISSING

from cvexp.config import RunConfig, TaskConfig
from cvexp.console import print_line
from cvexp.data.files.listing import list_images
from cvexp.errors import UserError
from cvexp.export.about import About, describe
from cvexp.export.files import ExportError, write
from cvexp.export.onnx_format import Onnx
from cvexp.export.subject import Subject
from cvexp.export.verification import summarize
from cvexp.inference.loading import make_network
from cvexp.keys import number, require
from cvexp.promotion import Contest, Rules, compare
from cvexp.tasks.compare import obstacle
from cvexp.tasks.export import NUM_IMAGES, fingerprints, prepare, validation_pictures
from cvexp.tasks.neighbors import read_picture
from cvexp.tracking import registry
from cvexp.tracking.finished import FinishedRun, find_trained_run
from cvexp.tracking.registry import Parts, Version
from cvexp.tracking.run import ReadOnlyRun
from cvexp.weights.locate import locate_artifact
from cvexp.weights.read import read_checkpoint

SHOWN = ("best/miou", "test/miou", "best/knn_top1")  # metrics that are tags of a version


@dataclass(kw_only=True)
class Config(TaskConfig):
    works_on: ClassVar[str | None] = "run"

    model: str | None = MISSING
    alias: str | None = MISSING
    force: bool = MISSING
    images: list[str] = MISSING
    tolerance: float = number(above=0)
    samples: int = number(100)
    confidence: float = number(above=0, below=1)
    knn_k: int = number(1)
    knn_bank: int = number(1)

    def __post_init__(self) -> None:
        if self.model is not None:  # what MLflow refuses, and what it could not find by models:/NAME@ALIAS
            is_addressable = re.fullmatch(r"[^/:@?#%]*[^/:@?#%.\s][^/:@?#%]*", self.model) is not None
            require(is_addressable, "task.model", self.model, "a name without the characters / : @ ? # %")
        if self.alias is not None:
            is_alias = re.fullmatch(r"(?!latest$|v\d+$)[\w-]+", self.alias, re.IGNORECASE) is not None
            needed = "null, or letters, digits, - and _, such as champion, but neither latest nor a version such as v1"
            require(is_alias, "task.alias", self.alias, needed)


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Register the best checkpoint of a run, and let the alias name it if it is better than what the alias names.

    Raises:
        UserError: if there is no finished training run, or its network can't be exported as ONNX.
    """
    task = config.task
    assert isinstance(task, Config)
    if task.model is None:
        raise UserError("task.model: name the registered model, such as task.model=animals")
    finished = find_trained_run(run.store, config, "segmentation", "pretraining")
    run.set_tag("of_run", finished.id)
    version = registry.find_version(run.store, task.model, finished.id)
    if version is None:
        version = register(finished, task, task.model, run)
        print_line(f"{version.uri}: the best checkpoint of the run {finished.id}, {finished.name}")
    else:
        print_line(f"{version.uri}: the run {finished.id} was registered before, so there is no new version")
    run.set_tag("model", version.uri)
    if task.alias is not None:
        assign(task.alias, version, finished, config, run)


def register(finished: FinishedRun, task: Config, name: str, run: ReadOnlyRun) -> Version:
    """Export the network of a run, and register the ONNX file together with its checkpoint.

    Raises:
        UserError: if the checkpoint or the images can't be read, or the network can't be exported.
    """
    try:
        exporter = Onnx()
    except UserError as error:
        raise UserError("task: register needs the packages of pip install 'cvexp[export]'") from error
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = locate_artifact(f"runs:/{finished.id}", run.store, folder, key="run").path
        content = read_checkpoint(checkpoint, f"runs:/{finished.id}")
        classes = content.classes or tuple(finished.classes)
        subject = Subject(make_network(content, f"run {finished.id}", classes, torch.device("cpu")))
        paths = list_images(task.images, "task.images")[:NUM_IMAGES] if task.images else []
        images = prepare(subject, [read_picture(str(path)) for path in paths] or validation_pictures(finished))
        about = describe(subject, finished.id, "best", fingerprints(finished))
        onnx = folder / exporter.file_name
        try:
            written = write(exporter, subject, onnx, about, images, task.tolerance)
        except ExportError as error:
            raise UserError(
                f"run: {finished.id} can't be registered, because its network can't be exported as ONNX ({error})"
            ) from error
        print_line(f"{onnx.name}: {onnx.stat().st_size / 1e6:.1f} MB, {summarize(written.agreement)}")
        parts = Parts(onnx, checkpoint, known(finished, written.about), tags(finished, written.about))
        return registry.register(run.store, name, finished, parts, folder)


def known(finished: FinishedRun, about: About) -> About:
    """Return what a model says about itself: the description in the ONNX file, and the scores of the run."""
    metrics = {key: value for key, value in finished.metrics.items() if key.startswith(("best/", "test/"))}
    return {**about, "metrics": metrics, "selected": finished.tags.get("selected", "")}


def tags(finished: FinishedRun, about: About) -> dict[str, str]:
    """Return the tags of a version."""
    data = {f"data.{split}.fingerprint": fingerprint for split, fingerprint in about["data"].items()}
    scores = {key: f"{finished.metrics[key]:.4f}" for key in SHOWN if key in finished.metrics}
    return {
        "task": finished.task,
        "backbone": about["backbone"],
        "classes": json.dumps(about["classes"])[:5000],  # a limit of older servers
        "selected": finished.tags.get("selected", ""),
        **scores,
        **data,
    }


class Decision(NamedTuple):
    """Whether an alias moves to a new version.

    Attributes:
        moves: Whether it does.
        reason: Why.
        contest: The comparison with the version that has the alias, if there was one.
    """

    moves: bool
    reason: str
    contest: Contest | None = None


def assign(alias: str, version: Version, finished: FinishedRun, config: RunConfig, run: ReadOnlyRun) -> None:
    """Let an alias name a version if that is better than the version that it names, and record why."""
    current = registry.aliased(run.store, version.model, alias)
    if current == version:
        print_line(f"{alias}: already version {version.number}")
        return
    while True:
        decision = decide(current, version, finished, config, run)
        latest = registry.aliased(run.store, version.model, alias)
        if latest == current:
            break
        current = latest  # another process has moved the alias during the comparison
    if decision.moves:
        registry.move_alias(run.store, alias, version)
        print_line(f"{alias}: now version {version.number}: {decision.reason}")
    else:
        assert current is not None
        print_line(f"{alias}: still version {current.number}: {decision.reason}")
    registry.tag_version(run.store, version, f"alias.{alias}", decision.reason)
    contest = {} if decision.contest is None else decision.contest._asdict()
    record = {"alias": alias, "version": version.uri, "current": current.uri if current else None}
    run.log_json({**record, "moved": decision.moves, "reason": decision.reason, **contest}, "register/decision.json")


def decide(
    current: Version | None, version: Version, finished: FinishedRun, config: RunConfig, run: ReadOnlyRun
) -> Decision:
    """Decide whether an alias moves from the version that it now names to another one, which comes from a run."""
    task = config.task
    assert isinstance(task, Config)
    if current is None:
        return Decision(True, "it named no version before")
    if task.force:
        return Decision(True, f"moved by task.force from version {current.number}, without a comparison")
    remedy = "task.force=true moves it"
    try:
        other = FinishedRun(run.store, run.store.run(current.run_id, "task.alias"), config)
        if reason := _obstacle(finished, other):
            return Decision(False, f"it can't be compared with version {version.number}, because {reason}; {remedy}")
        contest = compare(finished, other, Rules(task.samples, task.confidence, task.knn_k, task.knn_bank), config)
    except UserError as error:
        return Decision(False, f"it can't be compared with version {version.number} ({error}); {remedy}")
    if contest.split == "val":
        print_line(
            "warning: there is no test split, so the networks are compared on the validation images, which also chose "
            "their checkpoints",
            style="bold yellow",
        )
    if contest.is_better:
        return Decision(True, str(contest), contest)
    return Decision(False, f"version {version.number} has {contest}; {remedy} anyway", contest)


def _obstacle(first: FinishedRun, second: FinishedRun) -> str | None:
    if first.role != second.role:
        return f"one is of task={first.task}, and the other of task={second.task}"
    return obstacle(first, second)
