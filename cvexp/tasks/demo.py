"""`task=demo`: a page on which a person drops a photo and sees what a segmentation network makes of it."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar

from omegaconf import MISSING
from PIL import Image

from cvexp import data
from cvexp.config import RunConfig, TaskConfig
from cvexp.data.examples import choose_images
from cvexp.errors import UserError
from cvexp.inference.loading import load_recorded
from cvexp.inference.networks import choose_device
from cvexp.inference.segmenter import Segmenter
from cvexp.keys import number, require
from cvexp.tracking.finished import FinishedRun, find_trained_run
from cvexp.tracking.store import Store
from cvexp.weights.locate import source_run

NUM_EXAMPLES = 3

log = logging.getLogger("cvexp")


@dataclass(kw_only=True)
class Config(TaskConfig):
    works_on: ClassVar[str | None] = "run"
    is_recorded: ClassVar[bool] = False  # a demo measures nothing, and may run for days

    model: str | None = MISSING
    host: str = MISSING
    port: int = number(1, at_most=65535)

    def __post_init__(self) -> None:
        is_registered = self.model is None or self.model.startswith("models:/")
        require(is_registered, "task.model", self.model, "null or models:/NAME@ALIAS; run=ID names a run")


def main(config: RunConfig, store: Store) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Raises:
        UserError: if there is no such run or model, it does not segment, Gradio is missing, or the server can't listen.
    """
    task = config.task
    assert isinstance(task, Config)
    if task.model is not None and config.run is not None:
        raise UserError("run: task.model= is given, too; leave out one of them")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError("task=demo: this needs a package; install it with: pip install 'cvexp[demo]'") from error
    from cvexp.demo.photos import reduce
    from cvexp.demo.server import serve
    from cvexp.demo.views import heading

    device = choose_device(config.trainer)
    finished: FinishedRun | None
    if task.model is None:
        finished = find_trained_run(store, config, "segmentation")
        name, segmenter = finished.name, load_recorded(f"runs:/{finished.id}", store, config, device, "run")
    else:
        name, segmenter = task.model, load_recorded(task.model, store, config, device, "task.model")
        finished = run_of_model(task.model, store, config)
    if not isinstance(segmenter, Segmenter):
        raise UserError(
            f"task.model: {name} is a pretrained network, which segments nothing; name a segmentation model"
        )
    title = heading(name, segmenter.config.task.name, segmenter.classes, score_of(finished))
    serve(segmenter, title, [reduce(image) for image in read_examples(finished)], task.host, task.port)


def run_of_model(uri: str, store: Store, config: RunConfig) -> FinishedRun | None:
    """Return the run that trained a registered model, or None if the store does not have it."""
    with suppress(UserError):
        if run_id := source_run(uri, config, store):
            return FinishedRun(store, store.run(run_id, "task.model"), config)
    return None


def score_of(finished: FinishedRun | None) -> str:
    """Return what is known about the accuracy of a network; empty if nothing is."""
    for split in ("test", "best"):
        if finished is not None and f"{split}/miou" in finished.metrics:
            return f"{'test' if split == 'test' else 'validation'} mIoU {finished.metrics[f'{split}/miou']:.3f}"
    return ""


def read_examples(finished: FinishedRun | None) -> list[Image.Image]:
    """Read a few validation images of a run, or none if they are not on this machine."""
    try:
        if finished is None:
            return []
        dataset = finished.config.dataset
        if hasattr(dataset, "download"):  # the demo does not wait for the internet
            dataset = replace(dataset, download=False)  # type: ignore[call-arg]
        index = data.load(dataset, "segmentation", needs_training=False).val
        return [index.read_image(int(index.images[i])) for i in sorted(choose_images(index, NUM_EXAMPLES))]
    except UserError as error:
        log.warning("there are no examples: %s", error)
        return []
