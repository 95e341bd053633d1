"""What became of the jobs of a sweep: gathered from launcher and MLflow, printed and recorded."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from mlflow.entities import Run as MLflowRun
from rich.table import Table

from cvexp.composition import COMPOSITION_ERRORS, explain_composition
from cvexp.redaction import hide_secrets
from cvexp.report.console import console, print_line
from cvexp.report.style import shorten
from cvexp.sweeps.outcome import Job, Outcome
from cvexp.tracking.sweep import SweepRun

STATUSES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped", "RUNNING": "lost"}


def collect(run: SweepRun, jobs: Sequence[Job], returned: Sequence[JobReturn | None], lost: str) -> dict[int, Outcome]:
    """Return what became of launched jobs, by number.

    Args:
        run: The parent run.
        jobs: The jobs.
        returned: What the launcher returned for each, or None if it failed.
        lost: The error of the launcher, if it failed.
    """
    recorded = children(run)
    return {
        job.number: _outcome(job, recorded.get(job.number), result, lost, run.swept)
        for job, result in zip(jobs, returned, strict=True)
    }


def children(run: SweepRun) -> dict[int, MLflowRun]:
    """Return the newest run of each job, by the job's number."""
    recorded: dict[int, MLflowRun] = {}
    for child in run.store.search(f"tags.`mlflow.parentRunId` = '{run.id}'"):
        if number := child.data.tags.get("sweep.job"):
            recorded.setdefault(int(number), child)
    return recorded


def _outcome(job: Job, child: MLflowRun | None, returned: JobReturn | None, lost: str, swept: Sequence[str]) -> Outcome:
    if returned is None:
        status = STATUSES.get(child.info.status, "lost") if child else "not run"
        return outcome_of(job, child, status, swept, "" if status == "finished" else lost)
    if returned.status == JobStatus.COMPLETED:
        is_pruned = child is not None and "pruned" in child.data.tags
        return outcome_of(job, child, "pruned" if is_pruned else "finished", swept)
    error = returned._return_value
    is_composition = isinstance(error, COMPOSITION_ERRORS)
    text = explain_composition(error, job.overrides) if is_composition else str(error) or type(error).__name__
    return outcome_of(job, child, "failed", swept, text)


def outcome_of(job: Job, child: MLflowRun | None, status: str, swept: Sequence[str], error: str = "") -> Outcome:
    """Return what became of a job, given the run that it recorded.

    Args:
        job: The job.
        child: Its run, if it opened one.
        status: The status of the job; see :class:`Outcome`.
        swept: The keys that the jobs differ in.
        error: Why it did not finish, if the run does not say that.
    """
    words = [word.lstrip("+") for word in job.overrides]
    settings = " ".join(word for word in words if word.partition("=")[0] in swept)
    if child is None:
        return Outcome(job.number, hide_secrets(settings), status, error=hide_secrets(error))
    monitor = child.data.params.get("task.monitor", "").removeprefix("val/")
    value = child.data.metrics.get(f"best/{monitor}")
    recorded = child.data.tags.get("error", "").removeprefix("UserError: ") if status not in DONE else ""
    return Outcome(
        number=job.number,
        settings=hide_secrets(settings),
        status=status,
        run_id=str(child.info.run_id),
        metric=monitor if value is not None else "",
        value=value,
        error=hide_secrets(error or recorded),
    )


HEADINGS = ("job", "settings", "status", "best", "run")

DONE = ("finished", "finished before", "pruned", "failed before")


def report(run: SweepRun, outcomes: Sequence[Outcome]) -> None:
    """Print what became of the jobs, record it in the sweep's run, and close that."""
    if not outcomes:
        return
    table = Table(title=f"sweep {run.id}", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for outcome in outcomes:
        table.add_row(*_cells(outcome))
    console.print(table)
    for outcome in outcomes:
        if outcome.error:
            print_line(f"job {outcome.number}: {outcome.error}", style="bold yellow")
    lines = [[*HEADINGS, "error"], ["---"] * (len(HEADINGS) + 1)]
    lines += [[*_cells(outcome), outcome.error] for outcome in outcomes]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    markdown = "".join(f"| {' | '.join(line)} |\n" for line in cells)
    run.log_summary([outcome.row() for outcome in outcomes], markdown)
    statuses = {outcome.status for outcome in outcomes}
    run.close("FINISHED" if statuses <= set(DONE) else "KILLED" if "stopped" in statuses else "FAILED")


def _cells(outcome: Outcome) -> tuple[str, ...]:
    best = "" if outcome.value is None else f"{shorten(outcome.metric)} {outcome.value:.4f}"
    return str(outcome.number), outcome.settings, outcome.status, best, outcome.run_id
