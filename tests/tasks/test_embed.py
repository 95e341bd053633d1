"""Features of one's own images, as a table and as a page."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import ExifTags, Image

from cvexp.inference.embedder import Embedder
from cvexp.inference.loading import load
from tests.helpers import TINY, Outcome, finish, runs, save_image, start, store

DOCS = Path(__file__).parents[2] / "docs" / "embed.md"
CPU = "trainer.accelerator=cpu"

pytestmark = pytest.mark.slow  # these tests train


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a pretraining run whose last weights are not the selected ones."""
    folder = tmp_path_factory.mktemp("trained") / "outputs"
    finish(start(*TINY, "task.monitor=val/knn_top1", f"tracking.folder={folder}"))
    return folder


@pytest.fixture(autouse=True)
def trained(outputs: Path) -> str:
    """The id of the pretraining run, in a copy of the store."""
    shutil.copytree(outputs, "outputs")
    return str(runs()[0].info.run_id)


def artifact(path: str) -> Path:
    return Path(store().download_artifacts(runs()[0].info.run_id, path))


def artifacts(folder: str | None = None) -> set[str]:
    return {item.path for item in store().list_artifacts(runs()[0].info.run_id, folder)}


def explored() -> dict[str, list[str]]:
    """What the page says about its images."""
    match = re.search(
        r'<script id="data" type="application/json">(.*?)</script>', artifact("explorer.html").read_text()
    )
    assert match is not None
    content: dict[str, list[str]] = json.loads(match[1])
    return content


def write_photos() -> list[str]:
    """Write images of many sizes and names in three folders, and return their paths."""
    names = ["a.png", "R&D/[1].png", "R&D/wide.png", "<b>x/写真.png", "<b>x/turned.jpg", "<b>x/gray.png", "<b>x/y.png"]
    sizes = [(48, 40), (31, 31), (300, 20), (20, 200), (64, 48), (1, 1), (120, 90)]
    for name, size in zip(names, sizes, strict=True):
        save_image(Path("photos", name), size=size)
    turned = Image.open("photos/<b>x/turned.jpg")
    turned.getexif()[ExifTags.Base.Orientation] = 6
    turned.save("photos/<b>x/turned.jpg", exif=turned.getexif())
    return [f"photos/{name}" for name in names]


def test_the_table_and_the_page(
    cvexp: Callable[..., Outcome], trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = write_photos()
    order = ["photos/R&D", "photos/**/[wy]*.png", "photos"]
    listed = [*names[1:3], names[6], names[0], names[5], names[4], names[3]]
    chosen = f"task.images={json.dumps(order, ensure_ascii=False)}"
    outcome = cvexp("task=embed", chosen, "task.batch_size=3", "loader.num_workers=2", "task.out=new/x.npz", CPU)
    assert outcome.code == 0, outcome.message
    run = runs()[0]
    assert run.data.tags["of_run"] == trained
    assert artifacts() == {"config.yaml", "embeddings", "explorer.html"}
    assert artifacts("embeddings") == {"embeddings/features.parquet"}

    table = pq.read_table(artifact("embeddings/features.parquet"))
    assert table.column_names == ["path", "width", "height", "features"]
    assert table["path"].to_pylist() == listed
    expected_sizes = [(31, 31), (300, 20), (120, 90), (48, 40), (1, 1), (48, 64), (20, 200)]
    assert list(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)) == expected_sizes
    features = np.array(table["features"].to_pylist(), np.float32)
    embedder = load(trained, device="cpu")
    assert isinstance(embedder, Embedder)
    assert np.array_equal(features, embedder.embed(listed, batch_size=3))
    assert len(np.unique(features, axis=0)) == len(listed)
    origin = json.loads(table.schema.metadata[b"cvexp"])
    assert (origin["run"], origin["checkpoint"], origin["task"]) == (trained, "best", "dino")
    assert (origin["backbone"], origin["eval_size"]) == ("test_resnet", embedder.view.size)
    assert origin["versions"]["torch"] == version("torch")

    with np.load("new/x.npz") as arrays:
        assert arrays["paths"].tolist() == listed
        assert [tuple(size) for size in arrays["sizes"].tolist()] == expected_sizes
        assert np.array_equal(arrays["features"], features)
        assert json.loads(str(arrays["metadata"])) == origin

    page = explored()
    assert page["images"] == listed
    folders = [page["classes"][int(label)] for label in page["labels"]]
    assert folders == [Path(name).parent.name for name in listed]

    Path("features.parquet").write_bytes(artifact("embeddings/features.parquet").read_bytes())
    programs = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(programs) == 2
    capsys.readouterr()
    exec("".join(programs), {})
    assert f"7 images, {features.shape[1]} features of run {trained}" in capsys.readouterr().out


