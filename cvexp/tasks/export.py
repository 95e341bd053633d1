"""`task=export`: the network of a finished run as files for use without cvexp."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from omegaconf import MISSING
from PIL import Image
from torch import Tensor

from cvexp import data, progress
from cvexp.config import RunConfig, TaskConfig
from cvexp.console import print_line
from cvexp.data.crops import Crops
from cvexp.data.examples import sample
from cvexp.data.files.listing import list_images
from cvexp.data.prepare import Use
from cvexp.errors import UserError, opening
from cvexp.export.about import About, describe, other_versions
from cvexp.export.files import FORMATS, ExportError, Written, verify, write
from cvexp.export.formats import FileFormat
from cvexp.export.subject import Subject
from cvexp.export.verification import Agreement, summarize
from cvexp.inference.embedder import Embedder
from cvexp.inference.loading import make_network
from cvexp.inference.segmenter import Segmenter
from cvexp.keys import choice, number, require
from cvexp.tasks.neighbors import read_picture
from cvexp.tracking.finished import FinishedRun, find_trained_run
from cvexp.tracking.run import ReadOnlyRun
from cvexp.weights.locate import locate_artifact
from cvexp.weights.read import read_checkpoint

CHECKPOINTS = ("best", "last")
NUM_IMAGES = 8  # validation images on which files are verified


@dataclass(kw_only=True)
class Config(TaskConfig):
    works_on: ClassVar[str | None] = "run"

    formats: list[str] | None = choice(*FORMATS)
    checkpoint: str = choice(*CHECKPOINTS)
    out: str | None = MISSING
    images: list[str] = MISSING
    tolerance: float = number(above=0)
    verify: str | None = MISSING

    def __post_init__(self) -> None:
        require(self.formats != [], "task.formats", self.formats, f"null, or some of {', '.join(FORMATS)}")


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Write the files, verify them, and record them and their differences in `run`; or verify a file that exists.

    Raises:
        UserError: if there is no finished training run, a file can't be written, or a file differs from the network.
    """
    task = config.task
    assert isinstance(task, Config)
    files = list_images(task.images, "task.images") if task.images else []
    pictures = [read_picture(str(path)) for path in files]
    if task.verify is not None:
        verify_file(config, Path(task.verify), pictures, run)
        return
    finished = find_trained_run(run.store, config, "segmentation", "pretraining")
    run.set_tag("of_run", finished.id)
    formats = choose_formats(task.formats, finished)
    folder = Path(task.out or Path(config.tracking.folder) / "export" / f"{finished.id}-{task.checkpoint}")
    for kind in formats:
        check_place(folder / kind.file_name, kind, finished.id, task.checkpoint)
    subject = Subject(load_network(finished, task.checkpoint))
    images = prepare(subject, pictures or validation_pictures(finished))
    about = describe(subject, finished.id, task.checkpoint, fingerprints(finished))
    print_line(f"{finished.name}: run {finished.id}, {task.checkpoint} checkpoint")
    failures = []
    for kind in formats:
        path = folder / kind.file_name
        is_replaced = path.exists()
        try:
            with progress.step(f"writing and verifying {kind.name}"):
                written = place(kind, subject, path, about, images, task.tolerance)
        except ExportError as error:
            failures.append(f"{kind.name} ({error})")
            continue
        run.log_file(path, "export")
        record(run, kind, written.agreement)
        size = f"{path.stat().st_size / 1e6:.1f} MB"
        print_line(f"{path}: {size}{', replaced' if is_replaced else ''}, {describe_axes(written.about)}")
        print_line(f"    {summarize(written.agreement)}")
    if failures:
        others = "; other formats were written" if len(failures) < len(formats) else ""
        raise UserError(f"task.formats: the run {finished.id} can't be exported as {', '.join(failures)}{others}")


def verify_file(config: RunConfig, path: Path, pictures: Sequence[Image.Image], run: ReadOnlyRun) -> None:
    """Verify a file against the checkpoint from which it was exported.

    Raises:
        UserError: if it is not a file of `task=export`, or differs from the network.
    """
    task = config.task
    assert isinstance(task, Config)
    name = path.suffix.removeprefix(".")
    if name not in FORMATS:
        raise UserError(f"task.verify: got {path}, but it must be a file that ends with .{', .'.join(FORMATS)}")
    if not path.is_file():
        raise UserError(f"task.verify: there is no file {path}")
    kind = FORMATS[name]()
    with named("task.verify"), opening("task.verify"):
        about = kind.read_about(path)
        run_id, checkpoint = str(about.get("run")), about.get("checkpoint")
        if not re.fullmatch("[0-9a-f]{32}", run_id) or checkpoint not in CHECKPOINTS:
            raise UserError(f"{path}: its description names no run and checkpoint")
    finished = find_trained_run(run.store, replace(config, run=config.run or run_id), "segmentation", "pretraining")
    if finished.id != run_id:
        raise UserError(f"task.verify: {path} was exported from run {run_id}, not from {finished.id}; leave out run=")
    run.set_tag("of_run", finished.id)
    subject = Subject(load_network(finished, checkpoint))
    images = prepare(subject, pictures or validation_pictures(finished))
    expected = describe(subject, finished.id, checkpoint, fingerprints(finished))
    if others := other_versions(about):
        print_line(f"{path} was written with {others}, so its weights are compared only with its own digest")
    with named("task.verify"), opening("task.verify"):
        agreement = verify(kind, subject, path, expected, images, task.tolerance)
    record(run, kind, agreement)
    print_line(f"{path}: verified, run {finished.id}, {checkpoint} checkpoint")
    print_line(f"    {summarize(agreement)}")


