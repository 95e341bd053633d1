"""The study of Optuna that a job of a search belongs to."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from cvexp.errors import UserError
from cvexp.keys import require_one_of
from cvexp.tracking.description import JOB_VARIABLE, STUDY_VARIABLE

if TYPE_CHECKING:
    import optuna

# Without CmaEsSampler, which unpickles what it finds in the study, so whoever can write to it could run code here.
SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler", "qmc": "QMCSampler"}
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}


def make_sampler(name: str, arguments: Mapping[str, Any]) -> optuna.samplers.BaseSampler:
    """Create one of `SAMPLERS`.

    Raises:
        UserError: if there is no such sampler, or it refuses the arguments.
    """
    import optuna

    sampler: optuna.samplers.BaseSampler = _make("sampler", optuna.samplers, SAMPLERS, name, arguments)
    return sampler


def make_pruner(name: str, arguments: Mapping[str, Any]) -> optuna.pruners.BasePruner:
    """Create one of `PRUNERS`.

    Raises:
        UserError: if there is no such pruner, or it refuses the arguments.
    """
    import optuna

    pruner: optuna.pruners.BasePruner = _make("pruner", optuna.pruners, PRUNERS, name, arguments)
    return pruner


def _make(key: str, module: Any, known: Mapping[str, str], name: str, arguments: Mapping[str, Any]) -> Any:
    require_one_of(f"hydra.sweeper.{key}", name, known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arguments that are experimental
        try:
            return getattr(module, known[name])(**arguments)
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(
                f"hydra.sweeper.{key}_args: Optuna's {known[name]} refuses {dict(arguments)} ({error}); correct them"
            ) from error


def environment(study_name: str, pruner: str, pruner_args: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variable from which a job knows its study.

    Without its storage, whose URL may have a password: launchers write these variables into files.
    """
    return {STUDY_VARIABLE: json.dumps({"study_name": study_name, "pruner": pruner, "pruner_args": dict(pruner_args)})}


class Trial:
    """The trial of a job.

    Args:
        trial: Optuna's trial.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def falls_behind(self, value: float, epoch: int) -> bool:
        """Report the monitored metric after an epoch, and return whether the pruner advises to stop."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a resumed run repeats what it reported
            self._trial.report(value, epoch)
        return self._trial.should_prune()


def current_trial() -> Trial | None:
    """Return the trial of this job, or None if it belongs to no study."""
    if not (text := os.environ.get(STUDY_VARIABLE)):
        return None
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given = json.loads(text)
    pruner = make_pruner(given["pruner"], given["pruner_args"])
    storage = HydraConfig.get().sweeper.storage
    study = optuna.load_study(study_name=given["study_name"], storage=storage, pruner=pruner)
    frozen = study.get_trials(deepcopy=False)[int(os.environ[JOB_VARIABLE])]
    return Trial(optuna.Trial(study, frozen._trial_id))
