"""`task=report`: what finished runs found, written up as an HTML page and a PDF."""

from __future__ import annotations

import shlex
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from omegaconf import MISSING

from cvexp import plugins, progress
from cvexp.arguments import setting
from cvexp.composition import compose_yaml
from cvexp.config import RunConfig, TaskConfig
from cvexp.console import print_line
from cvexp.errors import opening
from cvexp.report.comparison import read_comparison
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
from cvexp.tracking.finished import FinishedRun, find_run, newest_runs, newest_with, runs_with_ids
from cvexp.tracking.run import ReadOnlyRun
from cvexp.tracking.store import Store

MAX_SEGMENTATIONS = 8  # segmentation runs in a report without a comparison


@dataclass(kw_only=True)
class Config(TaskConfig):
    works_on: ClassVar[str | None] = "run"

    title: str = MISSING


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Record `report/report.html` and `report/report.pdf` in `run`, and copies of them in the tracking folder."""
    task = config.task
    assert isinstance(task, Config)
    with progress.step("reading what the runs recorded"):
        document = write(task.title, find(run, config))
    folder = Path(config.tracking.folder)
    with progress.step("writing the page and the PDF"):
        files = {"report.html": html(document).encode(), "report.pdf": pdf(document)}
    for name, content in files.items():
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
    if comparison_run is not None:
        compared = read_comparison(store, comparison_run.id)
        ids = [evaluated.run_id for evaluated in compared.evaluated]
        compared_runs = runs_with_ids(store, config, ids, "segmentation")
        segmentations = sorted(compared_runs, key=lambda other: ids.index(other.id))
    else:
        segmentations = newest_runs(store, config, MAX_SEGMENTATIONS, "tags.role = 'segmentation'")
    uses = Counter(segmentation.tags.get("weights_from", "") for segmentation in segmentations)
    used = sorted(runs_with_ids(store, config, uses, "pretraining"), key=lambda other: -uses[other.id])
    pretrainings = used or newest_runs(store, config, 1, "tags.role = 'pretraining'")
    neighbors = [
        other
        for pretraining in pretrainings[:1]
        for other in newest_runs(store, config, 1, "tags.task = 'neighbors'", f"tags.of_run = '{pretraining.id}'")
    ]
    probe = _newest_probe(store, config, pretrainings)
    study = newest_with(store, config, "study", STUDY)
    return Material(
        comparison_run, compared, segmentations, pretrainings, next(iter(neighbors), None), probe, study, _place(config)
    )


def _place(config: RunConfig) -> str:
    """Return the overrides that name the store in a shell, after a space each; empty if it is the default one."""
    usual = compose_yaml([]).tracking
    named = {name: getattr(config.tracking, name) for name in ("folder", "experiment")}
    words = [setting(f"tracking.{name}", value) for name, value in named.items() if value != usual[name]]
    return "".join(f" {shlex.quote(word)}" for word in words)


def _newest_probe(store: Store, config: RunConfig, pretrainings: Sequence[FinishedRun]) -> FinishedRun | None:
    """Return the newest probe of one of these runs, or else the newest one, or None."""
    of_these = [
        probe
        for pretraining in pretrainings
        for probe in newest_runs(store, config, 1, "tags.task = 'probe'", f"tags.of_runs LIKE '%{pretraining.id}%'")
    ]
    of_these = of_these or newest_runs(store, config, 1, "tags.task = 'probe'")
    return max(of_these, key=lambda probe: probe.started, default=None)


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
