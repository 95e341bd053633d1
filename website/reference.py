"""Writes docs/configuration.md from the YAML files, their comments, and the schema: `python -m website.reference`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_origin

from cvexp import options, plugins
from cvexp.config import LoaderConfig, RunConfig
from cvexp.keys import Choice, Key, Range, keys_of
from cvexp.options import Option, Setting

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Generated from conf/ and the schema by `make reference`. Change the comments there, not this page. -->

Each run has one option of each group, such as `task=dino` and `backbone=resnet18`. An option sets the defaults of its
keys. The command line and your own files ([yaml.md](yaml.md)) change both:

    python -m cvexp task=multiclass backbone=resnet50 task.dropout=0.2 loader.batch_size=32

In the tables, `null` means that there is no value, `???` that you must give one, and `${...}` that the value is that of
another key. Paths are relative to the folder in which cvexp is started.

`python -m cvexp --cfg job` prints the keys of one run with their values, and `python -m cvexp --help` the options of
each group. An unknown key, a value of a wrong type, and a value that is not allowed are errors, before anything starts.
"""

HYDRA = {
    "hydra/launcher": "Where the jobs of a sweep run: see [sweeps.md](sweeps.md). The default, `basic`, runs one after "
    "another in this process, and has no keys.",
    "hydra/sweeper": "Which jobs a sweep has. `grid` is the default, `optuna` searches ([optuna.md](optuna.md)), and "
    "`study` is what `task=study` selects.",
}
ADDED = {
    "search": "Search spaces for `hydra/sweeper=optuna`, which they select: `python -m cvexp -m +search=dino`. See "
    "[optuna.md](optuna.md).",
    "experiment": "Complete settings, from the folder `experiments/`: `python -m cvexp +experiment=demo`. Each file "
    "begins with its command and the expected result.",
}
KINDS = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", dict: "dictionary"}


def write() -> str:
    """Return the page."""
    parts = [INTRODUCTION, *_top_level()]
    for group in options.GROUPS:
        parts += _group(group)
    for group, about in HYDRA.items():
        parts += [f"## {group}\n", about + "\n"]
        for name in options.names(group):
            parts += _option(group, options.read(f"{group}/{name}"), {})
    for group, about in ADDED.items():
        rows = [
            [f"`+{group}={name}`", _first_sentence(options.read(f"{group}/{name}"))] for name in options.names(group)
        ]
        parts += [f"## {group}\n", about + "\n", _table([f"`+{group}=`", ""], rows)]
    return "\n".join(parts)


def _top_level() -> Iterator[str]:
    keys = keys_of(RunConfig) | {f"loader.{name}": key for name, key in keys_of(LoaderConfig).items()}
    settings = [each for each in options.read("config").settings if not each.key.startswith("hydra")]
    yield "## Top level\n"
    yield _settings_table("", [each for each in settings if each.key != "loader"], keys)


def _group(group: str) -> Iterator[str]:
    comment = options.group_comments()[group]
    read = {name: options.read(f"{group}/{name}") for name in options.names(group)}
    yield f"## {group}\n"
    yield f"{comment[0].upper()}{_text(comment[1:])}.\n"
    yield _table([f"`{group}=`", ""], [[_link(f"{group}={name}"), _first_sentence(read[name])] for name in read])
    for base in _shared([base for option in read.values() for base in option.bases]):
        using = [name for name in read if base in _all_bases(read[name])]
        yield from _option(group, options.read(base), schema_keys(group, using[0]))
    for name in sorted(read, key=lambda name: f"{name}" if name in _included(read) else f"~{name}"):
        yield from _option(group, read[name], schema_keys(group, name))


def _included(read: dict[str, Option]) -> set[str]:
    return {base for option in read.values() for base in option.bases}


def _shared(bases: Sequence[str]) -> list[str]:
    """List the files in the folder of all groups, those that others include first."""
    found: list[str] = []
    for base in sorted({base for base in bases if base.startswith("/")}):
        for inner in (*options.read(base[1:]).bases, base):
            if inner[1:] not in found:
                found.append(inner[1:])
    return found


