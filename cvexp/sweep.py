"""Groups the runs of a Hydra sweep under one parent run in MLflow."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

VARIABLE = "CVEXP_SWEEP"  # holds the parent's id, for the jobs, wherever a launcher starts them
SWEPT_VARIABLE = "CVEXP_SWEPT"  # the keys that the jobs differ in, with commas between


def swept_settings(overrides: list[str]) -> dict[str, str]:
    """Of a job's overrides those that its sweep varies, by key; none outside a sweep."""
    swept = os.environ.get(SWEPT_VARIABLE, "").split(",")
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs if key in swept}


class Sweep(Callback):
    """Hydra calls it before the first job; `close` is ours, as Hydra tells the end only of sweeps without a failure."""

    opened: ClassVar[tuple[Any, str] | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from cvexp import tracking  # imports MLflow
        from cvexp.config import Tracking

        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Tracking), config.tracking))
        assert isinstance(settings, Tracking)
        overrides = [str(override) for override in config.hydra.overrides.task]
        parsed = OverridesParser.create().parse_overrides(overrides)
        swept = [override.key_or_group for override in parsed if override.is_sweep_override()]
        os.environ[SWEPT_VARIABLE] = ",".join(swept)
        Sweep.opened = tracking.open_sweep(settings, overrides)
        os.environ[VARIABLE] = Sweep.opened[1]
        if "password" in config.dataset and not OmegaConf.is_interpolation(config.dataset, "password"):
            config.dataset.password = None  # Hydra writes this to multirun.yaml; the jobs are composed anew

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
            os.environ.pop(SWEPT_VARIABLE, None)
