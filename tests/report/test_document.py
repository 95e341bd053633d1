"""Documents on the screen and in print."""

import io

import pytest
from PIL import Image
from pypdf import PdfReader

from cvexp.report.document import Document, Paragraph, Picture, Section, Table, html, pdf


def picture(width: int, height: int, **kwargs: bool) -> Picture:
    content = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(content, "PNG")
    return Picture(content.getvalue(), "what is shown", "What it is.", **kwargs)


def pages(*blocks: Paragraph | Table | Picture) -> list[str]:
    document = Document("A title", ["In short."], [Section("Only section", list(blocks))])
    return [page.extract_text() for page in PdfReader(io.BytesIO(pdf(document))).pages]


def test_pictures_are_shrunk_where_that_saves_the_fourth_page() -> None:
    assert len(pages(*[picture(1518, 748, wide=True)] * 7)) == 3  # of 3.4 inches only two fit on a page
    assert len(pages(*[picture(1518, 748, wide=True)] * 12)) == 4  # but not until nothing can be read


def test_a_picture_may_be_for_the_screen_only() -> None:
    shown, left_out = picture(300, 200), picture(301, 200, screen_only=True)
    document = Document("A title", [], [Section("Section", [shown, left_out])])
    assert html(document).count("<img ") == 2
    (page,) = PdfReader(io.BytesIO(pdf(document))).pages
    assert [image.image.size for image in page.images if image.image] == [(300, 200)]


def test_narrow_blocks_stand_in_two_columns_in_their_order() -> None:
    text = "".join(pages(*(Paragraph(f"word{i} " * 40) for i in range(4))))
    places = [text.index(f"word{i}") for i in range(4)]
    assert places == sorted(places)


def test_text_is_text() -> None:
    words = "*a* _b_ #c $d$ <i>e</i> `f` @g"
    assert words in "".join(pages(Paragraph(words))).replace("\n", " ")
    assert "<i>e</i>" not in html(Document(words, [words], [Section(words, [Table([words], [[words]], words)])]))


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (["0.125", "-0.070", "+0.1", ""], True),
        (["0, 1, 2", "0.154 ± 0.007", "0.68 M", "none", "12"], True),
        (["7 of 8"], False),
        (["0.1", "disk"], False),
        (["-0.087 to -0.055"], False),
    ],
)
def test_columns_of_numbers_are_told_from_words(cells: list[str], numeric: bool) -> None:
    assert Table(["a", "b"], [["x", cell] for cell in cells], "").is_numeric(1) == numeric
