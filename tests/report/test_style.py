"""Names as figures and tables show them."""

import warnings

import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cvexp.report.style import SMALL, STYLE, drawable, fitting, shorten


@pytest.mark.parametrize("name", ["R&D", "car (parked)", "$x$", "_a_", "x" * 24, "<b>x</b>"])
def test_short_names_stay_as_they_are(name: str) -> None:
    assert shorten(name) == drawable(name) == name


def test_long_names_keep_their_start_and_end() -> None:
    assert shorten("start" + "x" * 290 + "end12", 12) == "startxxx…d12"
    assert [len(shorten("y" * 300, length)) for length in (12, 40, 60)] == [12, 40, 60]


@pytest.mark.parametrize("name", ["W" * 30, "i" * 30, "Mammuthus primigenius", "🚗" * 9, "cat"])
def test_a_name_is_no_wider_than_its_place_and_no_shorter_than_it_must_be(name: str) -> None:
    figure = Figure(dpi=600)  # at which letters are hardly moved to whole pixels
    draw = FigureCanvasAgg(figure)

    def inches(text: str) -> float:
        return float(figure.text(0, 0, text, fontsize=SMALL).get_window_extent(draw.get_renderer()).width / figure.dpi)

    text = fitting(name, 0.6)
    assert inches(text) <= 0.62
    assert text == drawable(name) or inches(drawable(name, len(text) + 1)) > 0.58


def test_a_name_stands_on_one_line_and_controls_no_terminal() -> None:
    assert shorten("two\nlines\tand \x1b[31mred") == "two lines and [31mred"


def test_what_the_font_lacks_is_drawn_without_a_warning() -> None:
    assert drawable("🚗 café") == "□ café"
    with warnings.catch_warnings(), rc_context(STYLE):
        warnings.simplefilter("error")
        figure = Figure()
        figure.suptitle(drawable("🚗 漢字 $x$ _a_"))
        FigureCanvasAgg(figure).draw()
