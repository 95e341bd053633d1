"""What became of the jobs of a sweep: gathered from launcher and MLflow, printed and recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from mlflow.entities import Run as MLflowRun

from cvexp.composition import COMPOSITION_ERRORS, explain_composition
from cvexp.console import print_line
from cvexp.errors import JobStopped
from cvexp.metrics import selection
from cvexp.redaction import hide_secrets
from cvexp.report.style import shorten
from cvexp.sweeps.earlier import is_locked
from cvexp.sweeps.outcome import Job, Outcome
from cvexp.tracking.sweep import SweepRun
from cvexp.tracking.view import share_sweep

STATUSES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped", "RUNNING": "lost"}

DONE = ("finished", "finished before", "pruned", "failed before")

HEADINGS = ("job", "status", "best", "run", "settings")


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
        job.number: _outcome(job, recorded.get(job.number), result, lost, run)
        for job, result in zip(jobs, returned, strict=True)
    }


def children(run: SweepRun) -> dict[int, MLflowRun]:
    """Return the newest run of each job, by the job's number."""
    recorded: dict[int, MLflowRun] = {}
    for child in run.store.search(f"tags.`mlflow.parentRunId` = '{run.id}'"):
        if number := child.data.tags.get("sweep.job"):
            recorded.setdefault(int(number), child)
    return recorded


def _outcome(job: Job, child: MLflowRun | None, returned: JobReturn | None, lost: str, run: SweepRun) -> Outcome:
    if returned is None:
        status = _status_without_launcher(child, run)
        return outcome_of(job, child, status, run.swept, "" if status in ("finished", "running") else lost)
    if returned.status == JobStatus.COMPLETED:
        is_pruned = child is not None and "pruned" in child.data.tags
        return outcome_of(job, child, "pruned" if is_pruned else "finished", run.swept)
    error = returned._return_value
    if isinstance(error, JobStopped):
        return outcome_of(job, child, "stopped" if child else "not run", run.swept)
    is_composition = isinstance(error, COMPOSITION_ERRORS)
    text = explain_composition(error, job.overrides) if is_composition else str(error) or type(error).__name__
    return outcome_of(job, child, "failed", run.swept, text)


def _status_without_launcher(child: MLflowRun | None, run: SweepRun) -> str:
    """Return the status of a job whose launcher failed, and end its run if its process has disappeared."""
    if child is None:
        return "not run"
    if child.info.status == "RUNNING" and is_locked(child, run.folder):
        return "running"
    if child.info.status == "RUNNING":
        with contextlib.suppress(Exception):  # if the store is what failed, that is reported
            run.store.client.set_terminated(child.info.run_id, "KILLED")
    return STATUSES.get(child.info.status, "lost")


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
    metric = selection.objective(child.data.params.get("task.monitor", "")).removeprefix("val/")
    value = child.data.metrics.get(f"best/{metric}")
    recorded = child.data.tags.get("error", "").removeprefix("UserError: ") if status == "failed" else ""
    return Outcome(
        number=job.number,
        settings=hide_secrets(settings),
        status=status,
        run_id=str(child.info.run_id),
        metric=metric if value is not None else "",
        value=value,
        error=hide_secrets(error or recorded),
    )


def report(run: SweepRun, outcomes: Sequence[Outcome]) -> None:
    """Print what became of the jobs, record it in the sweep's run, and close that."""
    if not outcomes:
        return
    outcomes = sorted(outcomes, key=lambda outcome: outcome.number)  # a study runs first what tells most
    rows = [HEADINGS, *(_cells(outcome) for outcome in outcomes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    print_line(f"sweep {run.id}")
    for i, row in enumerate(rows):  # lines rather than a table, whose narrow columns would break the ids of the runs
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_line("  ".join(cells).rstrip(), style=None if i else "bold")
    metrics = dict.fromkeys(f"best/{outcome.metric}" for outcome in outcomes if outcome.metric)
    if address := share_sweep(run.store, run.id, run.swept, list(metrics)):
        print_line(f"in MLflow's UI: {address}")
    for error in dict.fromkeys(outcome.error for outcome in outcomes if outcome.error):
        numbers = ", ".join(str(outcome.number) for outcome in outcomes if outcome.error == error)
        print_line(f"job {numbers}: {error}", style="bold yellow")
    lines = [[*HEADINGS, "error"], ["---"] * (len(HEADINGS) + 1)]
    lines += [[*_cells(outcome), outcome.error] for outcome in outcomes]
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    markdown = "".join(f"| {' | '.join(line)} |\n" for line in escaped)
    run.log_summary([outcome.row() for outcome in outcomes], markdown)
    statuses = {outcome.status for outcome in outcomes}
    run.stays_open = "running" in statuses
    if not run.stays_open:
        run.close("FINISHED" if statuses <= set(DONE) else "KILLED" if "stopped" in statuses else "FAILED")


def _cells(outcome: Outcome) -> tuple[str, ...]:
    best = "" if outcome.value is None else f"{shorten(outcome.metric)} {outcome.value:.4f}"
    return str(outcome.number), outcome.status, best, outcome.run_id, _short(outcome.settings)


def _short(settings: str) -> str:
    """Shorten keys to their last part, and numbers to four digits, as far as the settings stay different."""
    words = []
    for word in settings.split(" "):
        key, equals, value = word.partition("=")
        with contextlib.suppress(ValueError):
            value = f"{float(value):.4g}" if "." in value else value
        words.append(f"{key.rpartition('.')[2]}{equals}{value}")
    return " ".join(words)
