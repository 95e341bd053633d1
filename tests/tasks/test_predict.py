"""`task=predict`, on pictures of many sizes and names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import cvexp as package
from cvexp.inference.segmenter import Segmenter
from cvexp.tasks.predict import result_names
from tests.helpers import TINY_SEGMENTATION, Outcome, runs, save_image, store

pytestmark = pytest.mark.slow  # most of these tests train

QUICK = ["trainer.max_epochs=1", "trainer.max_steps=2"]


def train(cvexp: Callable[..., Outcome], *settings: str) -> str:
    tiny = [setting for setting in TINY_SEGMENTATION if not setting.startswith("trainer.max_epochs")]
    outcome = cvexp(*tiny, *QUICK, *settings)
    assert outcome.code == 0, outcome.message
    return str(runs()[0].info.run_id)


def segmenter(run_id: str) -> Segmenter:
    loaded = package.load(run_id)
    assert isinstance(loaded, Segmenter)
    return loaded


@pytest.fixture
def photos() -> Path:
    """Pictures of several sizes and modes, two of which would share a mask's name."""
    folder = Path("my photos")
    save_image(folder / "a.png", size=(200, 90))
    save_image(folder / "a.jpg", size=(64, 64))
    save_image(folder / "deep" / "er" / "b [1].jpg", size=(30, 77))
    save_image(folder / "gray.png", mode="L", size=(90, 90))
    save_image(folder / "clear.png", mode="RGBA", size=(1, 130))
    return folder


def read(out: Path) -> Any:
    return json.loads((out / "predictions.json").read_text())


@pytest.mark.parametrize("task", ["multiclass", "attention"])
def test_masks_are_what_the_network_predicts_for_each_image(
    cvexp: Callable[..., Outcome], task: str, photos: Path
) -> None:
    run_id = train(cvexp, f"task={task}")
    outcome = cvexp("task=predict", f"task.images=['{photos}']", "task.out=results", "task.batch_size=2")
    assert outcome.code == 0, outcome.message
    assert "5 images, each as a whole" in outcome.message
    out = Path("results")
    content = read(out)
    network = segmenter(run_id)
    assert [image["file_name"] for image in content["images"]] == [
        f"{photos}/{name}" for name in ("a.jpg", "a.png", "clear.png", "gray.png", "deep/er/b [1].jpg")
    ]
    assert {image["mask"] for image in content["images"]} == {
        f"masks/{name}.png" for name in ("a.jpg", "a.png", "clear", "gray", "deep/er/b [1]")
    }
    coco = COCO(out / "predictions.json")
    for image in content["images"]:
        predicted = network.predict(image["file_name"])
        with Image.open(out / image["mask"]) as mask:
            np.testing.assert_array_equal(np.array(mask), predicted.labels)
            assert (mask.mode, mask.size) == ("P", (image["width"], image["height"]))
        assert image["presence"] == pytest.approx(predicted.presence, abs=1e-4)
        annotations = coco.loadAnns(coco.getAnnIds([image["id"]]))
        assert {a["category_id"] for a in annotations} == set(np.unique(predicted.labels)) - {0}
        for annotation in annotations:
            mask_hw = predicted.labels == annotation["category_id"]
            np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), mask_hw)
            assert annotation["area"] == mask_hw.sum()
            left, top, width, height = annotation["bbox"]
            assert mask_hw[top : top + height, left : left + width].sum() == mask_hw.sum()
        with Image.open(out / "overlays" / f"{image['mask'][6:-4]}.jpg") as overlay:
            assert overlay.size == (image["width"], image["height"])
    run = runs()[0]
    assert run.data.tags["of_model"] == f"runs:/{run_id}/checkpoints/best.ckpt"
    artifacts = {item.path for item in store().list_artifacts(run.info.run_id, "predictions")}
    assert artifacts == {"predictions/predictions.json", "predictions/sheet.png"}
    assert run.data.metrics["predict/images"] == 5


def test_predictions_on_validation_images_are_the_label_maps_that_are_scored(cvexp: Callable[..., Outcome]) -> None:
    from cvexp import data
    from cvexp.inference.segmenter import whole_images

    network = segmenter(train(cvexp, "task=multiclass"))
    val = data.load(network.config.dataset, "segmentation").val
    files = [val.root / val.catalog.file(int(image)) for image in val.images]
    scored = [labels for images, _ in whole_images(network.config, val) for labels in network.label_squares(images)]
    assert cvexp("task=predict", f"task.images={[*map(str, files)]}", "task.out=results").code == 0
    for image, expected in zip(read(Path("results"))["images"], scored, strict=True):
        with Image.open(Path("results") / image["mask"]) as mask:
            np.testing.assert_array_equal(np.array(mask), expected.numpy())


def test_images_that_cannot_be_read_are_named_and_left_out(cvexp: Callable[..., Outcome], photos: Path) -> None:
    train(cvexp, "task=multiclass")
    (photos / "b.jpg").write_bytes((photos / "a.jpg").read_bytes()[:300])
    (photos / "text.png").write_text("no image")
    outcome = cvexp("task=predict", f"task.images=['{photos}']", "task.out=results", "loader.num_workers=0")
    assert outcome.code == 1
    assert "task.images: 2 of 7 images can't be read" in outcome.message
    assert len(read(Path("results"))["images"]) == 5
    run = runs()[0]
    assert run.info.status == "FINISHED"
    listed = Path(store().download_artifacts(run.info.run_id, "predictions/left_out.csv")).read_text()
    assert "b.jpg" in listed
    assert "text.png" in listed


