"""`task=report`: what finished runs found, written up as an HTML page and a PDF."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from omegaconf import MISSING

from cvexp import plugins
from cvexp.config import RunConfig, TaskConfig
from cvexp.errors import opening
from cvexp.report.comparison import read_comparison
from cvexp.report.console import print_line
from cvexp.report.document import Document, Section, html, pdf
from cvexp.report.sections.comparison import comparison_section
from cvexp.report.sections.data import data_section
from cvexp.report.sections.material import Material
from cvexp.report.sections.pretraining import pretraining_section
from cvexp.report.sections.probe import probe_section
from cvexp.report.sections.repeat import repeat_section
from cvexp.report.sections.segmentation import segmentation_section
from cvexp.report.sections.study import study_section
from cvexp.report.sections.summary import summary
from cvexp.report.study import FILE as STUDY
from cvexp.tracking.finished import all_runs, find_run, newest_with
from cvexp.tracking.run import ReadOnlyRun

MAX_SEGMENTATIONS = 8  # segmentation runs in a report without a comparison


@dataclass(kw_only=True)
class Config(TaskConfig):
    works_on: ClassVar[str | None] = "run"

    title: str = MISSING


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Record `report/report.html` and `report/report.pdf` in `run`, and copies of them in the tracking folder."""
    task = config.task
    assert isinstance(task, Config)
    document = write(task.title, find(run, config))
    folder = Path(config.tracking.folder)
    for name, content in (("report.html", html(document).encode()), ("report.pdf", pdf(document))):
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / name
            path.write_bytes(content)
            run.log_file(path, "report")
        with opening("tracking.folder"):
            (folder / name).write_bytes(content)
        print_line(f"open {(folder / name).absolute().as_uri()}")


def find(run: ReadOnlyRun, config: RunConfig) -> Material:
    """Find the comparison that `run` names (or the newest), its runs, and the pretraining runs that they start from."""
    store = run.store
    comparison_run = find_run(store, config, "task", "compare")
    compared = None
    segmentations = list(all_runs(store, config, "role", "segmentation"))
    if comparison_run is not None:
        compared = read_comparison(store, comparison_run.id)
        ids = [evaluated.run_id for evaluated in compared.evaluated]
        segmentations = sorted((other for other in segmentations if other.id in ids), key=lambda o: ids.index(o.id))
    else:
        segmentations = segmentations[:MAX_SEGMENTATIONS]
    pretrainings = list(all_runs(store, config, "role", "pretraining"))
    uses = Counter(segmentation.tags.get("weights_from") for segmentation in segmentations)
    used = sorted((other for other in pretrainings if other.id in uses), key=lambda other: -uses[other.id])
    pretrainings = used or pretrainings[:1]
    neighbors = (
        other
        for other in all_runs(store, config, "task", "neighbors")
        if pretrainings and other.tags.get("of_run") == pretrainings[0].id
    )
    described = {pretraining.id for pretraining in pretrainings}
    probes = list(all_runs(store, config, "task", "probe"))
    of_these = (other for other in probes if described & set(other.tags.get("of_runs", "").split()))
    probe = next(of_these, probes[0] if probes else None)
    study = newest_with(store, config, "study", STUDY)
    return Material(comparison_run, compared, segmentations, pretrainings, next(neighbors, None), probe, study)


def write(title: str, material: Material) -> Document:
    """Write everything that the runs found, in order."""
    methods = [name for name in plugins.known("task") if _segments(name)]
    sections = [
        Section("Data", data_section(material)),
        Section("Pretraining", pretraining_section(material)),
        Section("Probe", probe_section(material)),
        Section("Segmentation", segmentation_section(material, methods)),
        Section("Comparison", comparison_section(material)),
        *([Section("Labels and pretraining", study_section(material.study))] if material.study else []),
        Section("How to reproduce the runs", repeat_section(material)),
    ]
    return Document(title, summary(material), sections)


def _segments(task: str) -> bool:
    return bool(plugins.load("task", task).Config.role == "segmentation")
