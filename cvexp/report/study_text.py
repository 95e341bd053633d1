"""The sentences and tables of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from cvexp.console import console, print_line
from cvexp.metrics.bootstrap import MIN_IMAGES
from cvexp.metrics.comparison import RANDOM
from cvexp.metrics.efficiency import MIN_SEEDS, Gain, Saving
from cvexp.report.comparison import escape
from cvexp.report.study import Point, Study
from cvexp.report.style import shorten

NO_TEST = (
    "There is no test split: the scored images also chose the checkpoint of each run, so the scores are optimistic. "
    "The differences are less affected. dataset.test_fraction=0.2 holds out some of the images for testing."
)


def percent(fraction: float) -> str:
    """Return a share as a percentage with two digits: ``5%``, ``0.25%``."""
    return f"{float(f'{100 * fraction:.2g}'):g}%"


def weights(start: str) -> str:
    """Return the name of a start, for a sentence."""
    return "random weights" if start == RANDOM else shorten(start)


def sentences(study: Study) -> list[str]:
    """Return what the study found out about each method and start, in sentences that can be quoted.

    Where an interval includes zero difference, or there is one seed, the sentence says that the data do not decide.
    """
    if study.num_images < MIN_IMAGES:
        return [too_few(study.num_images, study.split)]
    found = []
    for method in study.methods:
        for start in study.starts:
            own = [gain for gain in study.gains if (gain.method, gain.start) == (method, start)]
            if own:
                found.append(_gain_sentence(own, study))
                clear = {gain.fraction for gain in own if gain.is_decided}
                saved = [saving for saving in study.savings if (saving.method, saving.start) == (method, start)]
                found += _saving_sentences(saved, [s for s in saved if s.is_decided and s.fraction in clear])
    return found or ["No start was compared with another one."]


def too_few(num_images: int, split: str) -> str:
    """Return the sentence that replaces all others if there are fewer than `MIN_IMAGES` images."""
    return (
        f"The {split} split has {num_images} images, which are too few to judge whether pretraining pays; at least "
        f"{MIN_IMAGES} are needed, and some hundreds are better."
    )


def _gain_sentence(own: Sequence[Gain], study: Study) -> str:
    mean = next((gain for gain in own if gain.fraction is None), own[-1])
    difference, low, high = mean.interval
    several = "over the shares of labels" if mean.fraction is None else f"with {percent(mean.fraction)} of the labels"
    seeds = f"{mean.num_seeds} seed{'s' * (mean.num_seeds > 1)}"
    basis = f"{difference:+.3f}, {study.confidence:.0%} interval {low:+.3f} to {high:+.3f} over images and {seeds}"
    both = f"{weights(mean.start)} or {weights(mean.reference)} is better"
    if mean.num_seeds < MIN_SEEDS:
        return f"With {mean.method}, one seed does not decide whether {both} ({basis})."
    if mean.is_decided:
        word = "higher" if difference > 0 else "lower"
        subject = f"With {mean.method}, the mean {study.score} {several} from {weights(mean.start)}"
        sentence = f"{subject} is {word} than from {weights(mean.reference)} ({basis})."
    else:
        sentence = f"With {mean.method}, these data do not decide whether {both} {several} ({basis})."
    return sentence if mean.fraction is not None else sentence + _single_shares(own, study.score)


def _single_shares(own: Sequence[Gain], score: str) -> str:
    """Return a sentence about the shares at which the difference is clear: none if this holds for all of them."""
    single = {gain.fraction: gain for gain in own if gain.fraction is not None}
    words = []
    for word, sign in (("higher", 1), ("lower", -1)):
        decided = [f for f, gain in single.items() if gain.is_decided and sign * gain.interval.difference > 0]
        clear = list(map(percent, decided))
        if len(clear) == len(single):
            return ""
        if clear:
            words.append(f"clearly {word} at {_listed(clear)} of the labels")
    if not words:
        return " At no single share is the difference clear."
    return f" From {weights(own[0].start)}, the {score} is {', and '.join(words)}."


def _saving_sentences(saved: Sequence[Saving], decided: Sequence[Saving]) -> list[str]:
    """Return a sentence for the smallest and the largest share of labels at which labels are saved or lost."""
    if not saved or saved[0].num_seeds < MIN_SEEDS:
        return []
    if not decided:
        first = saved[0]
        return [f"With {first.method}, these data do not decide how many labels {weights(first.start)} saves or costs."]
    return [_saving_sentence(saving) for saving in dict.fromkeys((decided[0], decided[-1]))]


def _saving_sentence(saving: Saving) -> str:
    start, reference = weights(saving.start), weights(saving.reference)
    subject = f"With {saving.method}, from {start}, {percent(saving.fraction)} of the labels give"
    if math.isinf(saving.low):
        most = "all labels" if saving.most == 1 else f"{percent(saving.most)} of them, the most that were tried"
        return f"{subject} more than {reference} reach with {most}."
    if saving.high == 0:
        fewest = f"{percent(saving.fewest)} of them, the fewest that were tried"
        return f"{subject} less than {reference} reach with {fewest}."
    return f"{subject} what {reference} need {needed(saving)} for."


def needed(saving: Saving) -> str:
    """Return the share of the labels that the reference needs, and its interval, if it has one: ``55% [40%, 70%]``.

    Outside of the shares that were tried, only a bound is known.
    """

    def bound(value: float) -> str:
        if math.isinf(value):
            return f"over {percent(saving.most)}"
        return f"under {percent(saving.fewest)}" if value == 0 else percent(value)

    share, low, high = bound(saving.needed), bound(saving.low), bound(saving.high)
    return share if share == low == high else f"{share} [{low}, {high}]"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def score_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the scores: a row for each method and start, a column for each fraction."""
    rows = []
    for method in study.methods:
        for start in study.starts:
            cells = {point.fraction: point for point in study.points if (point.method, point.start) == (method, start)}
            if cells:
                row = [method, shorten(start), *(_cell(cells.get(fraction)) for fraction in study.fractions)]
                rows.append(row)
    return ["method", "start", *map(percent, study.fractions)], rows


