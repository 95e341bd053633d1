"""The batch script for Slurm, with commands in the place of Slurm's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "slurm_ddp.sh"


@pytest.fixture(autouse=True)
def _slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install commands that print what they are asked to start."""
    for name, body in (("srun", 'printf "%s\\n" "$@"'), ("scontrol", "echo node7; echo node8")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for key, value in {"JOB_ID": "123456", "JOB_NODELIST": "node[7-8]", "NNODES": "2", "GPUS_ON_NODE": "4"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)


def started(*arguments: str) -> list[str]:
    """Return what the script starts on each machine."""
    return subprocess.run([SCRIPT, *arguments], check=True, capture_output=True, text=True).stdout.splitlines()


def test_a_new_run() -> None:
    words = started("name=a b", "task=simclr")
    assert words[0] == "torchrun"
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=node7:23456"} <= set(words)
    expected = ["-m", "cvexp", "trainer=ddp", "hydra.run.dir=outputs/runs/slurm-123456", "name=a b", "task=simclr"]
    assert words[words.index("-m") :] == expected


def test_a_requeued_job_goes_on_with_its_run() -> None:
    folder = Path("elsewhere/runs/slurm-123456")
    folder.mkdir(parents=True)
    (folder / "run_id").write_text("0123abcd\n")
    words = started("tracking.folder=elsewhere")
    assert words[-3:] == [f"hydra.run.dir={folder}", "tracking.folder=elsewhere", "resume=0123abcd"]


def test_a_run_that_is_resumed() -> None:
    assert started("resume=0123abcd")[-3:] == ["-m", "cvexp", "resume=0123abcd"]
