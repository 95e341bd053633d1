from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cvexp as package
from cvexp import data
from cvexp.errors import UserError
from cvexp.tasks.simclr import SimCLR
from cvexp.tracking.sink import Memory
from tests.helpers import Outcome, assert_close_runs, finish, runs, store, torchrun

TINY = [
    "task=simclr",
    "backbone=resnet_mini",
    "dataset.train_images=12",
    "dataset.val_images=6",
    "dataset.test_images=0",
    "task.size=32",
    "task.hidden_dim=32",
    "task.out_dim=16",
    "loader.batch_size=8",
    "loader.num_workers=0",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "tracking.system_metrics=false",
    "tracking.log_every_n_steps=1",
]


@pytest.mark.slow
def test_a_run_leaves_what_every_pretraining_leaves_and_others_start_from_it(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp(*TINY).code == 0
    (run,) = runs()
    assert run.data.tags["role"] == "pretraining"
    measures = {"loss", "knn_top1", "feature_std", "feature_rank", "alignment", "uniformity"}
    assert {f"val/{name}" for name in measures} <= set(run.data.metrics)
    artifacts = {item.path for item in store().list_artifacts(run.info.run_id)}
    assert {"checkpoints", "embeddings", "explorer.html", "curves", "images", "config.yaml"} <= artifacts

    segmentation = ["backbone=resnet_mini", "dataset.train_images=12", "dataset.val_images=6", "dataset.test_images=0"]
    segmentation += ["dataset.image_size=64"]
    segmentation += ["task.decoder_channels=8", "loader.batch_size=4", "loader.num_workers=0", "trainer.max_steps=1"]
    outcome = cvexp("task=multiclass", "backbone.weights=latest:simclr", *segmentation)
    assert outcome.code == 0, outcome.message
    started = runs()[0]
    assert started.data.tags["start"] == "simclr"
    assert started.data.tags["weights_from"] == run.info.run_id
    assert started.info.run_name == "multiclass-resnet_mini-shapes-simclr-seed0"
    assert "90 into the backbone" in started.data.tags["backbone.loaded"]

    assert cvexp("task=neighbors").code == 0
    assert runs()[0].data.tags["of_run"] == run.info.run_id
    assert cvexp("task=report").code == 0


def test_it_learns_without_mlflow() -> None:
    config = package.compose(*TINY)
    module = SimCLR(config, data.load(config.dataset, "pretraining"), Memory())
    torch.manual_seed(0)
    batch = (
        [module.normalize(torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)) for _ in range(2)],
        torch.zeros(8),
    )
    optimizer = module.configure_optimizers()
    losses = []
    for _ in range(15):
        loss, _ = module.step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_one_crop_in_a_batch_is_refused(cvexp: Callable[..., Outcome]) -> None:
    outcome = cvexp(*TINY, "loader.batch_size=1")
    assert outcome.code == 1
    assert "loader.batch_size: got 1" in outcome.message


def test_batch_norm_needs_two_crops_in_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    config = package.compose(*TINY, "loader.batch_size=2")
    splits = data.load(config.dataset, "pretraining")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"got 2 in 2 processes, with \d+ training crops, but the head"):
        SimCLR(config, splits)
    without = package.compose(*TINY, "loader.batch_size=2", "task.batch_norm=false")
    assert SimCLR(without, splits).describe_collapse().startswith("1.099 ")  # each of 4 views has 3 others


@pytest.mark.parametrize("uniformity", [-0.05, -2.0])
def test_collapse_is_recognized(uniformity: float) -> None:
    config = package.compose(*TINY)
    module = SimCLR(config, data.load(config.dataset, "pretraining"))
    assert bool(module.collapse_warnings({"uniformity": uniformity})) == (uniformity > -0.1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_compare_the_images_of_both(cvexp: Callable[..., Outcome]) -> None:
    # Without batch norm, whose statistics would be those of each process's own part of the batch.
    settings = [
        *TINY,
        "backbone.name=test_vit",
        "task.batch_norm=false",
        "trainer.max_steps=20",
        "trainer.max_epochs=30",
    ]
    finish(torchrun("trainer=ddp", *settings, "tracking.folder=two"), seconds=500)
    outcome = cvexp(*settings, "tracking.folder=one")
    assert outcome.code == 0, outcome.message
    measured = assert_close_runs(Path("two"), Path("one"))
    assert len(measured["train/loss"]) == 20
    assert {"val/loss", "val/knn_top1", "val/alignment", "val/uniformity"} <= measured.keys()
    assert runs(Path("two"))[0].data.tags["collapse"] == runs(Path("one"))[0].data.tags["collapse"]
