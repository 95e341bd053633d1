"""The comparison of finished runs, end to end on small data."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from cvexp.composition import compose
from cvexp.metrics import iou
from cvexp.metrics.bootstrap import paired_difference
from tests.helpers import TINY_SEGMENTATION, Outcome, runs, store

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


QUICK = ["trainer.max_epochs=1", "trainer.max_steps=1", "dataset.val_images=6"]
COMPARE = ["task=compare", "task.samples=200", "task.timed_images=2", "task.pictured_images=1"]


def train(cvexp: Callable[..., Outcome], *settings: str) -> mlflow.entities.Run:
    names = {setting.partition("=")[0] for setting in settings}
    given = {setting.partition("=")[0]: setting for setting in (*TINY_SEGMENTATION, *QUICK)}
    tiny = [setting for name, setting in given.items() if name not in names]
    outcome = cvexp(*tiny, *settings)
    assert outcome.code == 0, outcome.message
    return runs()[0]


def artifact(run: mlflow.entities.Run, name: str) -> Path:
    return Path(store().download_artifacts(run.info.run_id, f"comparison/{name}"))


def test_every_number_follows_from_the_counts_and_equals_what_training_measured(cvexp: Callable[..., Outcome]) -> None:
    trained = [train(cvexp, f"task={task}", f"seed={seed}") for task in ("multiclass", "attention") for seed in (0, 1)]
    outcome = cvexp(*COMPARE)
    assert outcome.code == 0, outcome.message
    run = runs()[0]
    saved = np.load(artifact(run, "counts.npz"))
    counts = dict(zip(saved["run_ids"].tolist(), saved["counts"], strict=True))
    assert set(counts) == {one.info.run_id for one in trained}
    assert saved["counts"].shape == (4, 6, 6, 3)
    said = json.loads(artifact(run, "comparison.json").read_text())
    for one in trained:
        mine = counts[one.info.run_id]
        (entry,) = (entry for entry in said["runs"] if entry["run_id"] == one.info.run_id)
        for name, value in iou.summarize(mine, said["classes"]).items():
            assert entry[name] == pytest.approx(value)
            assert one.data.metrics[f"best/{name}"] == pytest.approx(value, abs=1e-6)
        assert entry["parameters"] > 100_000
        assert len(entry["times"]) == 2
        assert entry["milliseconds"] == pytest.approx(np.median(entry["times"]))
    (difference,) = (d for d in said["differences"] if d["name"] == "attention - multiclass, from random")
    both = [
        np.stack([counts[one.info.run_id][:, 1:] for one in trained if one.data.tags["task"] == task])
        for task in ("attention", "multiclass")
    ]
    again = paired_difference(both[0], both[1], num_samples=200)
    assert [difference[key] for key in ("difference", "low", "high")] == pytest.approx(list(again))
    assert difference["pairs"] == 2
    page = artifact(run, "comparison.md").read_text()
    assert f"{np.mean([iou.mean_iou(c[:, 1:].sum(axis=0)) for c in counts.values()][:2]):.3f}" in page
    assert artifact(run, "grid.png").stat().st_size > 10_000


def test_by_default_the_newest_run_of_each_kind_that_fits_the_newest(cvexp: Callable[..., Outcome]) -> None:
    train(cvexp, "task=multiclass")
    other_size = train(cvexp, "task=attention", "dataset.image_size=48")
    old, new = (train(cvexp, "task=multiclass") for _ in range(2))
    few_labels = train(cvexp, "task=attention", "dataset.fraction=0.5")
    attention = train(cvexp, "task=attention", "trainer.max_steps=2")
    outcome = cvexp(*COMPARE)
    assert outcome.code == 0, outcome.message
    chosen = {entry["run_id"] for entry in json.loads(artifact(runs()[0], "comparison.json").read_text())["runs"]}
    assert chosen == {new.info.run_id, attention.info.run_id}
    assert old.info.run_id not in outcome.message
    assert other_size.info.run_id not in outcome.message
    assert "trainer.max_steps: 1, 2" in outcome.message
    assert few_labels.info.run_id not in outcome.message
    assert "3 other runs on these images are left out" in outcome.message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["dataset.classes=[disk,star]"], "different classes"),
        (["dataset.image_size=48"], "different sizes, 64 and 48 px"),
        (["dataset.generator_seed=5"], "different validation images"),
        (["dataset.limit=3"], "different validation images"),
    ],
)
def test_what_is_not_comparable_is_refused(cvexp: Callable[..., Outcome], settings: list[str], words: str) -> None:
    first = train(cvexp, "task=multiclass")
    second = train(cvexp, "task=attention", *settings)
    outcome = cvexp(*COMPARE, f"runs=[{first.info.run_id},{second.info.run_id}]")
    assert outcome.code == 1
    assert "can't be compared" in outcome.message
    assert words in outcome.message


def test_each_model_sees_images_as_it_was_trained_to_and_what_differs_is_told(cvexp: Callable[..., Outcome]) -> None:
    first = train(cvexp, "task=multiclass", "dataset.train_images=8")
    second = train(cvexp, "task=attention", "dataset.mean=[0.9,0.1,0.5]", "dataset.std=[0.1,0.2,0.4]")
    outcome = cvexp(*COMPARE)
    assert outcome.code == 0, outcome.message
    for setting in ("dataset.mean", "dataset.std", "dataset.train_images", "the fingerprint of the training data"):
        assert f"the runs differ in {setting}" in " ".join(outcome.message.split())
    for entry in json.loads(artifact(runs()[0], "comparison.json").read_text())["runs"]:
        run = first if entry["run_id"] == first.info.run_id else second
        assert entry["miou"] == pytest.approx(run.data.metrics["best/miou"], abs=1e-6)
    assert "6 images are too few" in artifact(runs()[0], "comparison.md").read_text()


def test_mistakes_are_told(cvexp: Callable[..., Outcome]) -> None:
    assert "two are needed" in cvexp(*COMPARE).message
    only = train(cvexp, "task=multiclass")
    assert "there are 1 finished runs" in cvexp(*COMPARE).message
    again = train(cvexp, "task=multiclass")
    same = cvexp(*COMPARE, f"runs=[{only.info.run_id},{again.info.run_id}]").message
    assert "both are multiclass from random with seed 0" in same
    assert "it has the same task, start and seed" in cvexp(*COMPARE).message
    assert "there is no run '0123'" in cvexp(*COMPARE, f"runs=['0123',{only.info.run_id}]").message
    failed = next(run for run in runs() if run.info.status == "FAILED")
    assert "FAILED" in cvexp(*COMPARE, f"runs=[{failed.info.run_id},{only.info.run_id}]").message


def test_changed_images_are_noticed(cvexp: Callable[..., Outcome]) -> None:
    for task in ("multiclass", "attention"):
        train(cvexp, f"task={task}")
    (image,) = Path("outputs/data/shapes").glob("*64px*/val/000003.bmp")
    image.write_bytes(image.read_bytes()[:-3] + b"abc")
    outcome = cvexp(*COMPARE)
    assert outcome.code == 1
    assert "have changed since" in outcome.message


def test_models_take_turns_at_each_image_so_that_their_times_compare() -> None:
    from cvexp import data
    from cvexp.tasks.compare import NUM_WARM_UP, time_images

    calls: list[tuple[str, bytes]] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def label_squares(self, images: torch.Tensor) -> None:
            calls.append((self.name, images.numpy().tobytes()))

    small = ["dataset.train_images=2", "dataset.val_images=4", "dataset.test_images=0", "dataset.image_size=64"]
    settings = compose("task=multiclass", *small)
    val = data.load(settings.dataset, "segmentation").val
    times = time_images({name: Fake(name) for name in "abc"}, val, 64, 5)  # type: ignore[misc]
    assert {name: len(values) for name, values in times.items()} == {"a": 5, "b": 5, "c": 5}
    assert all(time >= 0 for values in times.values() for time in values)
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == NUM_WARM_UP + 5
    assert ["".join(name for name, _ in one) for one in rounds] == ["abc", "bca", "cab"] * 2 + ["abc", "bca"]
    assert all(len({image for _, image in one}) == 1 for one in rounds)
    assert len({one[0][1] for one in rounds}) == 4
