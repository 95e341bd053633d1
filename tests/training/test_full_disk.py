"""A full disk: nothing is lost, and the message names what to free."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cvexp.training.checkpoint_files import CheckpointFiles
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, assert_equal_runs, checkpoint, runs, store

pytestmark = pytest.mark.slow


def mount(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small file system, and unmount it whatever happens."""
    folder.mkdir()
    mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounting.returncode:
        pytest.skip("mounting a small file system needs the superuser")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mount(tmp_path / "disk", "6m")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mount(tmp_path / "my disk", "100m")


def fill(disk: Path, room: int) -> None:
    """Write a file that leaves this many bytes free."""
    with (disk / "filler").open("wb") as file:
        for _ in range((shutil.disk_usage(disk).free - room) // 4096):
            file.write(bytes(4096))


@pytest.mark.parametrize("task", ["dino", "multiclass"])
@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])  # if the second one fails, the first one is newer
def test_a_run_goes_on_after_space_was_freed(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, small_disk: Path, task: str, name: str
) -> None:
    settings = TINY if task == "dino" else [*TINY_SEGMENTATION, "task.monitor=val/loss"]
    arguments = [f"task={task}", *settings, "dataset.root=data"]
    assert cvexp(*arguments, 'name="R&D, first"', "trainer.max_steps=1", f"tracking.folder={small_disk}").code == 0
    (former,) = runs(small_disk)
    original = CheckpointFiles.save_checkpoint
    sizes = []

    def save_checkpoint(self: CheckpointFiles, content: Mapping[str, Any], path: Path, **_: Any) -> None:
        if Path(path).name == name and content["epoch"] == 1:  # the second one
            sizes.append(path.stat().st_size)
            fill(small_disk, room=sizes[0] // 2)
        original(self, content, path)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFiles, "save_checkpoint", save_checkpoint)
        outcome = cvexp(*arguments, f"tracking.folder={small_disk}")
    assert outcome.code == 1
    assert len(outcome.message.strip().splitlines()) == 1, outcome.message
    run = runs(small_disk)[0]
    said = re.search(rf"/{name}: No space left on device \((.*) MB are needed, (.*) MB are free\)", outcome.message)
    assert said is not None, outcome.message
    assert float(said[1]) == pytest.approx(sizes[0] / 1e6, rel=0.1)
    assert float(said[2]) == pytest.approx(sizes[0] / 2e6, rel=0.2, abs=0.1)
    assert f"the largest are R&D, first ({former.info.run_id}): " in outcome.message
    assert outcome.message.count(run.info.run_id) == 2  # of the file, and to resume
    assert f"resume={run.info.run_id} 'tracking.folder={small_disk}'" in outcome.message
    assert run.info.status == "FAILED"
    folder = small_disk / "artifacts" / run.info.run_id / "artifacts/checkpoints"
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 0
    assert checkpoint(run, "best").keys() == checkpoint(run).keys()

    (small_disk / "filler").unlink()
    store(small_disk).delete_run(former.info.run_id)
    resumed = cvexp(f"resume={run.info.run_id}", f"tracking.folder={small_disk}")
    assert resumed.code == 0, resumed.message
    assert cvexp(*arguments, "tracking.folder=undisturbed").code == 0
    assert_equal_runs(Path("undisturbed"), small_disk)


def test_a_disk_without_room_for_the_record_is_named(cvexp: Callable[..., Outcome], tiny_disk: Path) -> None:
    outcome = cvexp(*TINY, "dataset.root=data", f"tracking.folder={tiny_disk}")
    assert outcome.code == 1
    assert len(outcome.message.strip().splitlines()) == 1, outcome.message
    for word in (
        "No space left on device",
        "free some space",
        f"{tiny_disk}/",
        f"resume={runs(tiny_disk)[0].info.run_id}",
    ):
        assert word in outcome.message
    assert runs(tiny_disk)[0].info.status in ("FAILED", "RUNNING")  # the database may have no room for it
    for path in tiny_disk.glob("artifacts/*/artifacts/checkpoints/*"):
        torch.load(path, weights_only=True)  # whole, or not there


def test_a_full_database_is_named_like_a_full_disk(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite says it in its own words."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def log_image(*_: Any, **__: Any) -> None:
        raise MlflowException("(sqlite3.OperationalError) database or disk is full")

    monkeypatch.setattr(MlflowClient, "log_image", log_image)
    outcome = cvexp(*TINY)
    assert outcome.code == 1
    problem = r"MLflow's store failed \(\(sqlite3.OperationalError\) database or disk is full\)"
    assert re.search(problem + r" \(.* are free\); free some space; then resume", outcome.message)
