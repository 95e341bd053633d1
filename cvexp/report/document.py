"""A document of paragraphs, tables and figures, as one HTML page and as a PDF in two columns."""

from __future__ import annotations

import base64
import io
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import typst
from jinja2 import Environment
from matplotlib.figure import Figure as Drawing
from PIL import Image

from cvexp.report.style import COLUMN, DPI, PAGE

HALF_A_PAGE = 5.0  # inches
PAGES = 3  # in print
SCALES = (1.0, 0.9, 0.8)  # of pictures, whose letters become too small below
TEMPLATES = Path(__file__).parent


NUMBER = re.compile(r"|none|[-+]?[\d.]+(, \d+)*( M)?( ± [\d.]+)?( \([\d.]+ to [\d.]+\))?")


@dataclass(frozen=True)
class Paragraph:
    """Plain text; `code` is set in the typeface of commands."""

    text: str
    code: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells below a row of names; columns of numbers are set to the right.

    Attributes:
        wide: Goes over both columns.
        code: The second column, and last, is of commands.
    """

    columns: list[str]
    rows: list[list[str]]
    caption: str
    wide: bool = False
    code: bool = False

    def is_numeric(self, column: int) -> bool:
        """Whether a column has numbers, some with their spread or unit, and nothing else."""
        return all(NUMBER.fullmatch(row[column]) for row in self.rows)


@dataclass(frozen=True)
class Picture:
    """A PNG with a caption, and with words for those who can't see it.

    Attributes:
        wide: Goes over both columns.
        screen_only: Is left out of the PDF, which is short.
    """

    png: bytes
    alt: str
    caption: str
    wide: bool = False
    screen_only: bool = False


@dataclass(frozen=True)
class Section:
    title: str
    blocks: list[Paragraph | Table | Picture]


@dataclass(frozen=True)
class Document:
    title: str
    summary: list[str]
    sections: list[Section]


def png(figure: Drawing) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def read_png(path: Path) -> bytes:
    """The content of a PNG file, checked to be one.

    Raises:
        OSError: when it is none, or is damaged.
    """
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
    return path.read_bytes()


def html(document: Document) -> str:
    """One page without any file beside it."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    template = environment.from_string((TEMPLATES / "document.html.jinja").read_text())
    return template.render(document=document)


def _printed_width(picture: Picture) -> float:
    """As it was drawn, where it isn't wider than its place or taller than half a page."""
    width, height = Image.open(io.BytesIO(picture.png)).size
    return min(width / DPI, PAGE if picture.wide else COLUMN, HALF_A_PAGE * width / height)


def pdf(document: Document) -> bytes:
    """A4 in two columns, set by Typst; pictures are shrunk a little where that keeps it within three pages."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sections = []
        for section in document.sections:
            blocks: list[dict[str, object]] = []
            for block in section.blocks:
                if isinstance(block, Picture):
                    if block.screen_only:
                        continue
                    name = f"{len(list(folder.iterdir()))}.png"
                    (folder / name).write_bytes(block.png)
                    blocks.append(
                        {
                            "kind": "picture",
                            "file": name,
                            "alt": block.alt,
                            "caption": block.caption,
                            "wide": block.wide,
                            "inches": _printed_width(block),
                        }
                    )
                elif isinstance(block, Table):
                    numeric = [block.is_numeric(i) for i in range(len(block.columns))]
                    blocks.append({"kind": "table", "numeric": numeric, **vars(block)})
                else:
                    blocks.append({"kind": "paragraph", **vars(block)})
            sections.append({"title": section.title, "blocks": blocks})
        main = folder / "document.typ"
        main.write_text((TEMPLATES / "document.typ").read_text())
        for scale in SCALES:
            content = {"title": document.title, "summary": document.summary, "sections": sections, "scale": scale}
            (folder / "content.json").write_text(json.dumps(content))
            if int(typst.query(main, "<pages>", field="value", one=True, root=folder)) <= PAGES:
                break
        compiled = typst.compile(main, root=folder)
        assert isinstance(compiled, bytes)
        return compiled
