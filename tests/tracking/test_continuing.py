"""A finished run is continued: the new run begins with its record, and trains on as if there had been no end."""

import importlib
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import torch
from mlflow.entities import Run

import cvexp
from cvexp.errors import UserError
from cvexp.models.schedules import cosine, warmup_cosine
from cvexp.tasks.dino import DINO
from cvexp.tracking import fork
from tests.helpers import (
    TINY,
    TINY_SEGMENTATION,
    Outcome,
    checkpoint,
    finish,
    histories,
    mlflow_server,
    runs,
    save_image,
    store,
    torchrun,
    write_coco,
)

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes

CONSTANT = ["optimizer.warmup=0", "optimizer.final_lr=1e-3", "optimizer.final_weight_decay=0.04"]
CONSTANT += ["optimizer.lr=1e-3", "optimizer.weight_decay=0.04", "dataset.root=data"]
DINO_CONSTANT = ["task.freeze_last_layer=0", "task.teacher_momentum=0.99", "task.final_teacher_momentum=0.99"]
ALL_PICTURES = "task.picture_every_n_epochs=1"  # or else a run also has some of its last epoch
SIMCLR = [word for word in TINY if not word.startswith("task.")]
TASKS = {
    "dino": [*TINY, *CONSTANT, *DINO_CONSTANT],
    "simclr": [*SIMCLR, "task.size=32", "task.hidden_dim=32", "task.out_dim=16", *CONSTANT],
    "multiclass": [*TINY_SEGMENTATION, *CONSTANT, ALL_PICTURES],
    "attention": [*TINY_SEGMENTATION, *CONSTANT, ALL_PICTURES],
}


def recorded(run_id: str, folder: str = "outputs") -> Run:
    return store(Path(folder)).get_run(run_id)


def artifacts(run: Run, folder: str) -> list[str]:
    """The names of files in a folder of a run, without what MLflow adds to those of pictures."""
    path = Path(urlparse(run.info.artifact_uri).path) / folder
    return sorted(file.name.split("timestamp")[0] for file in path.iterdir()) if path.is_dir() else []


def measured(run: Run, folder: str = "outputs") -> dict[str, list[tuple[int, float]]]:
    """All metrics, except for those of the machine, and those that are measured once, at the end of a run."""
    found = histories(Path(folder), run)
    return {name: sorted(values) for name, values in found.items() if not name.startswith("test/")}


def assert_same_training(one: Run, other: Run, folder: str) -> None:
    """Fail unless the run `one` in `outputs` and the run `other` in `folder` have the same record and weights."""
    for name in ("last", "best"):
        expected, got = checkpoint(other, name), checkpoint(one, name)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert measured(one) == measured(other, folder)
    for kind in ("embeddings", "dense", "images", "data", "pictures"):
        assert artifacts(one, kind) == artifacts(other, kind)
    for tag in ("start", "selected", "data.train.fingerprint", "data.val.fingerprint"):
        assert one.data.tags[tag] == other.data.tags[tag]
    assert one.inputs is not None
    assert other.inputs is not None
    assert one.inputs.to_dictionary() == other.inputs.to_dictionary()


@pytest.mark.parametrize("task", TASKS)
def test_two_epochs_continued_to_four_equal_four(task: str) -> None:
    arguments = [f"task={task}", *TASKS[task]]
    first = cvexp.run(*arguments)
    before = recorded(first.run_id)
    second = cvexp.run(f"run={first.run_id}", "trainer.max_epochs=4", "name=further")
    whole = cvexp.run(*arguments, "trainer.max_epochs=4", "tracking.folder=whole")
    run = recorded(second.run_id)
    assert run.info.run_name == "further"
    assert run.data.tags["continues"] == run.data.tags["mlflow.parentRunId"] == first.run_id
    assert_same_training(run, recorded(whole.run_id, "whole"), "whole")
    assert recorded(first.run_id).to_dictionary() == before.to_dictionary()
    third = cvexp.run(f"run={second.run_id}", "trainer.max_epochs=5")  # a run that was itself continued
    assert [step for step, _ in measured(recorded(third.run_id))["val/loss"]] == [
        epoch * len(measured(before)["train/loss"]) // 2 for epoch in range(6)
    ]


