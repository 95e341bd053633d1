"""What follows from the number of processes, without starting any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cvexp import processes
from cvexp.composition import compose
from cvexp.config import RunConfig
from cvexp.errors import UserError
from cvexp.training import strategy
from cvexp.training.fit import _shared_checkpoint
from tests.helpers import TINY, TINY_SEGMENTATION


def config_for(monkeypatch: pytest.MonkeyPatch, num_processes: int, *overrides: str) -> RunConfig:
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    return compose(*TINY, *overrides)


@pytest.mark.parametrize(
    ("num_processes", "overrides", "expected"),
    [
        (1, [], {"strategy": "auto", "devices": 1, "num_nodes": 1}),
        (1, ["trainer=ddp", "resume=0"], {"strategy": "auto", "devices": 1, "num_nodes": 1}),
        (4, ["trainer=ddp"], {"strategy": strategy.DDP, "devices": 2, "num_nodes": 2, "sync_batchnorm": False}),
        (4, ["resume=0"], {"strategy": strategy.DDP, "devices": 2, "num_nodes": 2, "sync_batchnorm": False}),
    ],
)
def test_the_strategy_follows_from_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, num_processes: int, overrides: list[str], expected: dict[str, Any]
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config = config_for(monkeypatch, num_processes, *overrides)
    strategy.check_processes(config)
    assert strategy.parallelism(config.trainer) == expected


@pytest.mark.parametrize(
    ("num_processes", "overrides", "message"),
    [
        (1, ["trainer=ddp"], "start several with: torchrun"),
        (2, [], "there are 2 processes; add trainer=ddp"),
        (3, ["trainer=ddp"], "loader.batch_size: got 8, which 3 processes can't share equally; choose 6 or 9"),
        (3, ["resume=0"], "loader.batch_size: got 8, which 3 processes"),
        (2, ["trainer=ddp", "trainer.sync_batchnorm=true"], "trainer.sync_batchnorm: got true, but PyTorch"),
    ],
)
def test_what_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, num_processes: int, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        strategy.check_processes(config_for(monkeypatch, num_processes, *overrides))


def test_batch_norm_needs_two_images_in_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from cvexp.training.segmentation_config import require_large_batch

    monkeypatch.setenv("WORLD_SIZE", "2")
    settings = ["task=multiclass", *TINY_SEGMENTATION]
    require_large_batch(compose(*settings), 12)
    require_large_batch(compose(*settings, "loader.batch_size=2", "trainer.sync_batchnorm=true"), 12)
    for batch_size, num_images in ((2, 12), (4, 3)):
        with pytest.raises(UserError, match=f"got {batch_size} in 2 processes, with {num_images} training images"):
            require_large_batch(compose(*settings, f"loader.batch_size={batch_size}"), num_images)


def test_a_checkpoint_that_a_process_can_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Run:
        last_checkpoint = None

    assert _shared_checkpoint(Run()) is None  # type: ignore[arg-type]
    monkeypatch.setattr(processes, "from_first", lambda _: Path("elsewhere/last.ckpt"))
    with pytest.raises(UserError, match=r"see elsewhere/last.ckpt; choose a folder on a file system that all machines"):
        _shared_checkpoint(Run())  # type: ignore[arg-type]
