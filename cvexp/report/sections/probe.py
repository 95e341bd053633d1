"""The section on the probe of frozen features."""

from __future__ import annotations

from cvexp.metrics.probe_results import ProbeResults
from cvexp.report import probe as probed
from cvexp.report.document import Paragraph, Picture, Table, read_png
from cvexp.report.sections.material import Blocks, Material
from cvexp.tracking.finished import FinishedRun


def probe_section(material: Material) -> Blocks:
    """Show the scores of frozen features, and how they compare with their controls."""
    run = material.probe
    if run is None:
        runs = ",".join(pretraining.id for pretraining in material.pretrainings)
        command = f"python -m cvexp task=probe 'runs=[{runs}]'" if runs else "python -m cvexp task=probe"
        return material.missing("No features have been probed.", command)
    results = probed.read_results(run.store, run.id)
    sentences = [*probed.sentences(results), *results.notes]
    return [_table(results, run), *map(Paragraph, sentences), *_picture(results, run)]


def _table(results: ProbeResults, run: FinishedRun) -> Table:
    caption = f"{probed.about(results)} (Run {run.id[:8]}.)"
    return Table(["network", *probed.COLUMNS.values()], probed.rows(results), caption, wide=True)


def _picture(results: ProbeResults, run: FinishedRun) -> Blocks:
    picture = run.read(f"{probed.FOLDER}/probe.png", read_png)
    if picture is None:
        return []
    alt = "Scores of each network with intervals, in a panel each for the linear classifier and nearest neighbors"
    caption = (
        f"Scores of the probed networks (dots) and of the controls (squares), with {results.confidence:.0%} intervals. "
        f"Dashed: always predicting the most frequent training class (run {run.id[:8]})."
    )
    return [Picture(picture, alt, caption, wide=True)]