def choose_formats(names: Sequence[str] | None, finished: FinishedRun) -> list[FileFormat]:
    """Return the formats that are configured, or all that suit the run.

    Raises:
        UserError: if one does not suit it, or needs a package that is not installed.
    """
    suited = [name for name in FORMATS if name != "safetensors" or finished.role == "pretraining"]
    for name in names or ():
        if name not in suited:
            raise UserError(
                f"task.formats: {name} is for the backbones of pretraining runs, but {finished.id} is a run of "
                f"task={finished.task}; choose {' or '.join(suited)}"
            )
    return [FORMATS[name]() for name in dict.fromkeys(names or suited)]


def load_network(finished: FinishedRun, checkpoint: str) -> Segmenter | Embedder:
    """Load the network of a run from one of its checkpoints.

    Raises:
        UserError: if it can't be fetched or read.
    """
    with tempfile.TemporaryDirectory() as temporary:
        uri = f"runs:/{finished.id}/checkpoints/{checkpoint}.ckpt"
        content = read_checkpoint(locate_artifact(uri, finished.store, Path(temporary), key="run").path, uri)
    return make_network(content, uri, content.classes or tuple(finished.classes), torch.device("cpu"))


def prepare(subject: Subject, pictures: Sequence[Image.Image]) -> Tensor:
    """Return pictures as the network takes them (n, 3, s, s)."""
    return torch.stack([subject.prepare(torch.from_numpy(np.array(picture))) for picture in pictures])


def validation_pictures(finished: FinishedRun) -> list[Image.Image]:
    """Read some validation images of a run, or crops if it pretrained.

    Raises:
        UserError: if they are not there any more, or were changed.
    """
    use: Use = "segmentation" if finished.role == "segmentation" else "pretraining"
    try:
        index = data.load(finished.config.dataset, use, needs_training=False).val
        if index.fingerprint() != finished.tags.get("data.val.fingerprint"):
            raise UserError(f"dataset: the validation images in {index.place} have changed since the run {finished.id}")
        if use == "pretraining":
            crops = Crops(index)
            return [crops.picture(position) for position in sample(index, NUM_IMAGES)]
        return [index.read_image(int(image)) for image in index.images[:NUM_IMAGES]]
    except UserError as error:
        raise UserError(f"{error}; or verify the files on other images, with task.images=[a.jpg,b.jpg]") from error


def fingerprints(finished: FinishedRun) -> dict[str, str]:
    """Return the fingerprints of the data of a run, by split."""
    return {split: recorded.fingerprint for split, recorded in sorted(finished.data.items())}


def check_place(path: Path, kind: FileFormat, run_id: str, checkpoint: str) -> None:
    """Check that a file can be written without the loss of another one.

    Raises:
        UserError: if there is a file that is not an export of the same checkpoint.
    """
    if not path.exists():
        return
    about: About = {}
    with contextlib.suppress(UserError):
        about = kind.read_about(path)
    if (about.get("run"), about.get("checkpoint")) != (run_id, checkpoint):
        raise UserError(
            f"task.out: there is another file {path}, which is not overwritten; give another folder, or move the file"
        )


def place(kind: FileFormat, subject: Subject, path: Path, about: About, images: Tensor, tolerance: float) -> Written:
    """Write and verify a file beside its place, and move it there only if it is good.

    Raises:
        UserError: if the folder can't be written to.
        ExportError: if the network can't be written, or the outputs differ.
    """
    with opening("task.out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as temporary:
            written = write(kind, subject, Path(temporary) / path.name, about, images, tolerance)
            (Path(temporary) / path.name).replace(path)
    return written


def record(run: ReadOnlyRun, kind: FileFormat, agreement: Agreement) -> None:
    """Record how the outputs of a file differ from those of the network."""
    metrics = {f"export/max_difference/{kind.name}/{name}": value for name, value in agreement.largest.items()}
    if agreement.different_labels is not None:
        metrics[f"export/different_labels/{kind.name}"] = agreement.different_labels
    run.log_metrics(metrics, step=0)


def describe_axes(about: About) -> str:
    """Say which images a file takes."""
    dynamic, size = about["dynamic"], about["size"]
    if not dynamic["height"]:
        return f"any number of images of {size} x {size} px"
    multiple = dynamic["multiple_of"]
    sides = "any size" if multiple == 1 else f"sides that are multiples of {multiple} px"
    return f"any number of images of {sides}, trained at {size} px"


@contextlib.contextmanager
def named(key: str) -> Iterator[None]:
    """Put a key in front of the messages of user errors."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
