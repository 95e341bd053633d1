"""Jobs that Slurm stops and starts again."""

from __future__ import annotations

import logging
import os
import time

PATIENCE = 600.0  # seconds; grace times are shorter

log = logging.getLogger("cvexp")


def wait_for_slurm() -> None:
    """If Slurm runs this process as a job of a sweep, wait until Slurm ends it.

    Slurm tells a job to end with SIGTERM, and at the end of its grace time puts it back into the queue. A job that ends
    earlier counts as failed, and stays out of the queue.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        log.info("the run has stopped; waiting until Slurm ends this job")
        time.sleep(PATIENCE)
