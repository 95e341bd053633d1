"""Groups the runs of a Hydra sweep under one parent run in MLflow."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

VARIABLE = "CVEXP_SWEEP"  # holds the parent's id, for the jobs, wherever a launcher starts them


class Sweep(Callback):
    """Hydra calls it before the first job; `close` is ours, as Hydra tells the end only of sweeps without a failure."""

    opened: ClassVar[tuple[Any, str] | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from cvexp import tracking  # imports MLflow
        from cvexp.config import Tracking

        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Tracking), config.tracking))
        assert isinstance(settings, Tracking)
        Sweep.opened = tracking.open_sweep(settings, list(config.hydra.overrides.task))
        os.environ[VARIABLE] = Sweep.opened[1]

    @staticmethod
    def close(*, failed: bool) -> None:
        """End the parent as its jobs ended; nothing to do without a sweep, or when that is done.

        Args:
            failed: Whether a job is known to have failed; perhaps before it had a run.
        """
        if Sweep.opened is not None:
            from cvexp import tracking

            tracking.close_sweep(*Sweep.opened, failed=failed)
            Sweep.opened = None
            os.environ.pop(VARIABLE, None)
