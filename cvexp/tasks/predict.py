"""`task=predict`: a finished segmentation run, applied to the user's own pictures."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING

from cvexp import progress
from cvexp.config import RunConfig, TaskConfig
from cvexp.console import print_line
from cvexp.data.files.listing import as_text, list_images
from cvexp.data.files.parallel import Background
from cvexp.errors import UserError, opening
from cvexp.inference.coco import CocoFile
from cvexp.inference.loading import load_recorded
from cvexp.inference.networks import choose_device
from cvexp.inference.pictures import Picture
from cvexp.inference.reading import read_pictures
from cvexp.inference.segmentation import Segmentation
from cvexp.inference.segmenter import Segmenter
from cvexp.keys import choice, number, require
from cvexp.report.left_out import LeftOut
from cvexp.report.overlays import heat, overlay
from cvexp.report.predictions import THUMBNAIL, VIEWED, SheetRow, contact_sheet, thumbnail
from cvexp.tracking.finished import find_trained_run
from cvexp.tracking.run import ReadOnlyRun

PRESENT = 0.5  # probability from which on a class counts as found
MAX_WAITING = 4  # images that wait to be written, which bounds the memory
KEY = "task.images"


@dataclass(kw_only=True)
class Config(TaskConfig):
    works_on: ClassVar[str | None] = "run"

    images: list[str] = MISSING
    out: str | None = MISSING
    model: str | None = MISSING
    checkpoint: str = choice("best", "last")
    classes: list[str] | None = MISSING
    tiles: float | None = number(above=0)
    overlays: bool = MISSING
    attention: bool = MISSING
    batch_size: int = number(1)
    sheet: int = number(0)

    def __post_init__(self) -> None:
        is_registered = self.model is None or self.model.startswith("models:/")
        require(is_registered, "task.model", self.model, "null or models:/NAME@ALIAS; run=ID names a run")


@dataclass
class Predicted:
    """What was predicted for an image.

    Attributes:
        position: Its position in the list of images.
        path: Its file.
        name: Its path in the folder of the results, without a suffix.
        pixels: (h, w, 3) uint8.
        segmentation: The prediction.
    """

    position: int
    path: Path
    name: str
    pixels: NDArray[np.uint8]
    segmentation: Segmentation


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Write masks, pictures, `predictions.json` and a contact sheet into a folder, and record the last two in `run`.

    Raises:
        UserError: if there is no such run or image, or the results can't be written.
        Incomplete: at the end, if some images could not be read.
    """
    task = config.task
    assert isinstance(task, Config)
    paths = list_images(task.images, KEY)
    segmenter, source = load(config, run)
    out = new_folder(Path(task.out or f"{config.tracking.folder}/predictions/{run.id}"))
    left_out = LeftOut(KEY)
    info = {"description": "label maps predicted by cvexp", "model": source, "task": segmenter.config.task.name}
    coco = CocoFile(segmenter.classes, info)
    chosen = set(np.linspace(0, len(paths) - 1, min(task.sheet, len(paths))).astype(int).tolist())
    rows: list[SheetRow] = []
    started = time.perf_counter()
    with opening("task.out"), progress.step("segmenting", len(paths), unit="images") as step:
        try:
            with Background(1 if task.attention else MAX_WAITING) as background:
                for predicted in predict(paths, segmenter, config, left_out):
                    background.run(write, predicted, out, task)
                    coco.add(
                        predicted.segmentation, file_name=as_text(predicted.path), mask=f"masks/{predicted.name}.png"
                    )
                    if predicted.position in chosen:
                        rows.append(sheet_row(predicted))
                    step.done = predicted.position + 1
        finally:  # after an interruption, it lists what was written
            coco.write(out / "predictions.json")
    report(run, coco, time.perf_counter() - started)
    run.log_file(out / "predictions.json", "predictions")
    if rows:
        sheet = contact_sheet(rows, segmenter.classes, f"predictions of {segmenter.config.task.name}")
        run.log_figure(sheet, "predictions/sheet.png")
        with opening("task.out"):
            sheet.savefig(out / "sheet.png")
    print_line(f"masks and pictures: {out}")
    left_out.finish(run, len(paths), "predictions")


def load(config: RunConfig, run: ReadOnlyRun) -> tuple[Segmenter, str]:
    """Load the network, and return it with the name of where it comes from.

    Raises:
        UserError: if there is no such run or model, it does not segment, or it can't do what is asked of it.
    """
    task = config.task
    assert isinstance(task, Config)
    if task.model is not None:
        source, key = task.model, "task.model"
        if config.run is not None:
            raise UserError("run: task.model= is given, too; leave out one of them")
    else:
        finished = find_trained_run(run.store, config, "segmentation")
        source, key = f"runs:/{finished.id}/checkpoints/{task.checkpoint}.ckpt", "run"
    network = load_recorded(source, run.store, config, choose_device(config.trainer), key)
    if not isinstance(network, Segmenter):
        raise UserError(f"{key}: {source} is a pretrained network, which segments nothing; name a segmentation model")
    if task.attention and not network.model.can_query:
        raise UserError(f"task.attention: {source} has no attention maps; leave it out, or use a run of task=attention")
    run.set_tag("of_model", source)
    return network, source