def test_large_images_can_be_cut_into_tiles(cvexp: Callable[..., Outcome], photos: Path) -> None:
    run_id = train(cvexp, "task=attention")
    size = segmenter(run_id).size
    outcome = cvexp("task=predict", f"task.images=['{photos}']", "task.out=results", "task.tiles=1")
    assert outcome.code == 0, outcome.message
    images = {image["mask"]: image for image in read(Path("results"))["images"]}
    larger = [image for image in images.values() if max(image["width"], image["height"]) > size]
    assert all(image["num_tiles"] > 1 for image in larger)
    assert f"{len(larger)} of them in tiles" in outcome.message
    expected = segmenter(run_id).predict(photos / "a.png", tiles=1.0)
    with Image.open("results/masks/a.png.png") as mask:
        np.testing.assert_array_equal(np.array(mask), expected.labels)


def test_some_classes_are_queried_alone_and_their_attention_is_written(
    cvexp: Callable[..., Outcome], photos: Path
) -> None:
    train(cvexp, "task=attention")
    outcome = cvexp(
        *("task=predict", f"task.images=['{photos}']", "task.out=results"),
        *("task.classes=[star,disk]", "task.attention=true"),
    )
    assert outcome.code == 0, outcome.message
    for image in read(Path("results"))["images"]:
        assert set(image["presence"]) == {"star", "disk"}
        with Image.open(Path("results") / image["mask"]) as mask:
            assert set(np.unique(np.array(mask))) <= {0, 1, 4}
        folder = Path("results/attention") / image["mask"][6:-4]
        assert {path.name for path in folder.iterdir()} == {"star.jpg", "disk.jpg"}


def test_classes_may_have_odd_names(cvexp: Callable[..., Outcome], coco_root: Path, photos: Path) -> None:
    for path in (coco_root / "annotations").iterdir():
        path.write_text(path.read_text().replace('"cat"', '"R&D"').replace('"dog"', '"it\'s <b>/../x"'))
    own = ["dataset=coco", f"dataset.root={coco_root}", "dataset.image_size=32", "task.decoder_channels=8"]
    network = ["backbone=resnet_mini", "task=attention", "loader.num_workers=0", "loader.batch_size=4"]
    outcome = cvexp(*own, *network, "tracking.system_metrics=false", *QUICK)
    assert outcome.code == 0, outcome.message
    arguments = ["task=predict", f"task.images=['{photos}']", "task.out=results", "task.attention=true"]
    outcome = cvexp(*arguments, """task.classes=["R&D","it's <b>/../x"]""")
    assert outcome.code == 0, outcome.message
    content = read(Path("results"))
    assert [category["name"] for category in content["categories"]] == ["R&D", "it's <b>/../x", "person"]
    folder = Path("results/attention/gray")
    assert {path.name for path in folder.iterdir()} == {"R_D.jpg", "it_s_b_x.jpg"}


def test_wrong_requests_are_explained_before_anything_is_written(cvexp: Callable[..., Outcome], photos: Path) -> None:
    train(cvexp, "task=multiclass")
    Path("full").mkdir()
    (Path("full") / "mine.txt").write_text("precious")
    images = f"task.images=['{photos}']"
    for settings, reason in (
        ([], "task.images: got []"),
        (["task.images=[nowhere]"], "task.images: there is no file or folder 'nowhere'"),
        ([images, "task.out=full"], "task.out: the folder full is not empty"),
        ([images, "task.tiles=0"], "task.tiles: got 0"),
        ([images, "task.classes=[disk]"], "such as of task=attention"),
        ([images, "task.attention=true"], "task.attention"),
        ([images, "task.model=models:/none@champion"], "task.model: the registry has no models:/none@champion"),
        ([images, "task.model=best.ckpt"], "task.model: got 'best.ckpt'"),
        ([images, "run=1234"], "run: there is no run '1234'"),
        ([images, "task.batch_size=0"], "task.batch_size"),
    ):
        outcome = cvexp("task=predict", *settings)
        assert outcome.code == 1
        assert reason in outcome.message
        assert "Traceback" not in outcome.message
    assert [path.name for path in Path("full").iterdir()] == ["mine.txt"]


def test_results_are_named_after_the_images() -> None:
    for paths, names in (
        (["a.jpg"], ["a"]),
        (["x/a.jpg", "x/b.png"], ["a", "b"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a", "y/a"]),
        (["x/a.jpg", "x/A.png", "x/b.c.png"], ["a.jpg", "A.png", "b.c"]),
        (["/q/x/a.jpg", "/q/y/z/b.jpg"], ["x/a", "y/z/b"]),
        (["../a.jpg", "b.jpg"], ["a", f"{Path.cwd().name}/b"]),
    ):
        assert result_names([Path(path) for path in paths]) == names