def _cell(point: Point | None) -> str:
    if point is None:
        return "no result"
    mean, low, high = point.interval
    return f"{mean:.3f} [{low:.2f}, {high:.2f}]"


def difference_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the differences from the reference, and of the labels that these save."""
    saved = {(saving.method, saving.start, saving.fraction): saving for saving in study.savings}
    rows = []
    for gain in study.gains:
        difference, low, high = gain.interval
        saving = None if gain.fraction is None else saved.get((gain.method, gain.start, gain.fraction))
        rows.append(
            [
                gain.method,
                f"{shorten(gain.start)} - {shorten(gain.reference)}",
                "mean" if gain.fraction is None else percent(gain.fraction),
                f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]",
                f"{gain.num_seeds}",
                "yes" if gain.is_decided else "no",
                needed(saving) if saving else "",
            ]
        )
    return [
        "method",
        "starts",
        "labels",
        f"difference in {study.score}",
        "seeds",
        "clear",
        "labels needed instead",
    ], rows


def markdown(study: Study) -> str:
    """Return the study as a Markdown page."""
    lines = [f"# {study.score} by label fraction", "", *(f"* {escape(text)}" for text in sentences(study)), ""]
    lines += [escape(study.about), ""]
    lines += [NO_TEST, ""] if study.split != "test" else []
    lines += [*_markdown_table(*score_rows(study)), "", *_markdown_table(*difference_rows(study)), ""]
    lines += [*(f"* {escape(note)}" for note in study.notes)]
    basis = f"{study.num_images} {study.split} images; {study.confidence:.0%} intervals over images and seeds."
    return "\n".join([*lines, "", basis, ""])


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [[escape(cell) for cell in row] for row in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return [f"| {' | '.join(row)} |" for row in lines]


def print_study(study: Study) -> None:
    """Print the scores, the differences, and what they say."""
    for title, (columns, rows) in (
        (f"{study.score} on {study.num_images} {study.split} images, by share of the labels", score_rows(study)),
        (f"differences, with {study.confidence:.0%} intervals over images and seeds", difference_rows(study)),
    ):
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        if rows:
            console.print(table)
    for sentence in (*sentences(study), *study.notes, *([NO_TEST] if study.split != "test" else [])):
        print_line(sentence)
