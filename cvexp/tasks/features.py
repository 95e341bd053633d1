"""`task=features`: what a pretrained network sees in images, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING
from PIL import Image, ImageOps

from cvexp.config import RunConfig, TaskConfig
from cvexp.console import print_line
from cvexp.data.files.listing import list_images
from cvexp.errors import UserError
from cvexp.inference.embedder import Embedder
from cvexp.inference.networks import choose_device, load_embedder
from cvexp.keys import choice, number
from cvexp.metrics.components import Components, Scale, align, fit_scale, main_components
from cvexp.models.backbone import one_line
from cvexp.models.dense import Dense, DenseView, choose_view, compute_dense
from cvexp.report import dense as report
from cvexp.report.dense import MAX_IMAGES
from cvexp.report.style import state_of
from cvexp.tasks.neighbors import read_picture, validation_data
from cvexp.tracking.finished import FinishedRun, find_trained_run, recorded_epochs
from cvexp.tracking.run import ReadOnlyRun
from cvexp.training.dense import read_squares, to_batch

MAX_RATIO = 3  # of the longer side to the shorter one; what is beyond is cut off
NUM_REFERENCE = 6  # validation images to which colors refer, if the run recorded none


@dataclass(kw_only=True)
class Config(TaskConfig):
    works_on: ClassVar[str | None] = "run"

    images: list[str] = MISSING
    size: int | None = number(2, unit="pixels")
    checkpoint: str = choice("best", "last")


class Viewed(NamedTuple):
    """An image as the network got it, and what the network computed."""

    name: str
    pixels: NDArray[np.uint8]
    dense: Dense


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Record `features/components.png` and, for a vision transformer, `features/attention.png`.

    Raises:
        UserError: if there is no finished pretraining run, its data have changed, an image can't be used, or there are
            too many.
    """
    task = config.task
    assert isinstance(task, Config)
    files = list_images(task.images, "task.images") if task.images else []
    if len(files) > MAX_IMAGES:
        raise UserError(f"task.images: got {len(files)} images, but a figure shows at most {MAX_IMAGES}; name fewer")
    pictures = [read_picture(str(path)) for path in files]
    finished = find_trained_run(run.store, config, "pretraining")
    run.set_tag("of_run", finished.id)
    embedder = load_embedder(finished, choose_device(config.trainer), task.checkpoint)
    try:
        view = choose_view(embedder.encoder, finished.config.task.eval_size, task.size)  # type: ignore[attr-defined]
    except ValueError as error:
        key = "run" if task.size is None else "task.size"
        raise UserError(f"{key}: the backbone of {finished.id} can't be used here: {error}") from error
    num_reference = finished.config.task.dense_images or NUM_REFERENCE  # type: ignore[attr-defined]
    squares = read_squares(validation_data(finished), num_reference, view.size)
    reference = [Viewed("validation", np.asarray(square), _compute(embedder, view, square)) for square in squares]
    components, scale = fit_colors(reference, _recorded_scores(finished))
    own = [_look(embedder, view, path.name, picture) for path, picture in zip(files, pictures, strict=True)]
    epoch = round(finished.metrics["best/epoch"]) + 1 if task.checkpoint == "best" else _last_epoch(finished)
    _log(run, own or reference, components, scale, state_of(epoch))
    print_line(f"pictures: {run.artifacts}/features")


def fit_colors(reference: Sequence[Viewed], recorded: NDArray[np.float32] | None) -> tuple[Components, Scale]:
    """Fit the components and their scale to the validation images, aligned with those that the run recorded."""
    maps = [viewed.dense.maps[0].flatten(1).T.cpu().numpy() for viewed in reference]
    features = np.concatenate(maps)
    components = main_components(features, 3)
    if recorded is not None and len(recorded) == len(features):  # else the size or the number of images differs
        components = components.rotated(align(components.scores(features), recorded))
    return components, fit_scale(components.scores(features))


def _recorded_scores(finished: FinishedRun) -> NDArray[np.float32] | None:
    """Return the scores of the run's last picture, or None if it recorded none."""
    epochs = recorded_epochs(finished.store, finished.id, "dense")
    return report.read_record(finished.store, finished.id, epochs[-1]).reference if epochs else None


def _last_epoch(finished: FinishedRun) -> int:
    return len([step for step, _ in finished.history("val/loss") if step > 0])


def _compute(embedder: Embedder, view: DenseView, picture: Image.Image) -> Dense:
    images = to_batch([picture], embedder.encoder)
    return compute_dense(embedder.encoder, embedder.normalize(images), view.map_index)


def _look(embedder: Embedder, view: DenseView, name: str, picture: Image.Image) -> Viewed:
    """Compute the features of an image in its own aspect ratio, or of its center square if the network refuses that.

    Its shorter side gets the size of the view, and its longer one a multiple of the stride.
    """
    ratio = min(max(picture.size) / min(picture.size), MAX_RATIO)
    longer = max(view.size, round(view.size * ratio / view.stride) * view.stride)
    own_size = (longer, view.size) if picture.width > picture.height else (view.size, longer)
    square = ImageOps.fit(picture, (view.size, view.size), Image.Resampling.BICUBIC)
    if longer > view.size:
        fitted = ImageOps.fit(picture, own_size, Image.Resampling.BICUBIC)
        try:
            return Viewed(name, np.asarray(fitted), _compute(embedder, view, fitted))
        except Exception as error:  # models raise exceptions of many types for images that they do not accept
            width, height = own_size
            print_line(f"{name}: only its center square is shown, as {width} x {height} px failed ({one_line(error)})")
    return Viewed(name, np.asarray(square), _compute(embedder, view, square))


def _log(run: ReadOnlyRun, shown: Sequence[Viewed], components: Components, scale: Scale, state: str) -> None:
    pixels, names = [viewed.pixels for viewed in shown], [viewed.name for viewed in shown]
    maps: list[NDArray[Any]] = [viewed.dense.maps[0].permute(1, 2, 0).cpu().numpy() for viewed in shown]
    colors = [scale.colors(components.scores(features)) for features in maps]
    title = f"main components of the feature maps, {state}"
    run.log_figure(report.draw_components(pixels, colors, names, title), "features/components.png")
    attention = [viewed.dense.attention[0].cpu().numpy() for viewed in shown if viewed.dense.attention is not None]
    if attention:
        figure = report.draw_attention(pixels, attention, names, shown[0].dense.of_class_token, state)
        run.log_figure(figure, "features/attention.png")