def _all_bases(option: Option) -> set[str]:
    bases = {base.removeprefix("/") for base in option.bases if base.startswith("/")}
    return bases.union(*(_all_bases(options.read(base)) for base in bases))


def schema_keys(group: str, name: str) -> dict[str, Key]:
    """Return what the schema says about the keys of an option."""
    if group in ("task", "dataset"):
        return keys_of(plugins.load(group, name).Config)
    return keys_of(keys_of(RunConfig)[group].kind)


def _option(group: str, option: Option, keys: dict[str, Key]) -> Iterator[str]:
    """Describe an option, and the keys that its own file sets."""
    is_base = option.name.startswith("base_")
    yield f"### {_title(option) if is_base else f'{group}={option.name}'}\n"
    for paragraph in option.about[is_base:]:
        yield _text(paragraph) + "\n"
    prefix = f"{group.replace('/', '.')}."
    settings = [each for each in option.settings if each.key != "_target_" and (not keys or each.key in keys)]
    if group in ("task", "dataset"):
        settings = [each for each in settings if each.key != "name"]
    inherited = options.resolved("", option.name) if is_base else options.resolved(group, option.name)
    settings = [inherited[each.key] for each in settings]
    if not keys:  # what is within others has rows of its own
        settings = [each for each in settings if not any(o.key.startswith(f"{each.key}.") for o in settings)]
    for title in dict.fromkeys(each.title for each in settings):
        if title:
            yield f"**{_text(title).rstrip('.')}**\n"
        yield _settings_table(prefix, [each for each in settings if each.title == title], keys)
    if option.bases:
        links = [
            _link(_title(options.read(base[1:])) if base[0] == "/" else f"{group}={base}") for base in option.bases
        ]
        yield f"{'Keys' if not settings else 'More keys'}: {', '.join(links)}.\n"


def _title(option: Option) -> str:
    return option.about[0].rstrip(".")


def _settings_table(prefix: str, settings: Sequence[Setting], keys: dict[str, Key]) -> str:
    head = ["key", *(["values"] if keys else []), "default", "meaning"]
    rows = []
    for each in settings:
        values = [_values(keys[each.key])] if keys else []
        rows.append([_code(prefix + each.key), *values, _code(each.text), _text(each.comment)])
    return _table(head, rows)


def _values(key: Key) -> str:
    """Say which values a key may have."""
    kind = get_origin(key.kind) or key.kind
    if isinstance(key.allowed, Choice):
        words = [f"`{word}`" for word in key.allowed.known(key.owner)]
        text = " or ".join([", ".join(words[:-1]), words[-1]]) if words[1:] else words[0]
        text = f"list of {text}" if kind is list else text
    elif isinstance(key.allowed, Range) and key.allowed.described:
        text = _text(key.allowed.described)
    elif kind is list:
        of = {int: "whole numbers", float: "numbers", str: "texts"}[key.item]
        text = f"list of {of}" + (f", each {key.allowed.needed}" if isinstance(key.allowed, Range) else "")
    else:
        text = KINDS.get(kind, "")
        if isinstance(key.allowed, Range):
            needed = key.allowed.needed
            text = needed.replace("positive", f"positive {text}") if "positive" in needed else f"{text}, {needed}"
    return f"{text}, or `null`" if key.is_optional else text


def _first_sentence(option: Option) -> str:
    return _text(re.split(r"(?<=[.?]) (?=[A-Z])", option.about[0])[0].rstrip(".:"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _link(title: str) -> str:
    return f"[{title}](#{re.sub(r'[^a-z0-9_ -]', '', title.lower()).replace(' ', '-')})"


def _text(text: str) -> str:
    """Return plain text with code in backticks as Markdown, with links to pages and addresses."""
    parts = re.split(r"(`[^`]*`|docs/\w+\.md|https?://[\w./-]*\w)", text)
    parts[::2] = [re.sub(r"([\\*_\[\]|])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    parts[1::2] = [_linked(part) for part in parts[1::2]]
    return "".join(parts)


def _linked(part: str) -> str:
    if part.startswith("`"):
        return part.replace("|", "\\|")
    return f"[{part[5:]}]({part[5:]})" if part.startswith("docs/") else f"<{part}>"


if __name__ == "__main__":
    PAGE.write_text(write())
