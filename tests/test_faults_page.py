"""The commands of docs/faults.md."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import TINY, Outcome, code_blocks, runs


@pytest.mark.slow
def test_deleting_a_run_makes_room(cvexp: Callable[..., Outcome]) -> None:
    for seed in (0, 1):
        assert cvexp(*TINY, "trainer.max_steps=1", f"seed={seed}").code == 0
    kept, deleted = runs()
    (commands,) = code_blocks("faults.md", "bash")
    subprocess.run(["bash", "-ec", commands.replace("RUN_ID", deleted.info.run_id)], check=True, capture_output=True)
    assert [run.info.run_id for run in runs()] == [kept.info.run_id]
    assert {path.parts[2] for path in Path("outputs/artifacts").rglob("*") if path.is_file()} == {kept.info.run_id}
