"""The section on a study, and the page of its own."""

from __future__ import annotations

from cvexp.report import study_text as studied
from cvexp.report.document import Document, Paragraph, Picture, Section, Table, png, read_png
from cvexp.report.sections.material import Blocks
from cvexp.report.study import Study, read_study
from cvexp.report.study_figures import draw_curves, draw_gains
from cvexp.tracking.finished import FinishedRun

DESIGN = (
    "Each method starts from each of these weights, on each share of the labeled training images, with each seed. A "
    "seed has its own labeled images and order of training, and, if the study pretrains, its own pretraining. Within a "
    "seed, a smaller share is part of a larger one."
)
CURVES_ALT = "Score by share of labeled images, with a panel for each method and a line for each start"
GAINS_ALT = "Difference from the reference by share of labeled images, with a panel for each method"


def study_section(run: FinishedRun) -> Blocks:
    """Show the results of a study in a report."""
    study = read_study(run.store, run.id)
    if study is None:
        return [Paragraph(f"The study {run.id[:8]} has no results.")]
    curves, differences = (run.read(f"study/{name}.png", read_png) for name in ("curves", "differences"))
    where = f" (run {run.id[:8]}; its artifact study/study.html has all runs and their commands)"
    blocks = _blocks(study, curves, differences, where)
    return [Paragraph(sentence) for sentence in studied.sentences(study)] + blocks + _notes(study)


def study_page(study: Study, title: str) -> Document:
    """Return the page of a study, which also lists the command of each run."""
    blocks = _blocks(study, png(draw_curves(study)), png(draw_gains(study)), "")
    sections = [Section("Results", blocks)]
    if study.notes:
        sections.append(Section("How the study ran", _notes(study)))
    sections.append(Section("The runs, and the commands that repeat them", _commands(study)))
    return Document(title, studied.sentences(study), sections)


def _blocks(study: Study, curves: bytes | None, differences: bytes | None, where: str) -> Blocks:
    basis = f"{study.num_images} {'test' if study.split == 'test' else 'validation'} images"
    intervals = f"{study.confidence:.0%} intervals over images and seeds"
    blocks: Blocks = [Paragraph(study.about), Paragraph(DESIGN)]
    if study.split != "test":
        blocks.append(Paragraph(studied.NO_TEST))
    if curves is not None:
        caption = (
            f"{study.score} on {basis} by the share of the labels that was trained on{where}. Lines: mean over the "
            f"seeds, with {intervals}, which are cut off where they are very wide. Dots: single runs."
        )
        blocks.append(Picture(curves, CURVES_ALT, caption, wide=len(study.methods) > 1))
    columns, rows = studied.score_rows(study)
    blocks.append(Table(columns, rows, f"{study.score} on {basis}, with {intervals}.", wide=True))
    if study.gains:
        columns, rows = studied.difference_rows(study)
        caption = (
            f"Differences in {study.score} between runs with equal method, labels and seed, with {intervals}. A "
            "difference is clear if its interval excludes zero. The last column is the share of the labels with which "
            "the second start has the same score, from its curve, which is interpolated linearly in the logarithm of "
            "the share."
        )
        blocks.append(Table(columns, rows, caption, wide=True))
        if differences is not None:
            caption = f"Differences in {study.score} with {intervals}. Filled markers: clear differences."
            blocks.append(Picture(differences, GAINS_ALT, caption, wide=len(study.methods) > 1))
    return blocks


def _notes(study: Study) -> Blocks:
    return [Paragraph(note) for note in study.notes]


def _commands(study: Study) -> Blocks:
    rows = [[f"{name} ({run_id[:8]})", command] for name, run_id, command in study.pretrainings]
    for point in study.points:
        for seed, run_id, score, command in zip(point.seeds, point.run_ids, point.scores, point.commands, strict=True):
            share = studied.percent(point.fraction)
            name = f"{point.method}, {studied.weights(point.start)}, {share}, seed {seed}: {score:.3f} ({run_id[:8]})"
            rows.append([name, command])
    return [Table(["run", "command"], rows, "Each run with its score.", wide=True, code=True)]
