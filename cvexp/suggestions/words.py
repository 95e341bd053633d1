"""Command lines with the settings of a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from cvexp.arguments import for_hydra, setting
from cvexp.composition import CONF, compose_yaml
from cvexp.config import RunConfig, without_passwords

# What a run keeps of another one: always; if it trains on the same data; if it also has the same initial weights.
EVERYWHERE = re.compile(r"tracking\.(folder|experiment)|trainer\.(accelerator|devices)")
DATA = re.compile(r"dataset\.(?!password$).*")
TRAINING = re.compile(rf"{DATA.pattern}|backbone\.(?!weights$).*|loader\.num_workers|seed")
SAME_START = re.compile(rf"{TRAINING.pattern}|backbone\.weights")


class Command(NamedTuple):
    """The overrides of the next command, and whether it starts a sweep."""

    words: Sequence[str]
    is_sweep: bool = False

    def __str__(self) -> str:
        return " ".join(["python -m cvexp", *["-m"] * self.is_sweep, *map(shlex.quote, self.words)])


def repeating(
    config: RunConfig, words: Sequence[str], kept: re.Pattern[str] = EVERYWHERE, own: Collection[str] = ()
) -> list[str] | None:
    """Add overrides to others, so that they compose to the settings of a run.

    Args:
        config: The configuration of the run.
        words: The first overrides.
        kept: Which keys get the values of the run, besides those that are always kept.
        own: Further ones, unless the next task does not have them.

    Returns:
        The overrides, or None if no command line has these settings.
    """
    settings = leaves(without_passwords(asdict(config)))
    wanted = {k: v for k, v in settings.items() if EVERYWHERE.fullmatch(k) or kept.fullmatch(k) or k in own}
    complete = list(words)
    for find in (_first, _options, _differing):  # the later ones depend on what the earlier ones set
        complete += find(composed(complete), wanted)
    final = leaves(composed(complete))
    return complete if all(final[key] == value for key, value in wanted.items() if key in final) else None


def _first(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return overrides for settings from which others follow."""
    return _differing(known, {key: wanted[key] for key in ("tracking.folder", "seed") if key in wanted})


def _options(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return overrides that choose options of groups by the name that is wanted."""
    options = []
    for group in ("dataset", "backbone", "optimizer"):
        name = wanted.get(f"{group}.name", known[group]["name"])
        if name != known[group]["name"]:
            files = sorted((CONF / group).glob("*.yaml"))
            names = [path.stem for path in files if OmegaConf.select(OmegaConf.load(path), "name") == name]
            names += [name] if group == "dataset" else []  # of another package
            options += [f"{group}={option}" for option in names[:1]]
    return options


def _differing(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return overrides for the settings whose values differ from what is wanted."""
    given = leaves(known)
    return [setting(key, value) for key, value in wanted.items() if key in given and given[key] != value]


@lru_cache(maxsize=32)
def _composed(words: tuple[str, ...]) -> Mapping[str, Any]:
    container = OmegaConf.to_container(compose_yaml(for_hydra(list(words), CONF)), resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def composed(words: Sequence[str]) -> Mapping[str, Any]:
    """Return what overrides compose to, without checks, as some values may be missing."""
    return _composed(tuple(word for word in words if not word.startswith(("run=", "runs="))))  # which change nothing


def leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of all groups by their keys, such as ``"dataset.classes"``."""
    settings: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            settings |= {f"{key}.{inner}": content for inner, content in value.items()}
        else:
            settings[key] = value
    return settings
