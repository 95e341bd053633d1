"""What the YAML files say about their keys: the comments, which the reference and the JSON schema repeat.

A file begins with a comment about the option. A comment at the end of a line, or in the lines above, is about the key.
A line that begins with ``##`` is the title of the keys that follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from cvexp import plugins
from cvexp.composition import CONF

GROUPS = ("task", "backbone", "dataset", "optimizer", "trainer", "tracking")  # each run has an option of each


@dataclass(frozen=True)
class Setting:
    """A key that a file sets.

    Attributes:
        key: Its name, with dots if it is within other keys.
        value: Its value; interpolations are not resolved.
        text: The value as it is written, on one line.
        comment: What the file says about it, on one line; may be empty.
        title: The title that it follows; may be empty.
    """

    key: str
    value: Any
    text: str
    comment: str
    title: str


@dataclass(frozen=True)
class Option:
    """A YAML file.

    Attributes:
        name: Its name without the suffix.
        about: What it says about itself, in paragraphs.
        bases: Names of the files that it includes, in its own group or, if they begin with ``/``, in the folder of all
            groups.
        settings: The keys that it sets itself.
    """

    name: str
    about: list[str]
    bases: list[str]
    settings: list[Setting]


def folders() -> list[Path]:
    """List the folders that have groups of options: our own, and those of other packages."""
    return [CONF, *plugins.folders()]


def names(group: str, places: Sequence[Path] = (CONF,)) -> list[str]:
    """List the options of a group."""
    return sorted({path.stem for place in places for path in (place / group).glob("*.yaml")})


def read(name: str, places: Sequence[Path] = (CONF,)) -> Option:
    """Read an option, such as ``task/dino``, or a file in the folder of all groups, such as ``base_dataset``."""
    path = next(path for place in places if (path := place / f"{name}.yaml").is_file())
    text = path.read_text()
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode)
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    settings = [each for each in _settings(node, values, text) if each.key.partition(".")[0] != "defaults"]
    included = [entry for entry in values.get("defaults", ()) if isinstance(entry, str) and entry != "_self_"]
    bases = [entry.removesuffix("@_here_") for entry in included]
    return Option(
        path.stem, _header(text.splitlines()), bases, [setting for setting in settings if setting.key != "defaults"]
    )


def resolved(group: str, name: str, places: Sequence[Path] = (CONF,)) -> dict[str, Setting]:
    """Return all keys of an option, including those of the files that it includes.

    A key whose own file says nothing about it has the comment of the file that it replaces.
    """
    option = read(f"{group}/{name}" if group else name, places)
    settings: dict[str, Setting] = {}
    for base in option.bases:
        settings |= resolved("", base[1:], places) if base.startswith("/") else resolved(group, base, places)
    for setting in option.settings:
        former = settings.get(setting.key)
        comment = setting.comment or (former.comment if former else "")
        settings[setting.key] = Setting(setting.key, setting.value, setting.text, comment, setting.title)
    return settings


def group_comments() -> dict[str, str]:
    """Return what config.yaml says about each group."""
    text = (CONF / "config.yaml").read_text()
    lines = re.findall(r"^  - (\w+): \w+ +# (.*)$", text, re.MULTILINE)
    return dict(lines)


def _header(lines: Sequence[str]) -> list[str]:
    """Return the paragraphs of the comment at the beginning."""
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    text = "\n".join(line for line in comment if not line.startswith("@package"))
    return [" ".join(paragraph.split("\n")) for paragraph in re.split(r"\n\n+", text.strip("\n")) if paragraph]


def _settings(node: yaml.MappingNode, values: dict[Any, Any], text: str, prefix: str = "") -> Iterator[Setting]:
    lines = text.splitlines()
    for name, value in node.value:
        title = next((line[2:].strip() for line in lines[name.start_mark.line :: -1] if line.startswith("##")), "")
        own = values[name.value]
        yield Setting(prefix + name.value, own, _one_line(value, text), _comment(name, value, lines), title)
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _settings(value, own, text, f"{prefix}{name.value}.")


def _comment(name: yaml.Node, value: yaml.Node, lines: Sequence[str]) -> str:
    """Return the comment above a key, and the one at the end of its line."""
    above: list[str] = []
    sign = " " * name.start_mark.column + "#"
    number = name.start_mark.line - 1
    while number >= 0 and lines[number].startswith(sign) and not lines[number].startswith(f"{sign}#"):
        above.insert(0, lines[number].removeprefix(sign).strip())
        number -= 1
    if number < 0:  # the comment at the beginning of the file
        above = []
    is_literal = isinstance(value, yaml.ScalarNode) and value.style == "|"
    is_block = is_literal or (isinstance(value, yaml.CollectionNode) and not value.flow_style)
    end = name.end_mark if is_block else value.end_mark
    rest = lines[end.line][end.column :].lstrip(":").strip()
    behind = rest[1:].strip() if rest.startswith("#") else ""
    if above and re.match(r"[a-z]+[ ,;]", behind):  # not a value, such as `null:`
        behind = behind[0].upper() + behind[1:]
    return " ".join([*above, behind]).strip()


def _one_line(node: yaml.Node, text: str) -> str:
    """Return a value as it is written, but without line breaks."""
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return "[" + ", ".join(_one_line(item, text) for item in node.value) + "]"
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        return "{" + ", ".join(f"{name.value}: {_one_line(item, text)}" for name, item in node.value) + "}"
    return text[node.start_mark.index : node.end_mark.index]
