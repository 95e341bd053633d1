"""Builds the documentation as a site in build/docs/site: `make docs`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import yaml

from website import check, pages
from website.pages import ROOT

BUILD = ROOT / "build" / "docs"
LOADING = ("link", "script", "img", "iframe", "source")
LINK = r"(?P<sign>!?)\[(?P<title>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<link>[^)\s]+)\)"
LINK_OR_CODE = re.compile(rf"^```.*?^```$|{LINK}|`[^`\n]*`", re.DOTALL | re.MULTILINE)
SHOWN = (".png", ".html")  # files besides pages that the site has


def main() -> None:
    """Check the pages, build the site, and check that."""
    problems = check.problems()
    if not problems:
        shutil.rmtree(BUILD, ignore_errors=True)
        build(BUILD)
        problems = broken(BUILD / "site")
    if problems:
        sys.exit("\n".join(problems))
    print(f"open {(BUILD / 'site' / 'index.html').as_uri()}")
    print(f"or, to search it: python -m http.server --bind 127.0.0.1 --directory {BUILD / 'site'}")


def build(folder: Path) -> None:
    """Copy the pages into a new folder, and build the site in its subfolder `site`."""
    places = pages.pages()
    for page, place in places.items():
        destination = folder / "pages" / place
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_text(_with_links((ROOT / page).read_text(), page, places, folder / "pages"))
    shutil.copy(ROOT / "website" / "tables.css", folder / "pages")
    groups = [
        {group: [{title: str(places[page])} for title, page in listed.items()]} for group, listed in pages.nav().items()
    ]
    navigation = yaml.safe_dump({"nav": [{"Overview": "index.md"}, *groups]}, sort_keys=False, allow_unicode=True)
    (folder / "mkdocs.yml").write_text((ROOT / "website" / "mkdocs.yml").read_text() + navigation)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def _with_links(text: str, page: Path, places: dict[Path, Path], folder: Path) -> str:
    """Return a page with the links that lead to the same things in the site.

    A file that the site does not have, such as a test, is only named. Pictures are copied. A link that names the file
    of a page names its title instead.
    """
    titles = {path: title for listed in pages.nav().values() for title, path in listed.items()}

    def replace(match: re.Match[str]) -> str:
        link = match["link"] or ""
        file, hash_sign, anchor = link.partition("#")
        if not file or re.match(r"[a-z]+:", link):
            return match[0]
        path = pages.target(page, unquote(file))
        place = places.get(path)
        if place is None and path.suffix in SHOWN:
            place = Path("files") / path.name
            (folder / place).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / path, folder / place)
        if place is None:
            return match["title"]
        title = titles[path] if match["title"] in (path.name, str(path)) and path in titles else match["title"]
        relative = os.path.relpath(place, places[page].parent)
        return f"{match['sign']}[{title}]({relative}{hash_sign}{anchor})"

    return LINK_OR_CODE.sub(replace, text)


class _Page(HTMLParser):
    """What a page of the site has: anchors, and what it refers to and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self.anchors |= {own["id"]} if "id" in own else set()
        if tag == "a" and "href" in own:
            self.links.append(own["href"])
        elif tag in LOADING and own.get("rel") not in (
            "prev",
            "next",
            "canonical",
        ):
            self.loaded += [own[name] for name in ("href", "src") if name in own]


def broken(site: Path) -> list[str]:
    """Describe the links of a site that lead nowhere, and what it would load from elsewhere."""
    read = {}
    for path in sorted(site.rglob("*.html")):
        read[path] = _Page()
        read[path].feed(path.read_text())
    found = []
    for path, page in read.items():
        if path.name == "404.html" or path.parent.name == "files":
            continue  # the addresses of the former depend on the server; the latter are other programs' pages
        for link in (*page.links, *page.loaded):
            if re.match(r"[a-z]+:", link) or link.startswith("//"):
                if link in page.loaded and not link.startswith("data:"):
                    found.append(f"{path.name}: loads {link}")
                continue
            file, _, anchor = unquote(link).partition("#")
            goal = (path.parent / file.partition("?")[0]).resolve() if file else path
            if not goal.exists():
                found.append(f"{path.name}: {link}: there is no such file")
            elif anchor and goal in read and anchor not in read[goal].anchors:
                found.append(f"{path.name}: {link}: there is no such anchor")
    return found


if __name__ == "__main__":
    main()
