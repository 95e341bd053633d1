"""Feature maps of a finished run on one's own images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvexp.tasks.features import fit_colors
from tests.helpers import TINY, Outcome, runs, save_image, store

pytestmark = pytest.mark.slow  # these tests train


def recorded() -> set[str]:
    return {item.path for item in store().list_artifacts(runs()[0].info.run_id, "features")}


def test_own_images_and_mistakes(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no finished pretraining run" in cvexp("task=features").message
    fixed = ["backbone.name=test_vit", "+backbone.args.img_size=32", "+backbone.args.dynamic_img_size=false"]
    assert cvexp(*TINY, "trainer.max_steps=1", *fixed, "task.local_size=32").code == 0
    transformer = runs()[0].info.run_id
    assert cvexp(*TINY, "trainer.max_steps=1", "task.dense_images=2").code == 0
    resnet = runs()[0].info.run_id
    names = ["mine/wide $x_1$.png", "mine/ünï 写真.jpg", "mine/<b>&.png"]
    for name, size in zip(names, [(300, 40), (40, 60), (31, 31)], strict=True):
        save_image(Path(name), size=size)
    Path("mine/notes.txt").write_text("no image")
    Path("mine/._wide.png").write_bytes(b"what macOS keeps about a file")
    Path("mine/folder.jpg").mkdir()
    Path("empty").mkdir()
    for number in range(25):
        save_image(Path(f"many/{number % 2}/{number}.png"))
    Path("broken.png").write_bytes(b"no picture")

    shown: list[tuple[int, ...]] = []
    original = fit_colors.__globals__["report"].draw_components

    def draw(pixels: list[np.ndarray], *others: object) -> object:
        shown.extend(picture.shape for picture in pixels)
        return original(pixels, *others)

    monkeypatch.setattr("cvexp.report.dense.draw_components", draw)
    outcome = cvexp("task=features", "task.images=[mine]", "task.checkpoint=best", "trainer.accelerator=cpu")
    assert outcome.code == 0, outcome.message
    assert runs()[0].data.tags["of_run"] == resnet
    assert recorded() == {"features/components.png"}
    assert shown == [(112, 112, 3), (112, 336, 3), (168, 112, 3)]  # sorted by name; at most 3 times as wide as high
    shown.clear()
    outcome = cvexp("task=features", f"run={transformer}", "task.images=['mine/wide $x_1$.png']")
    assert outcome.code == 0, outcome.message
    assert recorded() == {"features/components.png", "features/attention.png"}
    assert shown == [(32, 32, 3)]  # its network takes only squares
    assert "wide $x_1$.png: only its center square is shown, as 96 x 32 px failed" in outcome.message
    shown.clear()
    assert cvexp("task=features", "task.size=64").code == 0
    assert shown == [(64, 64, 3)] * 2  # validation images
    for settings, words in (
        (["task.images=[broken.png]"], "task.images: broken.png: the image is broken"),
        (["task.images=[nowhere.jpg]"], "task.images: there is no file or folder 'nowhere.jpg'"),
        (["task.images=[empty]"], "task.images: there are no images in empty"),
        (
            ["task.images=[many]"],
            "got 25 images, but a figure shows at most 24",
        ),
        (["task.checkpoint=first"], "task.checkpoint: there is no 'first'"),
        ([f"run={transformer}", "task.size=64"], "task.size: the backbone of"),
    ):
        outcome = cvexp("task=features", *settings)
        assert outcome.code == 1
        assert words in outcome.message
    Image.new("RGB", (128, 128)).save(next(Path("outputs/data/shapes").glob("*/val/000003.bmp")))
    assert "have changed since" in cvexp("task=features").message