def test_the_checkpoint_the_sample_and_copies(
    cvexp: Callable[..., Outcome], trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(12):
        save_image(Path(f"photos/{i:02}.png"), seed=i // 2)  # each twice
    assert cvexp("task=embed", "task.images=[photos]", "task.out=features.parquet", CPU).code == 0
    best = np.array(pq.read_table("features.parquet")["features"].to_pylist())
    assert explored()["classes"] == ["no label"]  # one folder
    given = ["task=embed", "task.images=[photos/*]", "task.max_explorer=6", "task.checkpoint=last", CPU]
    pages = []
    for _ in range(2):
        assert cvexp(*given).code == 0
        pages.append(explored()["images"])
    assert len(set(pages[0])) == 6
    assert pages[0] == pages[1] == sorted(pages[0])
    last = np.array(pq.read_table(artifact("embeddings/features.parquet"))["features"].to_pylist())
    assert np.array_equal(last, load_features(f"runs:/{trained}/checkpoints/last.ckpt"))
    assert not np.array_equal(last, best)
    capsys.readouterr()
    exec("".join(re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)), {})
    printed = capsys.readouterr().out.splitlines()
    assert {f"photos/{i:02}.png photos/{i + 1:02}.png 1.0" for i in range(0, 12, 2)} <= set(printed)


def load_features(what: str) -> np.ndarray:
    embedder = load(what, device="cpu")
    assert isinstance(embedder, Embedder)
    return embedder.embed(sorted(Path("photos").iterdir()))


def test_images_that_cannot_be_read_are_left_out(cvexp: Callable[..., Outcome], trained: str) -> None:
    names = write_photos()
    for i in range(12):
        Path(f"photos/broken{i:02}.jpg").write_bytes(b"no picture")
    Path(os.fsdecode(b"photos/caf\xe9.jpg")).write_bytes(Path(names[0]).read_bytes()[:200])
    outcome = cvexp("task=embed", "task.images=[photos,nowhere.jpg]", CPU)
    assert "task.images: there is no file or folder 'nowhere.jpg'" in outcome.message
    outcome = cvexp("task=embed", "task.images=[photos]", "task.out=x.parquet", CPU)
    assert outcome.code == 1
    assert "cvexp: error: task.images: 13 of 20 images can't be read and were left out" in outcome.message
    run = runs()[0]
    assert run.info.status == "FINISHED"
    assert run.data.tags["left_out"].startswith("task.images: 13 of 20 images")
    assert "error" not in run.data.tags
    with artifact("embeddings/left_out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [*(f"photos/broken{i:02}.jpg" for i in range(12)), "photos/caf\\xe9.jpg"]
    assert (
        rows[0]["reason"] == "the image is broken (its format is not recognized); fetch or save it again, or remove it"
    )
    table = pq.read_table(artifact("embeddings/features.parquet"))
    assert sorted(table["path"].to_pylist()) == sorted(names)
    assert Path("x.parquet").read_bytes() == artifact("embeddings/features.parquet").read_bytes()
    assert len(explored()["images"]) == 7

    outcome = cvexp("task=embed", "task.images=[photos/b*.jpg]", "task.out=none.npz", CPU)
    assert "task.images: none of the 12 images can be read" in outcome.message
    assert runs()[0].info.status == "FAILED"
    assert artifacts("embeddings") >= {"embeddings/left_out.csv"}
    assert not Path("none.npz").exists()


def test_what_is_printed_about_images_that_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    from cvexp.report.left_out import LeftOut

    left_out = LeftOut("task.images")
    for i in range(12):
        left_out.add(Path(f"{i}.jpg"), f"{i}.jpg: it is [broken]")
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"left out: {i}.jpg: it is [broken]" for i in range(10)]


def test_mistakes(cvexp: Callable[..., Outcome]) -> None:
    write_photos()
    Path("mine.npz").write_text("kept")
    Path("file").touch()
    for settings, words in (
        ([], "task.images: got [], but it must be a list"),
        (
            ["task.images=[photos]", "task.out=x.csv"],
            "task.out: got 'x.csv', but it must be null, or the name of a file",
        ),
        (["task.images=[photos]", "task.out=mine.npz"], "task.out: mine.npz exists already; choose another name"),
        (["task.images=[photos]", "task.out=file/x.npz"], "a file is where a folder is needed"),
        (["task.images=[photos]", "task.batch_size=0"], "task.batch_size: got 0, but it must be at least 1"),
        (["task.images=[photos]", "task.max_explorer=-1"], "task.max_explorer: got -1, but it must be at least 0"),
        (["task.images=[photos]", "run=nowhere"], "run: there is no run 'nowhere'"),
    ):
        outcome = cvexp("task=embed", *settings, CPU)
        assert outcome.code == 1
        assert words in outcome.message
    assert Path("mine.npz").read_text() == "kept"


@pytest.mark.parametrize(("limit", "words"), [(4, "no explorer: it needs at least 5 images"), (0, "")])
def test_no_explorer(cvexp: Callable[..., Outcome], limit: int, words: str) -> None:
    write_photos()
    outcome = cvexp("task=embed", "task.images=[photos]", f"task.max_explorer={limit}", "loader.num_workers=0", CPU)
    assert outcome.code == 0
    assert words in outcome.message
    assert "explorer.html" not in outcome.message
    assert artifacts() == {"config.yaml", "embeddings"}


def test_an_interrupted_job_leaves_no_table_and_can_be_resumed(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos()
    original = Embedder.encode

    def encode(self: Embedder, views: torch.Tensor) -> np.ndarray:
        if len(views) == 2:
            raise KeyboardInterrupt
        return original(self, views)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "encode", encode)
        outcome = cvexp("task=embed", "task.images=[photos]", "task.batch_size=5", "task.out=x.npz", CPU)
    assert outcome.code == 130
    run = runs()[0]
    assert run.info.status == "KILLED"
    assert artifacts("embeddings") == set()
    assert not Path("x.npz").exists()
    assert cvexp(f"resume={run.info.run_id}").code == 0
    assert len(np.load("x.npz")["paths"]) == 7
