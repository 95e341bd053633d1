"""What a configuration may make Hydra call: launchers, sweepers, and the usual parts of logging, but nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvexp import command
from cvexp.composition import CONF
from tests.helpers import Outcome

HERE = f"{__name__}.leave_a_trace"


def leave_a_trace(*_: object, **__: object) -> object:
    """A function of the Python environment that nothing in the configuration groups names."""
    Path("was-called").touch()
    return object()


TARGETS: dict[str, dict[str, Any]] = {
    "callback": {"callbacks": {"x": {"_target_": HERE}}},
    "callback of the standard library": {"callbacks": {"x": {"_target_": "os.system", "command": "touch was-called"}}},
    "callback of Hydra": {"callbacks": {"x": {"_target_": "hydra.experimental.callbacks.LogJobReturnCallback"}}},
    "launcher": {"launcher": {"_target_": HERE}},
    "sweeper": {"sweeper": {"_target_": HERE}},
    "value of a launcher": {"launcher": {"x": {"_target_": HERE}}},
    "formatter of a job": {"job_logging": {"formatters": {"x": {"()": HERE}}}},
    "filter of a job": {"job_logging": {"filters": {"x": {"()": HERE}}}},
    "handler of a job": {"job_logging": {"handlers": {"x": {"class": HERE}}}},
    "stream of a job": {
        "job_logging": {"handlers": {"x": {"class": "logging.StreamHandler", "stream": f"ext://{HERE}"}}}
    },
    "formatter of Hydra": {"hydra_logging": {"formatters": {"x": {"()": HERE}}}},
    "filter of Hydra": {"hydra_logging": {"filters": {"x": {"()": HERE}}}},
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_other_targets_are_refused(cvexp: Callable[..., Outcome], kind: str, sweep: list[str]) -> None:
    evil = Path("conf/experiment/evil.yaml")
    evil.parent.mkdir(parents=True)
    evil.write_text("# @package _global_\n" + yaml.safe_dump({"hydra": TARGETS[kind]}))
    try:  # with a setting that is wrong, so that no run starts if Hydra does not use the target
        outcome = cvexp("--config-dir", "conf", *sweep, "+experiment=evil", "optimizer.lr=-1")
    except (RuntimeError, ValueError, TypeError):
        pass
    else:
        assert outcome.code == 1
    assert not Path("was-called").exists()


def test_a_target_in_the_list_is_called(cvexp: Callable[..., Outcome]) -> None:
    """Otherwise, the test above would prove nothing."""
    command.TRUSTED.append(HERE)
    try:
        cvexp(f"+hydra.callbacks.x._target_={HERE}", "optimizer.lr=-1")
    finally:
        command.TRUSTED.remove(HERE)
    assert Path("was-called").exists()


def test_the_list_has_only_what_the_configuration_groups_name() -> None:
    named = {"logging.StreamHandler", "logging.FileHandler"}  # in Hydra's own options of logging
    for path in CONF.rglob("*.yaml"):
        named |= set(targets(yaml.safe_load(path.read_text())))
    assert set(command.TRUSTED) <= named


def targets(node: Any) -> list[str]:
    """List the targets in a configuration, at any depth."""
    if isinstance(node, list):
        return [target for value in node for target in targets(value)]
    if not isinstance(node, dict):
        return []
    own = [str(node[key]) for key in ("_target_", "()", "class") if key in node]
    return own + [target for value in node.values() for target in targets(value)]
