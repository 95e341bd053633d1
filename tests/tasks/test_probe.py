"""Probes of finished runs and of other weights, end to end on small data."""

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvexp.metrics.probe_results import SCORES
from cvexp.report.probe import read_results, to_json
from cvexp.tracking.store import Store
from tests.helpers import TINY, Outcome, runs, save_image, store

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes

NO_DATA = [setting for setting in TINY if not setting.startswith("dataset.")]
QUICK = ["trainer.accelerator=cpu", "task.samples=100", "loader.num_workers=0", "tracking.system_metrics=false"]
OFFLINE = "task.controls=[untrained,batch_norm,histogram]"
NAMES = ["R&D", "it's <b>", "a|b", "$x$", "n" * 60]


def artifact(name: str) -> Path:
    return Path(store().download_artifacts(runs()[0].info.run_id, f"probe/{name}"))


def results() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(artifact("probe.json").read_text())
    return content


def write_folder(root: Path, names: list[str], count: int = 4, size: int = 40) -> Path:
    """Write images of noise, each class with a color of its own."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 100, (size, size, 3)) + np.array([number * 30, 0, 150 - number * 30])
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{number}-{i}.png")
    return root


def test_runs_are_compared_with_their_controls(cvexp: Callable[..., Outcome]) -> None:
    for seed in (0, 1):
        assert cvexp(*TINY, "trainer.max_epochs=1", f"seed={seed}", "task.eval_size=48").code == 0
    second, first = (run.info.run_id for run in runs())
    outcome = cvexp("task=probe", f"runs=[{first},{second}]", OFFLINE, *QUICK, "task.checkpoint=last")
    assert outcome.code == 0, outcome.message
    probe = runs()[0]
    assert (probe.data.tags["of_run"], probe.data.tags["of_runs"]) == (first, f"{first} {second}")
    content = results()
    networks = {network["name"]: network for network in content["networks"]}
    assert [network["run_id"] for network in networks.values()] == [first, second, *[None] * 5]
    assert [network["eval_size"] for network in networks.values()] == [48] * 7
    assert list(networks)[2:] == [
        "untrained, seed 0",
        "untrained, batch norm estimated, seed 0",
        "color histogram",
        "untrained, seed 1",
        "untrained, batch norm estimated, seed 1",
    ]
    assert content["groups"][0]["name"] == "dino from random, 2 seeds"
    assert len(content["groups"]) == 3
    assert len(content["contrasts"]) == 2 * 3 * len(SCORES)
    first_scores = content["networks"][0]["scores"]
    for name in SCORES:
        assert probe.data.metrics[f"val/{name}"] == pytest.approx(first_scores[name]["value"])
    saved = np.load(artifact("predictions.npz"))
    assert saved["linear"].shape == saved["knn"].shape == (7, len(saved["labels"]))
    assert (saved["linear"][0] == saved["labels"]).mean() == pytest.approx(first_scores["linear_top1"]["value"])
    tracked = Store(store(), "cvexp")
    assert to_json(read_results(tracked, probe.info.run_id)) == content
    check_untrained(first, networks["untrained, seed 0"]["scores"]["knn_top1"]["value"], len(saved["labels"]))
    for name in ("probe.png", "confusion.png"):
        assert artifact(name).stat().st_size > 10_000
    assert "also chose" not in artifact("probe.md").read_text()  # the last checkpoint was not chosen
    reported = cvexp("task=report")
    assert reported.code == 0, reported.message
    page = unescape(Path("outputs/report.html").read_text())
    assert "untrained, batch norm estimated, seed 1" in page
    assert f"{content['networks'][0]['scores']['linear_top1']['value']:.3f}" in page


def check_untrained(run_id: str, accuracy: float, num_crops: int) -> None:
    """The untrained network is that from which the run started, which was validated before training.

    That validation reduced the crops before it resized them, so that a few may be classified differently.
    """
    before = min(store().get_metric_history(run_id, "val/knn_top1"), key=lambda metric: metric.step).value
    assert accuracy == pytest.approx(before, abs=3 / num_crops)


def test_the_data_are_those_of_the_run_unless_others_are_chosen(cvexp: Callable[..., Outcome]) -> None:
    root = write_folder(Path("mine"), NAMES)
    data = ["dataset=folder", f"dataset.root={root}", "dataset.mean=[0.1,0.1,0.1]"]
    assert cvexp(*NO_DATA, *data, "trainer.max_steps=1", "task.monitor=val/loss").code == 0
    run_id = runs()[0].info.run_id
    probe = ["task=probe", OFFLINE, *QUICK]
    outcome = cvexp(*probe)
    assert outcome.code == 0, outcome.message
    assert results()["classes"] == sorted(NAMES)
    assert "also chose the checkpoint" in outcome.message
    assert cvexp(*probe, "dataset.limit=10", "task.controls=[]").code == 0
    content = results()
    assert (content["dataset"], content["num_training"], content["contrasts"]) == ("folder", 10, [])
    drawn = ["dataset.test_fraction=0.5", "dataset.fraction=0.5", "seed=3"]
    outcome = cvexp(*probe, *data, *drawn, "task.controls=[]")
    assert outcome.code == 0, outcome.message
    assert "but the probed networks were validated on" in outcome.message
    assert "on a share of 0.5 of the training images, drawn with dataset.fraction_seed=3" in outcome.message
    other = write_folder(Path("other"), ["x", "y"])
    assert cvexp(*probe, "dataset=folder", f"dataset.root={other}", "task.controls=[]").code == 0
    assert results()["classes"] == ["x", "y"]
    outcome = cvexp(*probe, "dataset.train_images=8")
    assert "dataset.train_images: this is a key of dataset=shapes" in outcome.message
    outcome = cvexp("task=report")
    assert outcome.code == 0, outcome.message
    assert cvexp(*probe, "backbone=resnet18").message.startswith("cvexp: error: backbone: a pretraining run is probed")
    assert "runs: backbone.weights= is given" in cvexp(*probe, f"runs=[{run_id}]", "backbone.weights=null").message
    assert cvexp(*NO_DATA, "dataset.train_images=12", "dataset.val_images=6", "trainer.max_steps=1").code == 0
    outcome = cvexp(*probe, f"runs=[{run_id},{runs()[0].info.run_id}]")
    assert "were pretrained on different data" in outcome.message


def test_any_name_of_a_class_is_shown(cvexp: Callable[..., Outcome]) -> None:
    root = write_folder(Path("mine"), NAMES)
    data = ["dataset=folder", f"dataset.root={root}"]
    weights = ["backbone=resnet_mini", "backbone.weights=null", "task.eval_size=32"]
    outcome = cvexp("task=probe", *weights, *data, OFFLINE, *QUICK)
    assert outcome.code == 0, outcome.message
    content = results()
    assert [network["method"] for network in content["networks"]] == [
        "random weights",
        "untrained, batch norm estimated",
        "color histogram",
    ]
    assert content["networks"][2]["scores"]["linear_top1"]["value"] > 0.9  # the classes differ in their colors
    page = artifact("probe.md").read_text()
    assert "R\\&D" in page
    assert "it's \\<b\\>" in page
    assert "a\\|b" in page


def test_weights_of_a_file_keep_their_normalization_and_size(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp(*TINY, "trainer.max_steps=1", "task.eval_size=40", "dataset.mean=[0.2,0.3,0.4]").code == 0
    run_id = runs()[0].info.run_id
    same = ["dataset.train_images=12", "dataset.val_images=6", "dataset.test_images=0", "task.controls=[]", *QUICK]
    assert cvexp("task=probe", "task.controls=[]", *QUICK).code == 0
    expected = results()["networks"][0]
    for weights in (f"runs:/{run_id}/checkpoints/best.ckpt", artifact_of(run_id, "checkpoints/best.ckpt")):
        outcome = cvexp("task=probe", "backbone=resnet_mini", f"backbone.weights={weights}", *same)
        assert outcome.code == 0, outcome.message
        network = results()["networks"][0]
        assert (network["eval_size"], network["scores"]) == (40, expected["scores"])
    assert "It is not recorded whether its images were also used" in outcome.message


def artifact_of(run_id: str, path: str) -> str:
    return str(store().download_artifacts(run_id, path))


def test_mistakes_are_explained(cvexp: Callable[..., Outcome]) -> None:
    assert "runs: there is no finished pretraining run" in cvexp("task=probe").message
    unlabeled, single = Path("unlabeled"), write_folder(Path("single"), ["x"])
    for split in ("train", "val"):
        (unlabeled / split).mkdir(parents=True)
        save_image(unlabeled / split / f"{split}.png")
    random = ["backbone=resnet_mini", "backbone.weights=null"]
    for settings, words in (
        (["runs=['0123']"], "runs: there is no run '0123'"),
        (["runs=[]"], "runs: got an empty list"),
        (["task.checkpoint=newest"], "task.checkpoint: there is no 'newest'"),
        (["task.controls=[histogramm]"], "did you mean histogram"),
        (["task.samples=3"], "task.samples: got 3"),
        ([*random, "dataset=folder", f"dataset.root={unlabeled}"], "has no labels, which a probe needs"),
        ([*random, "dataset=folder", f"dataset.root={unlabeled}", "dataset.fraction=0.5"], "has no labels, which"),
        ([*random, "dataset=folder", f"dataset.root={single}"], "have the class 'x', but a probe needs at least two"),
        ([*random, "dataset=folder", f"dataset.root={single}", "dataset.train_images=null"], "dataset.train_images"),
    ):
        outcome = cvexp("task=probe", *QUICK[:1], *settings)
        assert outcome.code == 1
        assert words in outcome.message
    unfinished = runs()[0].info.run_id
    assert "but a finished pretraining run is needed" in cvexp("task=probe", f"runs=['{unfinished}']").message
