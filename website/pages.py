"""The pages of the documentation, and how docs/index.md groups them."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
INDEX = Path("docs/index.md")
OUTSIDE = (Path("CONTRIBUTING.md"), Path("CHANGELOG.md"))  # pages besides those in docs/ and experiments/


def pages(root: Path = ROOT) -> dict[Path, Path]:
    """Return the place of each page in the site, by its place in the repository."""
    docs = {path.relative_to(root): Path(path.name) for path in sorted((root / "docs").glob("*.md"))}
    studies = [path.relative_to(root) for path in sorted((root / "experiments").glob("*.md"))]
    return docs | {path: path for path in studies} | {path: Path(path.name.lower()) for path in OUTSIDE}


def tokens(text: str) -> list[Token]:
    """Return the tokens of a page, with those within lines."""
    parsed = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    return [inner for token in parsed for inner in (token, *(token.children or ()))]


def nav(root: Path = ROOT) -> dict[str, dict[str, Path]]:
    """Return the pages of each group in docs/index.md by their titles, in order."""
    groups: dict[str, dict[str, Path]] = {}
    for section in re.split(r"^## ", (root / INDEX).read_text(), flags=re.MULTILINE)[1:]:
        title, _, rest = section.partition("\n")
        links = re.findall(r"^\* \[([^]]+)\]\(([^)#]+\.md)\)", rest, re.MULTILINE)
        groups[title] = {name: target(INDEX, link, root) for name, link in links}
    return groups


def target(page: Path, link: str, root: Path = ROOT) -> Path:
    """Return the place in the repository that a link of a page names.

    Raises:
        ValueError: if it is outside of the repository.
    """
    return (root / page.parent / link).resolve().relative_to(root.resolve())


def slugs(text: str) -> list[str]:
    """Return the anchors of a page's headings, as forges and the site make them."""
    found: list[str] = []
    parsed = tokens(text)
    for token, inline in pairwise(parsed):
        if token.type == "heading_open":
            title = "".join(child.content for child in inline.children or ())
            found.append(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-"))
    return found
