"""Checkpoints go to the server during a run, so that the run goes on although its machine is lost."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from cvexp.tracking import checkpoints
from tests.helpers import TINY, Outcome, mlflow_server, start

pytestmark = pytest.mark.slow  # these tests train, and start servers and processes

ARGUMENTS = ["--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", "artifacts"]


def newest(client: MlflowClient) -> Run:
    experiment = client.get_experiment_by_name("cvexp")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])[0]


def tensors(client: MlflowClient, run: Run, name: str, folder: Path) -> dict[str, torch.Tensor]:
    path = client.download_artifacts(run.info.run_id, f"checkpoints/{name}.ckpt", str(folder))
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def test_a_run_whose_machine_is_lost_goes_on_elsewhere_and_ends_bit_equal(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed with SIGKILL in its last epoch, and all that it wrote is gone; only the server is left."""
    settings = [*TINY, "trainer.max_epochs=8", "task.embed_every_n_epochs=8", "dataset.root=data"]
    with mlflow_server(*ARGUMENTS) as address:
        client = MlflowClient(address)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert cvexp(*settings, "tracking.folder=undisturbed").code == 0
        undisturbed = newest(client)
        process = start(*settings, "tracking.folder=lost", "tracking.upload_checkpoints=epoch", is_group=True)
        run_id = ""
        while process.poll() is None:
            lost = newest(client)
            if lost.info.run_id != undisturbed.info.run_id and "checkpoint.step" in lost.data.tags:
                run_id = lost.info.run_id
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert run_id, "it ended before it could be killed"
        shutil.rmtree("lost")
        outcome = cvexp(f"resume={run_id}", "tracking.folder=another machine")
        assert outcome.code == 0, outcome.message
        assert "fetching the checkpoint" in outcome.message
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["cvexp.folder"].startswith(str(Path("another machine").absolute()))
        for name in ("best", "last"):
            expected, got = tensors(client, undisturbed, name, tmp_path), tensors(client, run, name, tmp_path)
            assert all(torch.equal(expected[key], got[key]) for key in expected)
        for name in undisturbed.data.metrics:
            if not name.startswith(("speed/", "system/")):
                histories = [
                    sorted((metric.step, metric.value) for metric in client.get_metric_history(each, name))
                    for each in (undisturbed.info.run_id, run_id)
                ]
                assert histories[0] == histories[1], name


def test_a_run_without_a_checkpoint_on_the_server_cannot_go_on_elsewhere(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with mlflow_server(*ARGUMENTS) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with monkeypatch.context() as patch:
            patch.setattr("cvexp.training.module.make_optimizer", interrupt)
            assert cvexp(*TINY, "tracking.folder=here").code == 128 + signal.SIGTERM
        run = newest(MlflowClient(address))
        outcome = cvexp(f"resume={run.info.run_id}", "tracking.folder=there")
        assert outcome.code == 1
        assert "has no checkpoint of it" in outcome.message
        assert not Path("there/runs").is_dir() or not list(Path("there").rglob("*.ckpt"))


def test_a_later_checkpoint_on_the_server_wins_over_an_earlier_one_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run went on elsewhere in the meantime."""

    class Stand:
        is_local, id = False, "1"

        def __init__(self, here: Path | None, stored: int) -> None:
            self.last_checkpoint, self.stored = here, stored
            self.store = type("Store", (), {"address": "there"})

        def tags(self) -> dict[str, str]:
            return {"checkpoint.step": str(self.stored)}

    fetched = []
    monkeypatch.setattr(checkpoints, "fetch", lambda run, run_id: fetched.append(run.stored))
    torch.save({"global_step": 8}, "last.ckpt")
    for stored in (4, 8, 12):
        checkpoints.fetch_newer(Stand(Path("last.ckpt"), stored))  # type: ignore[arg-type]
    checkpoints.fetch_newer(Stand(None, 4))  # type: ignore[arg-type]
    assert fetched == [12, 4]
