"""Checkpoint files that were cut off or changed by a broken disk are noticed before they are used."""

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cvexp.checkpoints import replacing, verify, verify_checksums
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, assert_equal_runs, runs, store

TENSORS = {"a": torch.arange(300.0), "b": torch.ones(7, 3)}
CONTENT = {"state_dict": TENSORS, "epoch": 3}


def what_torch_reads(path: Path) -> str:
    """Return what becomes of the content of a changed file if nothing is verified."""
    try:
        content = torch.load(path, weights_only=True)
        tensors = content["state_dict"]
        is_same = content["epoch"] == 3 and all(torch.equal(tensors[key], value) for key, value in TENSORS.items())
    except Exception:  # torch raises many types
        return "an error"
    return "the same" if is_same else "something else"


def test_a_changed_bit_is_noticed_unless_it_has_no_effect(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(CONTENT, path)
    whole = path.read_bytes()
    unverified: Counter[str] = Counter()
    directory = whole.rindex(b"data/0") - 46  # in the list of records at the end, each bit counts
    for position in [*range(0, directory, 10), *range(directory, directory + 46)]:
        for bit in range(8) if position >= directory else [position // 10 % 8]:
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            unverified[reads := what_torch_reads(path)] += 1
            try:
                verify(path)
            except ValueError:
                continue
            assert reads == "the same", (position, bit)
    assert unverified["something else"] > 100  # the reason for the checksums


def test_a_file_that_was_cut_off_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(CONTENT, path)
    whole = path.read_bytes()
    for length in (0, 2, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="end is missing"):
            verify_checksums(path)


def test_files_without_checksums_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=False)
    verify_checksums(path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, path)
    finally:
        torch.serialization.set_crc32_options(True)
    verify_checksums(path)


def test_a_file_is_on_the_disk_before_it_replaces_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, events = tmp_path / "last.ckpt", []
    path.write_text("old")

    def fsync(descriptor: int) -> None:
        events.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), path.read_text()))

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(path) as unfinished:
        unfinished.write_text("new")
    assert events == [(str(unfinished), "old"), (str(tmp_path), "new")]
    with contextlib.suppress(KeyError), replacing(path) as unfinished:
        unfinished.write_text("half")
        raise KeyError
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("last.ckpt", "new")]


def damage(path: Path) -> bytes:
    """Change a bit in the middle of a file, where most likely a tensor is, and return what it was."""
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    path.write_bytes(changed)
    return whole


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 1
    assert len(outcome.message.strip().splitlines()) == 1, outcome.message
    for word in ("damaged", *words):
        assert word in outcome.message


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_wherever_it_is_used(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp(*TINY, "dataset.root=data").code == 0
    (run,) = runs()
    folder = Path("outputs/artifacts", run.info.run_id, "artifacts/checkpoints")
    uri = f"runs:/{run.info.run_id}/checkpoints"
    shutil.copy(folder / "best.ckpt", "copy.ckpt")
    for path in (folder / "best.ckpt", folder / "last.ckpt", Path("copy.ckpt")):
        damage(path)
    refused(cvexp(*TINY, "backbone.weights=copy.ckpt"), "copy.ckpt: ")
    refused(cvexp(*TINY, f"backbone.weights={uri}/best.ckpt"), f"{uri}/best.ckpt: ")
    refused(cvexp("task=embed", "task.images=[data]", f"run={run.info.run_id}"), f"{uri}/best.ckpt")
    refused(cvexp("task=export", f"run={run.info.run_id}"), f"{uri}/best.ckpt: ")
    refused(cvexp(f"run={run.info.run_id}", "trainer.max_epochs=3"), "checkpoints/best.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize(("damaged", "whole"), [("last", "best"), ("best", "last")])
def test_a_damaged_checkpoint_is_named_when_a_run_is_resumed(
    cvexp: Callable[..., Outcome], damaged: str, whole: str
) -> None:
    arguments = ["task=multiclass", *TINY_SEGMENTATION, "dataset.root=data", "task.monitor=val/loss"]
    assert cvexp(*arguments, "tracking.folder=undisturbed").code == 0
    assert cvexp(*arguments, "tracking.folder=disturbed").code == 0
    (run,) = runs(Path("disturbed"))
    store(Path("disturbed")).set_terminated(run.info.run_id, "FAILED")
    path = Path("disturbed/artifacts", run.info.run_id, f"artifacts/checkpoints/{damaged}.ckpt")
    content = damage(path)
    resume = ["tracking.folder=disturbed", f"resume={run.info.run_id}"]
    advice = f"backbone.weights=runs:/{run.info.run_id}/checkpoints/{whole}.ckpt"
    refused(cvexp(*resume), f"{path.absolute()}: ", "restore it from a copy", advice)
    assert runs(Path("disturbed"))[0].info.status == "FAILED"
    path.write_bytes(content)
    assert cvexp(*resume).code == 0
    assert_equal_runs(Path("undisturbed"), Path("disturbed"))
