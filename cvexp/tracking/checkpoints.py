"""Checkpoints of a run that the store has, so that the run can go on although its machine is lost."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cvexp.checkpoints import replacing, verify
from cvexp.errors import opening
from cvexp.tracking.outbox import STEP

if TYPE_CHECKING:
    from cvexp.tracking.run import ReadOnlyRun

NAMES = ("best.ckpt", "last.ckpt")  # in this order, because a run goes on from the last one

log = logging.getLogger("cvexp")


def step_of(path: Path) -> int:
    """Return the optimizer step of a checkpoint."""
    return int(torch.load(path, weights_only=True, map_location="cpu", mmap=True)["global_step"])


def fetch(run: ReadOnlyRun, source_id: str) -> None:
    """Copy the checkpoints of a run in the store to the folder of an open run.

    Raises:
        UserError: if one can't be fetched, is damaged, or holds more than data.
    """
    with opening("tracking.folder"):
        for name in NAMES:
            run.store.read(source_id, f"checkpoints/{name}", partial(_copy, run.folder / "checkpoints" / name))


def fetch_newer(run: ReadOnlyRun) -> None:
    """Fetch the checkpoints of a run if the store has a later one than this machine, on which others may have run."""
    last = run.last_checkpoint
    stored = int(run.tags().get(STEP, -1))
    if not run.is_local and stored > (-1 if last is None else step_of(last)):
        log.info("fetching the checkpoint of step %s from %s", stored, run.store.address)
        fetch(run, run.id)


def _copy(path: Path, fetched: Path) -> None:
    verify(fetched)
    with replacing(path) as unfinished:
        shutil.copyfile(fetched, unfinished)
