"""Several processes that train one model, started by torchrun on the CPU."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cvexp import data
from cvexp.composition import compose
from cvexp.inference.networks import choose_device
from cvexp.inference.segmenter import Segmenter
from cvexp.metrics import iou
from cvexp.tasks.attention import Attention
from cvexp.tasks.dino import DINO
from tests.helpers import (
    TINY,
    TINY_SEGMENTATION,
    Outcome,
    assert_close_runs,
    checkpoint,
    finish,
    histories,
    interrupted_at,
    runs,
    torchrun,
)

# A backbone without batch norm, whose statistics would be those of each process's own part of the batch.
DINO_SETTINGS = [*TINY, "backbone.name=test_vit", "task.eval_size=32", "dataset.train_images=24"]

CHAIN = Path("interrupted")  # the folder of a run that is interrupted in several ways


def resume_and_disturb(disturb: Callable[[subprocess.Popen[str], dict[int, psutil.Process]], None]) -> tuple[str, str]:
    """Resume the interrupted run in two processes, and disturb them in the middle of the training.

    Args:
        disturb: Gets torchrun and its worker processes by rank.

    Returns:
        The status and the error that are recorded when torchrun has ended, which it must do within a minute.
    """
    started = time.time()
    process = torchrun(f"resume={runs(CHAIN)[0].info.run_id}", f"tracking.folder={CHAIN}")
    (last,) = CHAIN.glob("artifacts/*/artifacts/checkpoints/last.ckpt")
    while last.stat().st_mtime < started:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    children = psutil.Process(process.pid).children()
    disturb(process, {int(child.environ()["RANK"]): child for child in children})
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output
    (run,) = runs(CHAIN)
    assert run.data.tags["processes"] == "2"
    return run.info.status, run.data.tags.get("error", "")


def stop_while_one_is_frozen(process: subprocess.Popen[str], workers: dict[int, psutil.Process]) -> None:
    workers[1].suspend()
    time.sleep(0.5)  # until the other one waits for it
    process.terminate()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_ends_a_process_the_run_goes_on_in_any_number_of_processes(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*DINO_SETTINGS, "trainer.max_epochs=30", "task.embed_every_n_epochs=100", "dataset.root=data"]
    interrupted_at(10, signal.SIGTERM, DINO, cvexp, monkeypatch, settings)
    assert runs(CHAIN)[0].data.tags["processes"] == "1"

    status, error = resume_and_disturb(lambda _, workers: workers[1].kill())
    assert status == "FAILED"
    assert error.startswith("UserError: another process of the run ended")
    status, error = resume_and_disturb(lambda _, workers: workers[0].kill())
    assert status == "FAILED"
    assert error.startswith("process 1: UserError: another process of the run ended")
    status, error = resume_and_disturb(stop_while_one_is_frozen)
    assert status == "FAILED"
    assert "did not stop within 20 seconds" in error
    assert resume_and_disturb(lambda process, _: process.terminate()) == ("KILLED", "")

    outcome = cvexp(f"tracking.folder={CHAIN}", f"resume={runs(CHAIN)[0].info.run_id}")
    assert outcome.code == 0, outcome.message
    assert runs(CHAIN)[0].data.tags["processes"] == "1"
    assert cvexp(*settings, "tracking.folder=undisturbed").code == 0
    measured = assert_close_runs(CHAIN, Path("undisturbed"))
    assert {"val/loss", "val/knn_top1", "val/teacher_kl", "val/feature_rank"} <= measured.keys()


def assert_equal_untrained(first: Path, second: Path) -> None:
    """Fail unless the only runs of two stores have exactly equal validation metrics before training."""
    before, other = (
        {name: min(history) for name, history in histories(folder, runs(folder)[0]).items() if name.startswith("val/")}
        for folder in (first, second)
    )
    assert "val/loss" in before
    assert before == other


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_validate_like_one(cvexp: Callable[..., Outcome]) -> None:
    # A decoder has batch norm, so training differs. The last validation has batches of 4 and of 3 images.
    settings = ["task=attention", *TINY_SEGMENTATION, "dataset.val_images=7", "loader.num_workers=1"]
    settings += ["task.picture_every_n_epochs=1", "dataset.root=data"]
    output = finish(torchrun("trainer=ddp", *settings, "tracking.folder=two"), seconds=500)
    for line in ("; 2 processes, each with cpu, ", "epoch 1/2  ", "next: python -m cvexp "):
        assert output.count(line) == 1, output  # from the first process only
    assert cvexp(*settings, "tracking.folder=one").code == 0
    assert_equal_untrained(Path("two"), Path("one"))
    (run,) = runs(Path("two"))
    config = compose(*settings)
    splits = data.load(config.dataset, "segmentation")
    module = Attention(config, splits)
    module.load_state_dict(checkpoint(run, "best"))
    counts = Segmenter(module.model, config, module.classes, choose_device(config.trainer)).evaluate(splits.val)
    for name, score in iou.summarize(counts, splits.val.classes).items():
        assert run.data.metrics[f"best/{name}"] == score, name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_on_two_machines_train_one_model(cvexp: Callable[..., Outcome]) -> None:
    settings = ["task=multiclass", *TINY_SEGMENTATION, "dataset.val_images=3", "dataset.root=data"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    agents = [torchrun("trainer=ddp", *settings, "tracking.folder=two", launcher=launcher) for _ in range(2)]
    for agent in agents:
        finish(agent, seconds=500)
    folders = [path for path in Path("two").glob("runs/*/*") if path.is_dir()]
    assert len(folders) == 1
    assert len(list(Path("two").glob("**/cvexp.log"))) == 1
    assert cvexp(*settings, "tracking.folder=one").code == 0
    assert_equal_untrained(Path("two"), Path("one"))  # of one batch, so one process has none


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({}, ["trainer=ddp"], "start several with: torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, [], "there are 2 processes; add trainer=ddp"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, [], "there are 2 processes; add trainer=ddp"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, ["task=compare", "trainer=ddp"], "compare runs in one process"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, ["-m", "seed=0,1", "trainer=ddp"], "a sweep runs in one process"),
    ],
)
def test_what_does_not_fit_several_processes_is_refused(
    cvexp: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    arguments: list[str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outcome = cvexp(*arguments)
    assert outcome.code == 1
    assert message in outcome.message
