"""Neighbors of a finished run, end to end on small data."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from tests.helpers import TINY, Outcome, runs, save_image, store

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


def artifact(name: str, number: int = 0) -> Path:
    return Path(store().download_artifacts(runs()[number].info.run_id, name))


@pytest.fixture
def pretrained(cvexp: Callable[..., Outcome]) -> str:
    assert cvexp(*TINY, "trainer.max_epochs=1").code == 0
    return str(runs()[0].info.run_id)


def test_neighbors_and_their_precision_follow_from_the_recorded_embedding(
    cvexp: Callable[..., Outcome], pretrained: str
) -> None:
    embedding = np.load(artifact("embeddings/epoch-0001.npz"))
    outcome = cvexp("task=neighbors", "task.k=3", "task.queries=[0,5]", "trainer.accelerator=cpu")
    assert outcome.code == 0, outcome.message
    assert runs()[0].data.tags["of_run"] == pretrained
    rows = list(csv.DictReader(artifact("neighbors/neighbors.csv").read_text().splitlines()))
    features = embedding["features"].astype(np.float64)
    distance, index = NearestNeighbors(n_neighbors=4, metric="cosine").fit(features).kneighbors(features)
    for query in (0, 5):
        mine = [row for row in rows if row["query"] == str(query)]
        assert [int(row["neighbor"]) for row in mine] == index[query, 1:].tolist()
        assert [float(row["distance"]) for row in mine] == pytest.approx(distance[query, 1:].tolist(), abs=1e-6)
        assert [row["image"] for row in mine] == embedding["image"][index[query, 1:]].tolist()
    labels = embedding["labels"]
    precision = json.loads(artifact("neighbors/precision.json").read_text())
    assert (precision["k"], precision["epoch"]) == (3, 1)
    said = {**precision["classes"], "all": precision["all"]}
    share = (labels[index[:, 1:]] == labels[:, None]).mean(axis=1)
    assert said["all"]["precision"] == pytest.approx(share.mean())
    assert said["disk"]["precision"] == pytest.approx(share[labels == 0].mean())
    assert said["disk"]["chance"] == pytest.approx(((labels == 0).sum() - 1) / (len(labels) - 1))
    assert runs()[0].data.metrics["precision"] == pytest.approx(share.mean())
    assert said["all"]["untrained"] != said["all"]["precision"]
    assert artifact("neighbors/grid.png").stat().st_size > 10_000


def test_a_single_crop_has_no_neighbors(cvexp: Callable[..., Outcome]) -> None:
    for i in range(6):
        save_image(Path(f"photos/{i}.jpg"))
    data = ["dataset=folder", "dataset.root=photos", "dataset.train_images=.", "dataset.val_images=null"]
    tiny = [word for word in TINY if not word.startswith("dataset.")]
    assert cvexp(*tiny, *data, "dataset.val_fraction=0.01", "trainer.max_steps=1", "loader.batch_size=4").code == 0
    outcome = cvexp("task=neighbors")
    assert outcome.code == 1
    assert "has a single validation crop, which has no neighbors; pretrain with more validation" in outcome.message


def test_a_picture_of_ones_own_is_nearest_to_itself(cvexp: Callable[..., Outcome], pretrained: str) -> None:
    """A crop of the validation, cut out and saved, finds that crop: encoded by the same weights in the same way."""
    from cvexp import data
    from cvexp.data.crops import Crops
    from cvexp.data.examples import sample
    from tests.helpers import dataset

    settings = dataset("shapes", train_images=12, val_images=6, test_images=0)
    index = data.load(settings, "pretraining").val
    positions = sample(index, 2000)
    Crops(index).picture(positions[4]).save("mine.png")
    outcome = cvexp("task=neighbors", f"run={pretrained}", "task.images=[mine.png]", "trainer.accelerator=cpu")
    assert outcome.code == 0, outcome.message
    rows = list(csv.DictReader(artifact("neighbors/neighbors.csv").read_text().splitlines()))
    first = next(row for row in rows if row["query"] == "mine.png")
    assert first["neighbor"] == "4"
    assert float(first["distance"]) < 1e-5
    assert {row["query_class"] for row in rows if row["query"] == "mine.png"} == {""}


def test_mistakes_are_told(cvexp: Callable[..., Outcome]) -> None:
    assert "there is no finished pretraining" in cvexp("task=neighbors").message
    assert cvexp(*TINY, "trainer.max_steps=1").code == 0
    run_id = runs()[0].info.run_id
    Path("broken.png").write_bytes(b"no picture")
    for settings, words in (
        (["task.queries=[99]"], "task.queries: got 99"),
        (["task.epoch=7"], "task.epoch: there is no '7'"),
        (["task.images=[nowhere.jpg]"], "task.images: nowhere.jpg is not a file"),
        (["task.images=[broken.png]"], "task.images: broken.png: the image is broken"),
        (["runs=['0123']"], "runs: task=neighbors does not use it"),
        (["task.epoch=0", "task.images=[nowhere.jpg]"], "only the network of the last epoch"),
        (["run=0123"], "run: there is no run '0123'"),
    ):
        outcome = cvexp("task=neighbors", *settings)
        assert outcome.code == 1
        assert words in outcome.message
    Image.new("RGB", (128, 128)).save(next(Path("outputs/data/shapes").glob("*/val/000003.bmp")))
    assert "have changed since" in cvexp("task=neighbors", f"run={run_id}").message


def test_data_without_labels_have_neighbors_but_no_precision(cvexp: Callable[..., Outcome]) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 8)):
        Path(f"mine/{split}").mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"mine/{split}/{i}.png")
    tiny = [setting for setting in TINY if not setting.startswith("dataset.")]
    pretrain = ["dataset=folder", "dataset.root=mine", "trainer.max_steps=1"]
    assert cvexp(*tiny, *pretrain).code == 0
    outcome = cvexp("task=neighbors", "task.k=20")
    assert outcome.code == 0, outcome.message
    names = {item.path for item in store().list_artifacts(runs()[0].info.run_id, "neighbors")}
    assert names == {"neighbors/neighbors.csv", "neighbors/grid.png"}
    assert len(artifact("neighbors/neighbors.csv").read_text().splitlines()) == 1 + 5 * 7


@pytest.mark.parametrize("names", [("$5_a_b$", "_b"), ("<b>*x*", "all")])
def test_any_name_of_a_class_will_do(cvexp: Callable[..., Outcome], names: tuple[str, str]) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 6)):
        for name in names:
            Path(f"mine/{split}/{name}").mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (48, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(f"mine/{split}/{name}/{name}{i}.png")
    tiny = [setting for setting in TINY if not setting.startswith("dataset.")]
    assert cvexp(*tiny, "dataset=folder", "dataset.root=mine", "trainer.max_steps=1").code == 0
    outcome = cvexp("task=neighbors", "task.k=20")
    assert outcome.code == 0, outcome.message
    precision = json.loads(artifact("neighbors/precision.json").read_text())
    assert set(precision["classes"]) == set(names)
    assert precision["k"] == 11  # all that there are
    outcome = cvexp("task=report")
    assert outcome.code == 0, outcome.message


def test_embeddings_of_before_layouts_were_kept_have_neighbors(cvexp: Callable[..., Outcome], pretrained: str) -> None:
    for epoch in (0, 1):
        path = artifact(f"embeddings/epoch-{epoch:04d}.npz")
        content = dict(np.load(path))
        del content["layout"]
        np.savez(path, **content)
        store().log_artifact(pretrained, str(path), "embeddings")
    outcome = cvexp("task=neighbors", "task.k=2")
    assert outcome.code == 0, outcome.message
    outcome = cvexp("task=report")
    assert outcome.code == 0, outcome.message