@pytest.mark.parametrize("steps", [6, 8])  # of 4 an epoch: in the second one, at its end
def test_a_run_that_ended_within_an_epoch_goes_on_within_it(steps: int) -> None:
    arguments = [*TASKS["dino"], "trainer.max_epochs=5"]
    first = cvexp.run(*arguments, f"trainer.max_steps={steps}")
    second = recorded(cvexp.run(f"run={first.run_id}", "trainer.max_steps=14").run_id)
    whole = recorded(cvexp.run(*arguments, "trainer.max_steps=14", "tracking.folder=whole").run_id, "whole")
    expected, got = checkpoint(whole), checkpoint(second)
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    losses = dict(measured(whole, "whole")["val/loss"])
    assert dict(measured(second)["val/loss"]).items() >= losses.items()
    assert second.data.tags["selected"] == "epoch 4 of 4: the last one"


def test_schedules_are_those_of_a_run_of_the_new_length(
    cvexp: Callable[..., Outcome],
) -> None:
    """Also of other learning rates; what is said about the seam is what is done there."""
    assert cvexp(*TINY).code == 0
    (first,) = runs()
    outcome = cvexp(f"run={first.info.run_id}", "trainer.max_epochs=10", "optimizer.lr=2e-3", "optimizer.warmup=0.5")
    assert outcome.code == 0
    second = runs()[0]
    lrs = dict(measured(second)["schedule/lr"])
    assert lrs[7] == dict(measured(first)["schedule/lr"])[7]
    assert lrs[8] == warmup_cosine(8 / 40, 0.5, 2e-3, 1e-6)
    assert dict(measured(second)["schedule/weight_decay"])[39] == cosine(39 / 40, 0.04, 0.4)
    text = second.data.tags["continues.schedules"]
    assert text.replace("; ", "\n  ").split("\n") == outcome.message[outcome.message.index("continues run") :].split(
        "\nepoch"
    )[0].replace("; ", "\n  ").split("\n")
    assert f"continues run {first.info.run_id} at step 8 of 40 (epoch 2 of 10)" in text
    assert f"lr goes on at {lrs[8]:.4g} (the last step of that run had {lrs[7]:.4g}), and ends at {lrs[39]:.4g}" in text
    assert f"teacher_momentum goes on at {cosine(8 / 40, 0.99, 1.0):.4g}" in text
    assert "lr is in its warm-up until step 20" in text
    assert "teacher_temperature is in its warm-up until step 12" in text
    assert "frozen" not in text


