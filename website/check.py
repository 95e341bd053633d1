"""What is wrong with the pages: broken links, unlisted pages, and settings that cvexp does not have."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_origin
from urllib.parse import unquote

from hydra.core.override_parser.overrides_parser import OverridesParser

from cvexp import options
from cvexp.arguments import QUESTIONS
from cvexp.composition import compose
from cvexp.config import LoaderConfig, RunConfig
from cvexp.errors import UserError
from cvexp.keys import keys_of
from cvexp.schema import QUESTION
from website import pages, reference
from website.pages import INDEX, ROOT

HYDRA = {"hydra/launcher": "hydra.launcher", "hydra/sweeper": "hydra.sweeper"}
EXAMPLES = {"my_data", "lakes", "long", "wide"}  # options that the pages invent
FILES = (".py", ".yaml", ".md", ".json", ".safetensors", ".ckpt", ".pth")  # names of files look like keys
KEY = re.compile(
    r"(?<![\w./$<-])((?:task|dataset|backbone|optimizer|trainer|tracking|loader|hydra\.launcher|hydra\.sweeper)"
    r"\.[a-z]\w*(?:\.\w+)*)(?![\w(])"
)
CHOICE = re.compile(
    r"(?<![\w./-])(\+?(?:task|dataset|backbone|optimizer|trainer|tracking|hydra/launcher|hydra/sweeper|experiment|search))"
    r"=([a-z]\w*(?:,[a-z]\w*)*)(?![\w:.])"
)
PROGRAM = re.compile(r"^.*?(?:python3?|torchrun|torch\.distributed\.run)\b.*? -m cvexp(?= |$)(.*)$")


def problems(root: Path = ROOT) -> list[str]:
    """Describe all that is wrong, each in a line that names the page."""
    found = [] if reference.PAGE.read_text() == reference.write() else [f"{reference.PAGE.name}: run make reference"]
    found += unlisted(root)
    for page in [*pages.pages(root), Path("README.md")]:
        text = (root / page).read_text()
        for problem in (*broken_links(page, text, root), *unknown_settings(text), *refused_commands(text)):
            found.append(f"{page}: {problem}")
    return found


def unlisted(root: Path = ROOT) -> list[str]:
    """Name the pages that docs/index.md does not list, or lists twice."""
    listed = [page for group in pages.nav(root).values() for page in group.values()]
    known = [page for page in pages.pages(root) if page != INDEX]
    return [
        *(f"{page}: not listed in {INDEX}; add a line: * [TITLE](PAGE)" for page in known if page not in listed),
        *(f"{INDEX}: lists {page} more than once" for page in set(listed) if listed.count(page) > 1),
    ]


def broken_links(page: Path, text: str, root: Path = ROOT) -> Iterator[str]:
    """Describe the links and pictures of a page whose file or anchor does not exist."""
    for token in pages.tokens(text):
        link = token.attrGet("href" if token.type == "link_open" else "src")
        if not isinstance(link, str) or re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = unquote(link).partition("#")
        try:
            place = pages.target(page, file, root) if file else page
        except ValueError:
            yield f"{link}: this is outside of the repository"
            continue
        if not (root / place).exists():
            yield f"{link}: there is no such file"
        elif anchor and anchor not in pages.slugs(text if place == page else (root / place).read_text()):
            yield f"{link}: there is no such heading"


def unknown_settings(text: str) -> Iterator[str]:
    """Describe the keys and options of a page that do not exist."""
    text = re.sub(r"^```console\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)  # which show errors
    text = text.replace("\\_", "_")
    known, free = _known_keys()
    for key in dict.fromkeys(KEY.findall(text)):
        is_inner = any(key.startswith(f"{name}.") for name in free)
        if key not in known and not is_inner and not key.endswith(FILES):
            yield f"{key}: there is no such key"
    for group, names in dict.fromkeys(CHOICE.findall(text)):
        for name in names.split(","):
            if name not in {*options.names(group.lstrip("+")), *EXAMPLES, "basic"}:
                yield f"{group}={name}: there is no such option"


@cache
def _known_keys() -> tuple[set[str], set[str]]:
    """Return all keys, and those that have further keys of any name."""
    known, free = {"task.of"}, set()
    for group in options.GROUPS:
        for name in options.names(group):
            for key, kind in reference.schema_keys(group, name).items():
                known.add(f"{group}.{key}")
                if get_origin(kind.kind) is dict:
                    free.add(f"{group}.{key}")
    for group, prefix in HYDRA.items():
        for name in options.names(group):
            keys = {f"{prefix}.{each.key}" for each in options.read(f"{group}/{name}").settings}
            known |= keys
            free |= {key for key in keys if any(other.startswith(f"{key}.") for other in keys)}
    return known | {f"loader.{key}" for key in keys_of(LoaderConfig)} | set(keys_of(RunConfig)), free


def commands(text: str) -> list[str]:
    """Return what follows the program in the commands of a page that start cvexp."""
    found: list[str] = []
    for token in pages.tokens(text):
        if token.type in ("fence", "code_block", "code_inline") and token.info.strip() in ("", "bash"):
            lines = re.sub(r"\\\n\s*", "", token.content).splitlines()
            found += [match[1] for line in lines if (match := PROGRAM.match(line.strip()))]
    return list(dict.fromkeys(found))


def refused_commands(text: str) -> Iterator[str]:
    """Describe the commands of a page that cvexp refuses."""
    for command in commands(text):
        if message := _refusal(command):
            yield f"python -m cvexp{command}: {message}"


@cache
def _refusal(command: str) -> str | None:
    if {word.partition("=")[0] for word in command.split()} & {*QUESTIONS, QUESTION, "-sc"}:
        return None
    try:
        words = shlex.split(command, comments=True)
    except ValueError as error:
        return str(error)
    given = [word for word in words if "=" in word and not word.endswith("=...") and "hydra" not in word]
    try:
        compose(*(single for word in given if (single := _first(word))))
    except UserError as error:
        is_part = "..." in command and "a value is needed" in str(error)
        return None if is_part else str(error)
    return None


def _first(word: str) -> str:
    """Return an override with the first of the values that it sweeps over; empty if they are a range."""
    key, _, value = word.partition("=")
    if value in EXAMPLES and "." not in key:
        return ""
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return word
    return f"{word.partition('=')[0]}={next(override.sweep_string_iterator())}" if override.is_choice_sweep() else ""
