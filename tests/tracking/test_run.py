from collections.abc import Callable
from pathlib import Path

import pytest

from cvexp.config import flatten
from tests.helpers import TINY, Outcome, finish, mlflow_server, runs, start_at_once, store

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


def test_six_runs_at_once_on_a_fresh_store_all_finish() -> None:
    settings = [*TINY, "trainer.max_epochs=1", "trainer.max_steps=2", "dataset.train_images=8", "dataset.val_images=3"]
    finish(start_at_once([[*settings, f"seed={seed}"] for seed in range(6)]))
    assert [run.info.status for run in runs()] == ["FINISHED"] * 6
    assert len({run.data.params["seed"] for run in runs()}) == 6
    folders = {run.data.tags["cvexp.folder"] for run in runs()}
    assert len(folders) == 6


def test_an_error_that_is_a_bug_ends_the_run_as_failed(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("cvexp.training.module.make_optimizer", bug)
    with pytest.raises(ZeroDivisionError):
        cvexp(*TINY)
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "ZeroDivisionError: a bug"


def test_a_server_takes_everything(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """A real MLflow server on this machine that serves the artifacts too: nothing lies where the run can see it."""
    with mlflow_server("--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", "artifacts") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert cvexp(*TINY, "trainer.max_steps=2").code == 0
        import mlflow

        client = mlflow.MlflowClient(address)
        experiment = client.get_experiment_by_name("cvexp")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED"
        paths = {item.path for item in client.list_artifacts(run.info.run_id, "checkpoints")}
        assert paths == {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
        assert not Path("outputs/mlflow.db").exists()


def test_everything_of_a_run_is_recorded(cvexp: Callable[..., Outcome]) -> None:
    from omegaconf import OmegaConf

    outcome = cvexp(*TINY, "name=all-of-it")
    assert outcome.code == 0
    (run,) = runs()
    client = store()
    assert run.info.run_name == "all-of-it"
    assert run.info.status == "FINISHED"
    assert run.info.run_id in outcome.message
    assert run.data.params["task.out_dim"] == "32"
    assert run.data.params["optimizer.args.betas"] == "[0.9, 0.999]"
    assert run.data.params["backbone.weights"] == "null"
    config = OmegaConf.to_container(OmegaConf.load(Path(client.download_artifacts(run.info.run_id, "config.yaml"))))
    assert isinstance(config, dict)
    assert flatten({str(key): value for key, value in config.items()}) == run.data.params
    measures = ["knn_top1", "teacher_entropy", "teacher_kl", "feature_std", "feature_rank", "loss"]
    for name in measures:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, f"val/{name}")]
        assert steps == [0, 4, 8], name
        assert f"best/{name}" in run.data.metrics
    last = max(client.get_metric_history(run.info.run_id, "val/loss"), key=lambda metric: metric.step)
    assert run.data.metrics["best/loss"] == last.value
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(8))
    measured = {"images_per_second", "data_wait", "validation", "pictures"}
    assert {f"speed/{name}" for name in measured} <= run.data.metrics.keys()
    assert "time: training " in outcome.message
    assert run.data.tags["data.keep"].startswith("ram (")
    for tag in ("command", "seed", "version.torch", "data.train.fingerprint"):
        assert run.data.tags[tag]
    assert run.inputs is not None
    names = [entry.dataset.name for entry in run.inputs.dataset_inputs]
    assert sorted(names) == ["shapes-train", "shapes-val"]

    def artifacts(folder: str) -> set[str]:
        return {item.path for item in client.list_artifacts(run.info.run_id, folder)}

    assert artifacts("checkpoints") == {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert artifacts("embeddings") == {f"embeddings/epoch-000{epoch}.npz" for epoch in range(3)}
    assert artifacts("curves") == {"curves/curves.png"}
    pictures = [path for path in artifacts("images") if path.endswith(".png")]
    assert [sum(f"images/{key}+" in path for path in pictures) for key in ("tsne", "dense")] == [3, 3]
    assert len(pictures) == 6


def test_an_embedding_says_which_crop_each_feature_is_of(cvexp: Callable[..., Outcome]) -> None:
    import numpy as np

    assert cvexp(*TINY, "trainer.max_steps=1").code == 0
    (run,) = runs()
    content = np.load(store().download_artifacts(run.info.run_id, "embeddings/epoch-0001.npz"))
    assert set(content) == {"features", "labels", "image", "box", "layout"}
    count = len(content["labels"])
    assert content["features"].shape == (count, 96)
    assert content["box"].shape == (count, 4)
    assert all(name.startswith("val/") for name in content["image"])


def test_system_metrics_are_recorded(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    assert cvexp(*TINY, "tracking.system_metrics=true").code == 0
    assert any(name.startswith("system/") for name in runs()[0].data.metrics)


def test_equal_seeds_give_equal_losses_and_others_do_not(cvexp: Callable[..., Outcome]) -> None:
    for seed, workers in ((0, 0), (0, 2), (1, 0)):
        assert cvexp(*TINY, f"seed={seed}", f"loader.num_workers={workers}", "trainer.max_steps=3").code == 0
    other, again, first = (
        [metric.value for metric in store().get_metric_history(run.info.run_id, "train/loss")] for run in runs()
    )
    assert first == again
    assert first != other
