"""A document of paragraphs, tables and figures, as an HTML page and as a PDF in two columns."""

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

MAX_HEIGHT = 5.0  # inches, about half a page
MAX_PAGES = 3
SCALES = (1.0, 0.9, 0.8)  # of the pictures in the PDF; smaller text would be unreadable
TEMPLATES = Path(__file__).parent

# A numeric cell: empty, or a number or list of numbers, perhaps with a unit, a standard deviation and quartiles.
NUMBER = re.compile(r"|none|[-+]?[\d.]+(, \d+)*( M)?( ± [\d.]+)?( \([\d.]+ to [\d.]+\))?")


@dataclass(frozen=True)
class Paragraph:
    """Plain text.

    Attributes:
        code: Whether to set it in the typeface of commands.
    """

    text: str
    code: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells below a row of column names. Columns of numbers are aligned to the right.

    Attributes:
        wide: Whether it spans both columns of the PDF.
        code: Whether the table has two columns and the second contains commands.
    """

    columns: list[str]
    rows: list[list[str]]
    caption: str
    wide: bool = False
    code: bool = False

    def is_numeric(self, column: int) -> bool:
        """Return whether all cells of a column are numbers, with or without a unit and a spread."""
        return all(NUMBER.fullmatch(row[column]) for row in self.rows)


@dataclass(frozen=True)
class Picture:
    """A PNG image with a caption.

    Attributes:
        alt: A description for people who can't see the image.
        wide: Whether it spans both columns of the PDF.
        screen_only: Whether to leave the image out of the PDF, to keep the PDF short.
    """

    png: bytes
    alt: str
    caption: str
    wide: bool = False
    screen_only: bool = False


@dataclass(frozen=True)
class Section:
    """A title and the blocks below it."""

    title: str
    blocks: list[Paragraph | Table | Picture]


@dataclass(frozen=True)
class Document:
    """A title, the most important results as sentences, and sections."""

    title: str
    summary: list[str]
    sections: list[Section]


def png(figure: Drawing) -> bytes:
    """Return a Matplotlib figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def read_png(path: Path) -> bytes:
    """Return the content of a PNG file.

    Raises:
        OSError: if it is not a PNG file, or is damaged.
    """
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
    return path.read_bytes()


def html(document: Document) -> str:
    """Return the document as a self-contained HTML page."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    template = environment.from_string((TEMPLATES / "document.html.jinja").read_text())
    return template.render(document=document)


def _printed_width(picture: Picture) -> float:
    """Return the width of a picture in inches, limited by its column and by the height of half a page."""
    width, height = Image.open(io.BytesIO(picture.png)).size
    return min(width / DPI, PAGE if picture.wide else COLUMN, MAX_HEIGHT * width / height)


def pdf(document: Document) -> bytes:
    """Return the document as an A4 PDF in two columns, set by Typst.

    Pictures are scaled down a little if that keeps the PDF within three pages.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sections = [{"title": section.title, "blocks": _printed(section, folder)} for section in document.sections]
        main = folder / "document.typ"
        main.write_text((TEMPLATES / "document.typ").read_text())
        for scale in SCALES:
            content = {"title": document.title, "summary": document.summary, "sections": sections, "scale": scale}
            (folder / "content.json").write_text(json.dumps(content))
            if int(typst.query(main, "<pages>", field="value", one=True, root=folder)) <= MAX_PAGES:
                break
        compiled = typst.compile(main, root=folder)
        assert isinstance(compiled, bytes)
        return compiled


def _printed(section: Section, folder: Path) -> list[dict[str, object]]:
    """Return the blocks of a section for the template of the PDF, and write their pictures into a folder."""
    blocks: list[dict[str, object]] = []
    for block in section.blocks:
        if isinstance(block, Paragraph):
            blocks.append({"kind": "paragraph", **vars(block)})
        elif isinstance(block, Table):
            numeric = [block.is_numeric(i) for i in range(len(block.columns))]
            blocks.append({"kind": "table", "numeric": numeric, **vars(block)})
        elif not block.screen_only:
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
    return blocks
