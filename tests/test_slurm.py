"""Tests of the Slurm that other tests use."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.slurm import NUM_CPUS, wait_until

# Unlike the batch script, the steps that srun starts receive the signal of --signal.
STEP = """
trap 'echo signaled' USR2
echo start $SLURM_JOB_ID ${SLURM_RESTART_COUNT:-0}
while [ -z "$SLURM_RESTART_COUNT" ]; do sleep 0.1; done
"""


def _output(slurm: dict[str, str], *command: str) -> str:
    return subprocess.check_output(command, env=os.environ | slurm, text=True).strip()


def test_job_writes_its_output(slurm: dict[str, str], tmp_path: Path) -> None:
    _output(slurm, "sbatch", "--wait", f"--output={tmp_path}/out", "--wrap=srun echo $SLURM_JOB_PARTITION")
    assert (tmp_path / "out").read_text() == "low\n"


@pytest.mark.slow
def test_preempted_job_is_signaled_and_requeued(slurm: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "step").write_text(STEP)
    path = tmp_path / "out"
    sbatch = ["sbatch", "--parsable", f"--output={path}", "--error=/dev/null", "--open-mode=append"]
    sbatch.append(f"--cpus-per-task={NUM_CPUS}")
    wrap = f"--wrap=srun --unbuffered bash {tmp_path}/step"
    job = _output(slurm, *sbatch, "--partition=low", "--requeue", "--time=60", "--signal=USR2@90", wrap)
    wait_until(lambda: path.exists() and "start" in path.read_text())
    _output(slurm, *sbatch, "--partition=high", "--wrap=echo high")
    wait_until(lambda: "high" in path.read_text())
    state = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]
    wait_until(lambda: _output(slurm, *state) == "COMPLETED")
    assert path.read_text().splitlines() == [f"start {job} 0", "signaled", "high", f"start {job} 1"]
