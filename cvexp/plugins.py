"""Modules that the configuration names: tasks and data sources, both our own and those of other packages.

A package that is installed alongside cvexp adds its own modules with entry points::

    [project.entry-points."cvexp.tasks"]
    my_method = "my_package.my_method"

    [project.entry-points."cvexp.sources"]
    my_source = "my_package.my_source"

    [project.entry-points."cvexp.searchpath"]  # where Hydra finds task/my_method.yaml and dataset/my_source.yaml
    my_package = "my_package.conf"
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from cvexp.errors import UserError, nearest

# For each configuration group: the package of our own modules, and the entry point group of other packages' modules.
_PLACES = {"task": ("cvexp.tasks", "cvexp.tasks"), "dataset": ("cvexp.data.sources", "cvexp.sources")}


@cache
def _loaders(group: str) -> dict[str, Callable[[], ModuleType]]:
    package, entry_point_group = _PLACES[group]
    loaders: dict[str, Callable[[], ModuleType]] = {
        entry_point.name: entry_point.load for entry_point in entry_points(group=entry_point_group)
    }
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        loaders[module.name] = lambda name=module.name: importlib.import_module(f"{package}.{name}")  # type: ignore[misc]
    return loaders


def known(group: str) -> list[str]:
    """List the names of all modules of a configuration group, ``"task"`` or ``"dataset"``."""
    return sorted(_loaders(group))


def load(group: str, name: str) -> ModuleType:
    """Import the module that an option of a configuration group names.

    Raises:
        UserError: if there is no such module.
    """
    loaders = _loaders(group)
    if name not in loaders:
        raise UserError(f"{group}.name: there is no {name!r}; {nearest(name, loaders)}")
    return loaders[name]()


def folders() -> list[Path]:
    """List the folders of other packages that have configuration files."""
    return [folder for _, folder in _named_folders()]


def _named_folders() -> Iterator[tuple[str, Path]]:
    for entry_point in entry_points(group="cvexp.searchpath"):
        spec = find_spec(entry_point.value)
        for folder in (spec and spec.submodule_search_locations) or ():  # pkg:// would need an __init__.py
            yield entry_point.name, Path(folder)


class SearchPath(SearchPathPlugin):
    """Lets Hydra find the configuration files of other packages."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for name, folder in _named_folders():
            search_path.append(provider=name, path=f"file://{folder}")


Plugins.instance().register(SearchPath)