@pytest.mark.parametrize("place", ["fork._copy_metrics", "fork._copy_artifacts", "checkpoints._copy"])
def test_killed_while_copying_it_copies_again(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    first = cvexp.run(*TINY, "dataset.root=data")
    with monkeypatch.context() as patch:
        module, _, name = place.partition(".")
        original = getattr(importlib.import_module(f"cvexp.tracking.{module}"), name)

        def killed(*arguments: Any) -> None:
            original(*arguments)
            os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(f"cvexp.tracking.{place}", killed)
        with pytest.raises(KeyboardInterrupt):
            cvexp.run(f"run={first.run_id}", "trainer.max_epochs=3")
    killed_run = runs()[0]
    assert killed_run.info.status == "KILLED"
    result = cvexp.run(f"resume={killed_run.info.run_id}")
    assert result.run_id == killed_run.info.run_id
    undisturbed = cvexp.run(f"run={first.run_id}", "trainer.max_epochs=3")  # twice from the same run
    assert measured(recorded(result.run_id)) == measured(recorded(undisturbed.run_id))
    assert [step for step, _ in measured(recorded(result.run_id))["train/loss"]] == list(range(12))


def test_an_old_best_epoch_stays_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its checkpoint, its tag, and its scores."""
    first = cvexp.run("task=multiclass", *TASKS["multiclass"], "dataset.test_images=6")
    best = checkpoint(recorded(first.run_id), "best")
    second = cvexp.run(f"run={first.run_id}", "trainer.max_epochs=4", "optimizer.lr=0.3", "optimizer.clip_norm=null")
    assert second.metrics["best/epoch"] == first.metrics["best/epoch"]
    assert all(torch.equal(best[key], value) for key, value in checkpoint(recorded(second.run_id), "best").items())
    assert recorded(second.run_id).data.tags["selected"].endswith(" of 4: the highest val/miou")
    assert second.metrics["test/miou"] == first.metrics["test/miou"]


def test_what_may_not_change_is_refused_in_one_message() -> None:
    first = cvexp.run(*TINY).run_id
    with pytest.raises(UserError) as error:
        cvexp.run(
            f"run={first}", "trainer.max_epochs=4", "seed=1", "task=simclr", "optimizer=sgd", "loader.batch_size=4"
        )
    for words in (
        "seed was 0, now 1",
        "task.name was dino, now simclr",
        "optimizer=..., which sets all keys of optimizer; set only those that change",
        "loader.batch_size was 8, now 4",
        f"backbone.weights=runs:/{first}/checkpoints/last.ckpt",
    ):
        assert words in str(error.value)
    assert "max_epochs" not in str(error.value)
    refusals = {
        "+experiment=demo": "experiment=...",
        "trainer.steps_per_epoch=2": "trainer.steps_per_epoch was null, now 2",
        "optimizer.args.eps=1": "optimizer.args.eps",
        "optimizer.name=SGD": "optimizer.name was AdamW, now SGD",
        "dataset.limit=3": "dataset.limit was null, now 3",
    }
    for word, said in refusals.items():
        with pytest.raises(UserError, match=said.replace(".", r"\.")):
            cvexp.run(f"run={first}", "trainer.max_epochs=4", word)
    assert len(runs()) == 1
    kept = [*TINY, "seed=0", "task=dino", "dataset=shapes", "optimizer=adamw"]  # may be repeated
    assert cvexp.run(*kept, f"run={first}", "trainer.max_epochs=3", "loader.num_workers=1").metrics["best/epoch"] == 2


def test_what_can_not_be_continued_is_refused_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cvexp.run(*TINY, "trainer.max_steps=3").run_id
    for words in ([], ["trainer.max_epochs=1"], ["trainer.max_epochs=9"], ["trainer.max_steps=3"]):
        with pytest.raises(UserError, match=r"has made 3 steps, 4 an epoch, and .* gives 3, including those"):
            cvexp.run(f"run={first}", *words)
    job = cvexp.run("task=neighbors", "task.k=2").run_id
    with pytest.raises(UserError, match=r"is a run of task=neighbors, so it has no training to continue"):
        cvexp.run(f"run={job}", "trainer.max_epochs=3")
    with pytest.raises(UserError, match="run: there is no run 'absent'"):
        cvexp.run("run=absent", "trainer.max_epochs=3")
    with pytest.raises(UserError, match="task=prepare does not use it"):
        cvexp.run("task=prepare", f"run={first}")
    monkeypatch.setattr(DINO, "log_scores", lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        cvexp.run(*TINY)
    killed = runs()[0].info.run_id
    with pytest.raises(UserError, match=rf"has not finished .*KILLED.*; finish it with: .* resume={killed}"):
        cvexp.run(f"run={killed}", "trainer.max_epochs=3")


def test_changed_data_are_refused_and_moved_ones_are_not(tmp_path: Path) -> None:
    root = write_coco(Path("coco"))
    data = ["dataset=coco", "dataset.classes=[cat,dog]", "dataset.min_crop_size=8"]
    tiny = [word for word in TINY if not word.startswith("dataset.")]
    first = cvexp.run(*tiny, *data, f"dataset.root={root}").run_id
    root.rename("moved")
    second = cvexp.run(f"run={first}", "dataset=coco", "dataset.root=moved", "trainer.max_epochs=3").run_id
    assert recorded(second).data.params["dataset.root"] == "moved"
    save_image(Path("moved/train2017/train3.jpg"), size=(80, 60), seed=7)
    with pytest.raises(UserError, match=r"have changed since .* \(train: changed train2017/train3\.jpg\)"):
        cvexp.run(f"run={second}", "trainer.max_epochs=4")


def test_fractions_of_the_labels_and_steps_of_an_epoch_are_kept() -> None:
    lengths = ["dataset.fraction=0.5", "trainer.steps_per_epoch=5", "trainer.max_epochs=2"]
    first = cvexp.run("task=multiclass", *TINY_SEGMENTATION, *lengths, "seed=3").run_id
    second = recorded(cvexp.run(f"run={first}", "trainer.max_epochs=3", "loader.batch_size=6").run_id)
    assert [step for step, _ in measured(second)["val/loss"]] == [0, 5, 10, 15]
    assert second.data.tags["data.train.fingerprint"] == recorded(first).data.tags["data.train.fingerprint"]
    assert second.data.params["dataset.fraction_seed"] == second.data.params["seed"] == "3"


def test_a_sweep_continues_several_runs_and_skips_them_when_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [cvexp.run(*TINY, f"seed={seed}").run_id for seed in (0, 1)]
    sweep = ["-m", f"run={ids[0]},{ids[1]}", "trainer.max_epochs=3", "task=dino"]
    original = fork.fork
    with monkeypatch.context() as patch:

        def fails(run: Any, source: str) -> None:
            if source == ids[1]:
                raise UserError("out of luck")
            original(run, source)

        patch.setattr(fork, "fork", fails)
        with pytest.raises(UserError, match="1 of 2 jobs did not finish"):
            cvexp.run(*sweep)
    parent = cvexp.run(*sweep).run_id
    assert len(runs()) == 2 + 1 + 2  # the failed job went on with its run
    children = [run for run in runs() if "continues" in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent}
    assert {run.data.tags["continues"] for run in children} == set(ids)
    assert all(run.info.status == "FINISHED" for run in children)
    assert all(run.data.metrics["best/epoch"] == 2 for run in children)
    cvexp.run("-m", f"run={ids[0]}", "optimizer.lr=1e-3,1e-4", "trainer.max_epochs=3")
    assert len(runs()) == 5 + 2  # its own run, and that of the second learning rate
    with pytest.raises(UserError, match="seed was 0, now 1"):
        cvexp.run("-m", f"run={ids[0]}", "seed=0,1", "trainer.max_epochs=3")


def test_a_damaged_checkpoint_or_one_with_code_is_refused() -> None:
    first = cvexp.run(*TINY)
    path = Path(urlparse(recorded(first.run_id).info.artifact_uri).path) / "checkpoints" / "last.ckpt"
    torch.save({"code": math.sqrt}, path)
    with pytest.raises(UserError, match=r"checkpoints/last\.ckpt is damaged \(ValueError: it holds more than tensors"):
        cvexp.run(f"run={first.run_id}", "trainer.max_epochs=3")
    path.unlink()
    with pytest.raises(UserError, match=r"checkpoints/last\.ckpt can't be fetched"):
        cvexp.run(f"run={first.run_id}", "trainer.max_epochs=3")


def test_two_processes_continue_the_run_of_one() -> None:
    without_batch_norm = ["backbone.name=test_vit", "task.eval_size=32", "dataset.train_images=24", "dataset.root=data"]
    first = cvexp.run(*TINY, *without_batch_norm).run_id
    output = finish(torchrun(f"run={first}", "trainer.max_epochs=3"))
    assert output.count(f"continues run {first} at step ") == 1
    second = runs()[0]
    assert second.data.tags["processes"] == "2"
    alone = recorded(cvexp.run(f"run={first}", "trainer.max_epochs=3").run_id)
    one, other = (measured(run)["train/loss"] for run in (second, alone))
    assert [step for step, _ in one] == [step for step, _ in other]
    assert [loss for _, loss in one] == pytest.approx([loss for _, loss in other], abs=1e-4)


def test_what_works_on_runs_works_on_a_continued_one(cvexp: Callable[..., Outcome]) -> None:
    """The explorer, the neighbors, latest:, compare and the report; in a folder with spaces that was moved."""
    place = "tracking.folder=my results"
    data = ["dataset.root=data", "dataset.train_images=24"]
    assert cvexp(*TINY, *data, place).code == 0
    assert cvexp(*TINY, *data, "backbone.weights=latest:dino", place).code == 0
    first = runs(Path("my results"))[0]
    Path("my results").rename("moved results")
    place = "tracking.folder=moved results"
    assert cvexp(f"run={first.info.run_id}", "trainer.max_epochs=3", place).code == 0
    second = runs(Path("moved results"))[0]
    assert second.data.tags["weights_from"] == first.data.tags["weights_from"]
    assert second.data.tags["start"] == "dino"
    tiny = [*TINY_SEGMENTATION, *data, place, "trainer.max_steps=1"]
    assert cvexp("-m", "task=multiclass,attention", *tiny, "backbone.weights=latest:dino").code == 0
    segmentations = runs(Path("moved results"))[:2]
    assert {run.data.tags["weights_from"] for run in segmentations} == {second.info.run_id}
    for job in (["task=neighbors", "task.k=2"], ["task=compare", "task.timed_images=1"], ["task=report"]):
        outcome = cvexp(*job, place)
        assert outcome.code == 0, outcome.message
    page = Path("moved results/report.html").read_text()
    assert f"run={first.info.run_id} trainer.max_epochs=3" in page
    assert page.count("backbone.weights=latest:dino") >= 2  # the command of the run that was continued is listed, too


def test_on_a_server_with_artifacts_over_http(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with mlflow_server("--backend-store-uri", f"sqlite:///{tmp_path}/s.db", "--artifacts-destination", "served") as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        first = cvexp.run(*TINY, "dataset.root=data", "tracking.folder=here").run_id
        second = cvexp.run(f"run={first}", "trainer.max_epochs=3", "tracking.folder=there", "dataset.root=data")
        assert second.metrics["best/epoch"] == 2
        served = Path("served").glob(f"*/{second.run_id}/artifacts/*/*")
        names = {f"{path.parent.name}/{path.name}" for path in served}
        assert {"checkpoints/last.ckpt", "embeddings/epoch-0000.npz", "embeddings/epoch-0003.npz"} <= names
