"""The section on how to reproduce the runs."""

from __future__ import annotations

from cvexp.report.document import Paragraph, Table
from cvexp.report.sections.material import Blocks, Material
from cvexp.tracking.finished import FinishedRun


def repeat_section(material: Material) -> Blocks:
    """List the commands of the runs and the versions of the software."""
    candidates = [
        *material.pretrainings,
        material.neighbors,
        material.probe,
        *material.segmentations,
        material.comparison_run,
    ]
    runs = [source for run in candidates if run is not None for source in (run, *run.continued())]
    runs = list({run.id: run for run in runs}.values())
    by_command: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_command.setdefault(_exact_command(run, material), []).append(run)
    rows = [[", ".join(f"{run.name} ({run.id[:8]})" for run in group), cmd] for cmd, group in by_command.items()]
    caption = "The runs, and the commands that reproduce them in the root of the repository. MLflow has all settings."
    return [Table(["runs", "command"], rows, caption, wide=True, code=True), Paragraph(_versions(runs))]


def _exact_command(run: FinishedRun, material: Material) -> str:
    """Return the command of a run or of its sweep, with the runs that a job chose by itself."""
    command = run.sweep_command() or run.tags["command"]
    if run.task == "neighbors" and run.config.run is None:
        command += f" run={run.tags['of_run']}"
    if run.task == "probe" and run.config.runs is None and "weights_from" not in run.tags and "of_run" in run.tags:
        command += f" 'runs=[{run.tags['of_run']}]'"
    if run.task == "compare" and run.config.runs is None and material.comparison is not None:
        command += f" 'runs=[{', '.join(compared.run_id for compared in material.comparison.evaluated)}]'"
    return command


def _versions(runs: list[FinishedRun]) -> str:
    tags = [item for run in runs for item in run.tags.items()]
    versions = sorted({(key.removeprefix("version."), value) for key, value in tags if key.startswith("version.")})
    commits = sorted({value[:12] for key, value in tags if key == "mlflow.source.git.commit"}) or ["unknown"]
    dirty = " (some runs with uncommitted changes)" if ("git.dirty", "true") in tags else ""
    listed = ", ".join(f"{name} {value}" for name, value in versions)
    return f"Versions: {listed}. Git commit: {', '.join(commits)}{dirty}."
