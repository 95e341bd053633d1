"""The whole story with class names of any characters and two seeds: nothing fails, and every name is shown."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cvexp.metrics.names import safe_name
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs, store, write_coco

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


NAMES = [
    *("R&D", "car (parked)", "car [parked]", "car _parked_", "<b>x</b>", '"a"', "a/b", "$x$", "\U0001f697 taxi", "a|b"),
    *("[red]x[/red]", "images", "x" * 300),
]
NO_DATA = ("dataset.", "backbone.weights")


def write_data(root: Path) -> Path:
    """Images with one object each, of all classes in turn."""
    write_coco(root, train=2 * len(NAMES), val=len(NAMES))
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        content["categories"] = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
        for annotation in content["annotations"]:
            annotation["category_id"] = annotation["image_id"] % len(NAMES)
            annotation["bbox"][0] = annotation["image_id"]
            annotation["segmentation"][0] = [0, 5, 40, 5, 40, 50, 0, 50]
        path.write_text(json.dumps(content))
    return root


def test_the_whole_story_with_odd_names_and_two_seeds(cvexp: Callable[..., Outcome]) -> None:
    data = ["dataset=coco", f"dataset.root={write_data(Path('data'))}", "dataset.image_size=64"]
    tiny = [argument for argument in TINY if not argument.startswith(NO_DATA)]
    tiny_segmentation = [argument for argument in TINY_SEGMENTATION if not argument.startswith(NO_DATA)]
    assert cvexp(*tiny, *data, "trainer.max_epochs=1").code == 0
    sweep = ["-m", "task=multiclass,attention", "backbone.weights=latest:dino", "seed=0,1"]
    outcome = cvexp(*sweep, *tiny_segmentation, *data, "trainer.max_steps=2")
    assert outcome.code == 0, outcome.message
    segmenters = [run for run in runs() if run.data.tags["task"] in ("multiclass", "attention")]
    assert len(segmenters) == 4
    for run in segmenters:
        assert {f"val/iou/{safe_name(name)}" for name in NAMES} <= run.data.metrics.keys()
        assert {f"best/iou/{safe_name(name)}" for name in NAMES} <= run.data.metrics.keys()

    compared = cvexp("task=compare", "task.samples=100", "task.timed_images=2", "trainer.accelerator=cpu")
    assert compared.code == 0, compared.message
    assert "[parked]" in compared.message  # a narrow column may wrap
    neighbors = cvexp("task=neighbors", "trainer.accelerator=cpu")
    assert neighbors.code == 0, neighbors.message
    reported = cvexp("task=report")
    assert reported.code == 0, reported.message
    page = Path("outputs/report.html").read_text()
    assert "<b>x</b>" not in page
    for name in NAMES[:-1]:
        assert name in html.unescape(page), name
    assert Path("outputs/report.pdf").stat().st_size > 10_000
    (comparison,) = [run for run in runs() if run.data.tags["task"] == "compare"]
    path = store().download_artifacts(comparison.info.run_id, "comparison/comparison.json")
    assert json.loads(Path(path).read_text())["classes"] == NAMES
    explorer = next(Path("outputs/artifacts").rglob("explorer.html")).read_text()
    assert "<b>x</b>" not in re.sub(r"\s", "", explorer)


def test_an_interrupted_run_with_odd_names_goes_on(cvexp: Callable[..., Outcome]) -> None:
    """Its end was what failed, and so did each resumption."""
    data = ["dataset=coco", f"dataset.root={write_data(Path('data'))}", "dataset.image_size=64"]
    tiny = [argument for argument in TINY_SEGMENTATION if not argument.startswith(NO_DATA)]
    assert cvexp("task=multiclass", *tiny, *data, "trainer.max_steps=2").code == 0
    (run,) = runs()
    store().set_terminated(run.info.run_id, "KILLED")
    resumed = cvexp(f"resume={run.info.run_id}")
    assert resumed.code == 0, resumed.message


def test_a_class_may_not_be_called_background(cvexp: Callable[..., Outcome]) -> None:
    root = write_data(Path("data"))
    for path in (root / "annotations").iterdir():
        path.write_text(path.read_text().replace('"R&D"', '"background"'))
    tiny = [argument for argument in TINY_SEGMENTATION if not argument.startswith(NO_DATA)]
    outcome = cvexp("task=multiclass", *tiny, "dataset=coco", f"dataset.root={root}", "dataset.image_size=64")
    assert outcome.code == 1
    assert "a class is called background" in outcome.message
