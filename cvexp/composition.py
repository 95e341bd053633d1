"""From overrides to a checked configuration: the command line and Python get the same results and errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cvexp import arguments, plugins
from cvexp.config import RunConfig, flatten, without_passwords
from cvexp.errors import UserError, nearest
from cvexp.redaction import CERTAIN, hide_secrets

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # in the wheel or repository

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)


def compose(*overrides: str) -> RunConfig:
    """Compose a configuration from overrides, as the command line does.

    Args:
        overrides: For example ``"task=dino"``, ``"optimizer.lr=1e-3"``.

    Raises:
        UserError: if an override names an unknown key or group, or a value is missing, of a wrong type or out of
            range.
    """
    rewritten = arguments.for_hydra(list(overrides), CONF)
    try:
        return check(compose_yaml(rewritten))
    except COMPOSITION_ERRORS as error:
        raise UserError(explain_composition(error, rewritten)) from error


def compose_yaml(overrides: Sequence[str]) -> DictConfig:
    """Compose the YAML files without checking them against the schema, even inside a Hydra application."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF)):
            return hydra.compose("config", overrides=list(overrides))
    finally:
        GlobalHydra.instance().hydra = outer  # Hydra replaces the instance


def check(composed: DictConfig) -> RunConfig:
    """Convert composed YAML to typed objects.

    Raises:
        UserError: naming the key that is unknown, missing, of a wrong type or out of range.
    """
    schema = OmegaConf.structured(RunConfig)
    for group in ("task", "dataset"):
        module = plugins.load(group, str(composed[group].get("name")))
        schema[group] = OmegaConf.structured(module.Config)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(schema, composed))
    except MissingMandatoryValue as error:
        key = error.full_key or ""
        raise UserError(f"{key}: a value is needed; give one with {key}=...") from error
    except OmegaConfBaseException as error:
        got = f"got {OmegaConf.select(composed, error.full_key)!r}: " if error.full_key else ""
        of_data = str(error.full_key).startswith("dataset.")
        hint = f"; this is a key of dataset={composed.dataset.name}, is another one meant?" if of_data else ""
        raise UserError(_explain(error, keys_of(schema), got) + hint) from error
    assert isinstance(config, RunConfig)
    return config


def refuse_secrets(config: RunConfig) -> None:
    """Raise a UserError if a setting has a secret, because a run records its settings.

    It may be a user name or a password in an address, the signature of one, or the value of an environment variable,
    which anybody's YAML file can name.
    """
    for key, value in flatten(without_passwords(asdict(config))).items():
        hidden = hide_secrets(value, shortest=CERTAIN)
        if hidden != value:
            raise UserError(
                f"{key}: got {hidden!r}, but a run records its settings, which must not have secrets; put the password "
                "of a server into ~/.netrc, or fetch the file yourself"
            )


def keys_of(node: DictConfig, prefix: str = "") -> list[str]:
    """List all dotted keys of a configuration, including those of groups."""
    keys: list[str] = []
    for key in map(str, node):
        keys.append(f"{prefix}{key}")
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            keys += keys_of(child, f"{prefix}{key}.")
    return keys


_PLUGINS = {  # packages with plugins of Hydra, by the option that needs them
    "hydra/launcher/rq": "hydra-rq-launcher",
    "hydra/sweeper/ax": "hydra-ax-sweeper",
    "hydra/sweeper/nevergrad": "hydra-nevergrad-sweeper",
}


def explain_composition(error: Exception, overrides: Iterable[str]) -> str:
    """Say in one line what Hydra or OmegaConf found wrong with the overrides, and what to do.

    Args:
        error: One of `COMPOSITION_ERRORS`.
        overrides: The command line. The options that it chooses decide which keys are known.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        for prefix, package in _PLUGINS.items():
            if f"{group}/{option}".startswith(prefix):
                return f"{group}={option}: this needs a package; install it with: pip install {package}"
        return f"{group}: there is no option {option!r}; {nearest(option, error.options or [])}"
    if isinstance(error, OverrideParseException):
        remedy = "see python -m cvexp --help"
        if "=" in error.override:
            remedy = (
                """a value with special characters needs quotes of its own, such as 'dataset.classes=["R&D",car]'; """
                "the keys of a dictionary can have them only in a file, say experiments/my_data.yaml"
            )
        return f"{error.override}: this can't be read as KEY=VALUE; {remedy}"
    for cause in (error, error.__cause__):
        if isinstance(cause, OmegaConfBaseException):
            return _explain(cause, _known_keys(overrides))
    first_line = str(error).strip().splitlines()[0]
    if first_line.startswith("Ambiguous value"):
        return f"{first_line}; to run a sweep over several values, add -m"
    return f"{first_line}; see python -m cvexp --help"


def _explain(error: OmegaConfBaseException, keys: Iterable[str], got: str = "") -> str:
    key = error.full_key or str(error.key)
    first_line = (error.msg or str(error)).splitlines()[0]
    if isinstance(error, AttributeError | KeyError):  # ConfigAttributeError, ConfigKeyError
        return f"{key}: there is no such key or group; {nearest(key, keys)}"
    return f"{key}: {got}{first_line}"


def _known_keys(overrides: Iterable[str]) -> list[str]:
    """List all keys of the configuration with the options that the overrides choose."""
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    choices = [
        f"{'+' * (group == 'experiment')}{group}={option}"  # an experiment is added, other groups replace a default
        for group, _, option in pairs
        if (CONF / group).is_dir()
    ]
    try:
        return keys_of(compose_yaml(choices))
    except COMPOSITION_ERRORS:  # an option is misspelled, or several are swept
        return keys_of(compose_yaml([]))