def new_folder(folder: Path) -> Path:
    """Create the folder of the results.

    Raises:
        UserError: if it has content, which would be mixed with the results.
    """
    with opening("task.out"):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"task.out: the folder {folder} is not empty; choose a new one, or empty it")
    return folder


def result_names(paths: Sequence[Path]) -> list[str]:
    """Return a path for the results of each image: its own path below the folder that all have in common.

    It has no suffix, as in data sets where the mask of ``a.jpg`` is ``a.png``, unless two images would then share it.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100, links are not followed
    common = os.path.commonpath([path.parent for path in absolute])
    relative = [path.relative_to(common) for path in absolute]
    counts = Counter(str(path.with_suffix("")).lower() for path in relative)
    return [str(path.with_suffix("") if counts[str(path.with_suffix("")).lower()] == 1 else path) for path in relative]


def predict(paths: Sequence[Path], segmenter: Segmenter, config: RunConfig, left_out: LeftOut) -> Iterator[Predicted]:
    """Read and segment images, and yield the results in order. Images that can't be read are left out."""
    task = config.task
    assert isinstance(task, Config)
    names = result_names(paths)
    waiting: deque[tuple[int, NDArray[np.uint8]]] = deque()  # images whose prediction is not known yet

    def pictures() -> Iterator[Picture]:
        for position, picture in enumerate(read_pictures(paths, config.loader)):
            if picture.pixels is None:
                left_out.add(picture.path, picture.reason)
            else:
                waiting.append((position, picture.pixels.numpy()))
                yield waiting[-1][1]

    for segmentation in segmenter.stream(
        pictures(),
        classes=task.classes,
        tiles=task.tiles,
        maps=task.attention or (segmenter.model.can_query and task.sheet > 0),
        batch_size=task.batch_size,
    ):
        position, pixels = waiting.popleft()
        yield Predicted(position, paths[position], names[position], pixels, segmentation)


def write(predicted: Predicted, out: Path, task: Config) -> None:
    """Write the mask of an image, and pictures of it."""
    segmentation = predicted.segmentation
    small, labels = (thumbnail(array, VIEWED) for array in (predicted.pixels, segmentation.labels))
    pictures = {f"masks/{predicted.name}.png": segmentation.mask_image()}
    if task.overlays:
        pictures[f"overlays/{predicted.name}.jpg"] = overlay(small, labels)
    if task.attention:
        for name, presence in segmentation.presence.items():
            if presence >= PRESENT or task.classes is not None:
                weights = thumbnail(segmentation.attention(name), VIEWED)
                pictures[f"attention/{predicted.name}/{file_name(name)}.jpg"] = heat(small, weights)
    for path, picture in pictures.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(out / path)


def file_name(class_name: str) -> str:
    """Return a name for a file of a class, in which other characters than letters, digits and ``-`` are replaced."""
    return re.sub(r"[^\w-]+", "_", class_name)[:60] or "_"


def sheet_row(predicted: Predicted) -> SheetRow:
    """Return what the contact sheet shows of an image."""
    segmentation = predicted.segmentation
    query = max(segmentation.presence, key=lambda name: segmentation.presence[name])
    weights = thumbnail(segmentation.attention(query), THUMBNAIL) if segmentation.has_attention else None
    small, labels = (thumbnail(array, THUMBNAIL) for array in (predicted.pixels, segmentation.labels))
    return SheetRow(predicted.path.name, small, labels, weights, query)


def report(run: ReadOnlyRun, coco: CocoFile, seconds: float) -> None:
    """Print and record how many images were segmented, how, how fast, and how much memory it took."""
    num_images = len(coco.images)
    tiled = [image["num_tiles"] for image in coco.images if image["num_tiles"] > 1]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    how = f", {len(tiled)} of them in tiles ({min(tiled)} to {max(tiled)} each)" if tiled else ", each as a whole"
    print_line(f"{num_images} images{how}; {num_images / seconds:.1f} images/s, at most {memory:.1f} GiB of memory")
    speed = {"speed/images_per_second": num_images / seconds, "predict/memory_gib": memory}
    run.log_metrics({**speed, "predict/images": num_images, "predict/tiled": len(tiled)}, step=0)
