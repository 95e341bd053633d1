"""Groups the runs of a Hydra sweep under one parent run in MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from cvexp.metrics.names import safe_name
from cvexp.redaction import hide_secrets
from cvexp.tracking.description import PARENT_VARIABLE, command_line

if TYPE_CHECKING:
    from cvexp.tracking.store import Store

SWEPT_VARIABLE = "CVEXP_SWEPT"  # environment variable with the keys that the jobs differ in, separated by commas


def as_given(overrides: Any) -> list[str]:
    """Return Hydra's overrides without resolving interpolations, one of which may be the password of the data."""
    given = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(given, list)
    return [str(override) for override in given]


def swept_settings(overrides: Sequence[str]) -> dict[str, str]:
    """Return, by key, those overrides of a job that vary within its sweep. Outside a sweep, there are none."""
    swept = os.environ.get(SWEPT_VARIABLE, "").split(",")
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs if key in swept}


class Sweep(Callback):
    """Opens the parent run before the first job.

    Hydra calls `on_multirun_start`. The application calls `close`, because Hydra reports the end of a sweep only if no
    job failed.
    """

    opened: ClassVar[tuple[Store, str] | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from cvexp.config import TrackingConfig

        tracking = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrackingConfig), config.tracking))
        assert isinstance(tracking, TrackingConfig)
        overrides = as_given(config.hydra.overrides.task)
        parsed = OverridesParser.create().parse_overrides(overrides)
        swept = [override.key_or_group for override in parsed if override.is_sweep_override()]
        os.environ[SWEPT_VARIABLE] = ",".join(swept)
        Sweep.opened = _open_sweep(tracking, overrides, as_given(config.hydra.overrides.hydra))
        os.environ[PARENT_VARIABLE] = Sweep.opened[1]
        if "password" in config.dataset and not OmegaConf.is_interpolation(config.dataset, "password"):
            config.dataset.password = None  # Hydra writes this to multirun.yaml; the jobs are composed anew

    @staticmethod
    def close(*, failed: bool) -> None:
        """End the parent run according to its jobs; do nothing if no sweep is open.

        Args:
            failed: Whether a job is known to have failed, perhaps before its run was created.
        """
        if Sweep.opened is not None:
            _close_sweep(*Sweep.opened, failed=failed)
            Sweep.opened = None
            os.environ.pop(PARENT_VARIABLE, None)
            os.environ.pop(SWEPT_VARIABLE, None)


def _open_sweep(tracking: Any, overrides: list[str], hydra_overrides: list[str]) -> tuple[Store, str]:
    """Create the parent run of a sweep, with the overrides as its parameters."""
    from mlflow.entities import Param

    from cvexp.tracking.store import connect

    store = connect(tracking)
    tags = {
        "task": "sweep",
        "role": "sweep",
        "command": command_line([*overrides, *hydra_overrides], is_sweep=True),
    }
    run_id = str(store.client.create_run(store.experiment_id(), run_name="sweep", tags=tags).info.run_id)
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    params = [Param(safe_name(f"sweep.{key}"), hide_secrets(value)[:6000]) for key, _, value in pairs]
    store.client.log_batch(run_id, params=params)
    return store, run_id


def _close_sweep(store: Store, run_id: str, failed: bool) -> None:
    """End the parent run, as FINISHED only if all jobs finished and none failed before its run was created."""
    statuses = {job.info.status for job in store.search(f"tags.`mlflow.parentRunId` = '{run_id}'")}
    status = "FINISHED" if statuses == {"FINISHED"} and not failed else "KILLED" if "KILLED" in statuses else "FAILED"
    store.client.set_terminated(run_id, status)
