"""A study: it ends with the same result however often it was killed, and says what it left out."""

import json
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest
from PIL import Image

from cvexp.sweeps.clock import Clock
from tests.helpers import Outcome, runs, start, store

pytestmark = pytest.mark.slow

QUICK = [
    "task=study",
    "backbone=resnet_mini",
    "dataset.train_images=20",  # a quarter has an image of each class
    "dataset.val_images=6",
    "dataset.test_images=24",
    "dataset.image_size=64",
    "dataset.min_crop_size=8",
    "task.starts=[random,dino]",
    "task.methods=[multiclass]",
    "task.fractions=[0.25,1]",
    "task.seeds=[0,1]",
    "task.steps=4",
    "task.pretraining_steps=2",
    "task.validations=2",
    "task.overrides={dino: ['+experiment=demo'], multiclass: ['+experiment=demo_segmentation']}",
    "loader.batch_size=4",
    "loader.num_workers=0",
    "tracking.system_metrics=false",
]


def read(folder: str = "outputs") -> dict[str, Any]:
    """Return what the only study in a store recorded."""
    (parent,) = [run for run in runs(Path(folder)) if run.data.tags["task"] == "study"]
    path = Path(store(Path(folder)).download_artifacts(parent.info.run_id, "study/study.json"))
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def results(study: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a study measured, without the ids and commands of its runs, which contain ids."""
    points = [{k: v for k, v in point.items() if k not in ("run_ids", "commands")} for point in study["points"]]
    return {"points": points, "gains": study["gains"], "savings": study["savings"], "notes": study["notes"]}


def finished(folder: str, task: str) -> list[mlflow.entities.Run]:
    return [run for run in runs(Path(folder)) if run.data.tags["task"] == task and run.info.status == "FINISHED"]


def test_a_study_that_is_killed_ends_with_the_same_result(cvexp: Callable[..., Outcome]) -> None:
    once = [*QUICK, "task.seeds=[0]"]
    process = start(*once, "tracking.folder=killed")
    while process.poll() is None and not list(Path("killed/artifacts").glob("*/*/scores/counts.npz")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(finished("killed", "multiclass")) < 4
    assert cvexp(*once, "tracking.folder=killed").code == 0
    outcome = cvexp(*once)
    assert outcome.code == 0
    assert results(read("killed")) == results(read())
    assert len(finished("killed", "multiclass")) == len(finished("outputs", "multiclass")) == 4
    assert len(finished("killed", "dino")) == 1
    study = read()
    assert {(p["start"], p["fraction"], tuple(p["seeds"])) for p in study["points"]} == {
        (name, fraction, (0,)) for name in ("random", "dino") for fraction in (0.25, 1.0)
    }
    assert study["split"] == "test"
    assert study["num_images"] == 24
    assert "With multiclass, " in outcome.message
    assert "task=multiclass" in Path("outputs/study.html").read_text()
    for run in finished("outputs", "multiclass"):  # the metrics are those of the study
        scores = {i: s for p in study["points"] for i, s in zip(p["run_ids"], p["scores"], strict=True)}
        assert run.data.metrics["test/miou"] == pytest.approx(scores[run.info.run_id])
    assert cvexp("task=report").code == 0
    report = Path("outputs/report.html").read_text()
    assert "Labels and pretraining" in report
    assert "With multiclass, " in report.partition("<h2")[0]  # in the summary
    assert "No methods have been compared yet" not in report


def test_a_budget_ends_a_study_with_what_there_was_time_for(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [True, True, False]  # for the pretraining, the first two runs, and the next two
    monkeypatch.setattr(Clock, "allows", lambda *_: answers.pop(0))
    outcome = cvexp(*QUICK, "task.hours=5")
    assert outcome.code == 0
    assert "budget of 5 hours was too small" in outcome.message
    assert not answers
    assert [point["fraction"] for point in read()["points"]] == [0.25, 0.25]
    assert "one seed does not decide" in outcome.message
    before = read()
    monkeypatch.setattr(Clock, "allows", lambda *_: False)
    assert cvexp(*QUICK, "task.hours=5").code == 0
    assert results(read()) == results(before)  # what has finished needs no time


def test_a_start_that_can_not_be_pretrained_is_left_out(cvexp: Callable[..., Outcome]) -> None:
    faulty = "task.overrides={dino: ['+experiment=demo', 'optimizer.args.betas=[2,0.9]']}"
    outcome = cvexp(*(word for word in QUICK if "overrides" not in word), faulty, "task.seeds=[0]")
    assert outcome.code == 1
    assert "AdamW refuses" in outcome.message
    assert {point["start"] for point in read()["points"]} == {"random"}
    assert read()["notes"] == ["There are no results of the pretraining with dino, seed 0."]


def test_keys_of_single_runs_are_refused(cvexp: Callable[..., Outcome]) -> None:
    outcome = cvexp(*QUICK, "seed=3")
    assert outcome.code == 1
    assert "seed: a study sets it for each of its runs; set task.seeds" in outcome.message
    outcome = cvexp(*QUICK, "task.methods=[multiclas]")
    assert outcome.code == 1
    assert "did you mean multiclass?" in outcome.message
    outcome = cvexp(*QUICK, "task.starts=[random,tim]")
    assert outcome.code == 1
    assert "task.starts: there is no file or start 'tim'; did you mean timm?" in outcome.message
    of_method = "[dataset=voc,dataset.root=nowhere]"
    words = f"task.overrides={{all: [dataset.val_list=null],multiclass: {of_method},attention: {of_method}}}"
    outcome = cvexp("task=study", "task.starts=[random]", words)
    assert outcome.code == 1
    assert "nowhere" in outcome.message
    Path("flat/train").mkdir(parents=True)
    for i in range(20):
        Image.new("RGB", (40, 40), (10 * i, 0, 0)).save(f"flat/train/{i}.png")
    flat = ["dataset=folder", "dataset.root=flat", "dataset.val_images=null"]
    outcome = cvexp("task=study", "task.starts=[random]", "task.fractions=[0.5,1]", *flat)
    assert outcome.code == 1
    assert "has no labels, which a probe needs" in outcome.message
    assert not Path("outputs/mlflow.db").exists()  # nothing is recorded
    outcome = cvexp("task=study", "task.starts=[random]", "task.hours=1e-4")
    assert outcome.code == 1
    assert "task.hours: 0.0001 hours are less than it takes" in outcome.message


def test_without_masks_a_study_probes_frozen_features(cvexp: Callable[..., Outcome]) -> None:
    own = [word for word in QUICK if "methods" not in word and "overrides" not in word]
    probes = [*own, "task.methods=[probe]", "task.overrides={dino: ['+experiment=demo'], probe: ['task.eval_size=32']}"]
    outcome = cvexp(*probes)
    assert outcome.code == 0
    study = read()
    assert study["score"] == "probe accuracy"
    assert {(p["method"], p["start"], p["fraction"]) for p in study["points"]} == {
        ("probe", start, fraction) for start in ("random", "dino") for fraction in (0.25, 1.0)
    }
    number = len(finished("outputs", "probe"))
    assert number == 8
    assert cvexp(*probes).code == 0  # nothing is left to do
    assert len(finished("outputs", "probe")) == number
    assert results(read()) == results(study)
