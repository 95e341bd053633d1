"""How MLflow describes a run: its name, parameters and tags."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from cvexp import processes
from cvexp.config import RunConfig, flatten, without_passwords
from cvexp.redaction import hide_secrets

# Environment variables that tell a job about its sweep, whatever the launcher.
PARENT_VARIABLE = "CVEXP_SWEEP"  # the id of the sweep's run
JOB_VARIABLE = "CVEXP_JOB"  # the job's number in the sweep
SWEPT_VARIABLE = "CVEXP_SWEPT"  # the keys that the jobs differ in, separated by commas
STUDY_VARIABLE = "CVEXP_STUDY"  # the study of Optuna that the job belongs to, as JSON

RESUMED = "resumed"  # tag of a run that was interrupted and went on

# Options that say where jobs run and when, not what they do.
_LAUNCHING_KEYS = ("launcher", "sweeper", "sweep", "run", "job")
LAUNCHING = ("hydra/launcher=", "hydra/sweeper=", *(f"hydra.{key}." for key in _LAUNCHING_KEYS))

LOGGED_VERSIONS = ("cvexp", "torch", "torchvision", "pytorch-lightning", "timm", "hydra-core", "mlflow", "numpy")

# Settings that the name of a run shows even outside a sweep.
_NAMED_ANYWAY = ("task", "backbone", "backbone.name", "dataset", "seed")


def default_name(config: RunConfig, swept: Mapping[str, str]) -> str:
    """Return the name of a run: its task, model, data, start and seed, and other settings that a sweep varies.

    Args:
        config: The run's configuration.
        swept: The settings that the jobs of a sweep differ in.
    """
    if config.task.works_on is not None:  # its data and models are those of other runs
        parts = [config.job]
    else:
        weights = config.backbone.weights or ""
        start = "timm" if weights == "timm" else weights.partition("latest:")[2]
        jobs = dict.fromkeys((config.job, config.task.name))
        candidates = (*jobs, config.backbone.name, config.dataset.name, start, f"seed{config.seed}")
        parts = [part for part in candidates if part]
        if not weights or start:
            swept = {key: value for key, value in swept.items() if key != "backbone.weights"}
    last_parts = [key.rpartition(".")[2] for key in swept]
    for key, value in swept.items():
        if key not in _NAMED_ANYWAY:
            short = key.rpartition(".")[2]
            parts.append(f"{short if last_parts.count(short) == 1 else key}={value}")
    return "-".join(parts)[:250]


def describe(config: RunConfig, folder: Path, command: str) -> dict[str, str]:
    """Return the tags of a new run.

    Args:
        config: The run's configuration.
        folder: Hydra's folder of the run.
        command: The command that repeats the run.
    """
    tags = {
        "task": config.job,
        "role": config.role,
        "seed": str(config.seed),
        "processes": str(processes.world_size()),
        "command": command,
        "cvexp.folder": str(folder.absolute()),
        "cvexp.config": digest(config),
        "version.python": platform.python_version(),
        **{f"version.{package}": version(package) for package in LOGGED_VERSIONS},
    }
    if parent := os.environ.get(PARENT_VARIABLE):
        tags |= {"mlflow.parentRunId": parent, "sweep.job": os.environ.get(JOB_VARIABLE, "")}
    if commit := _git("rev-parse", "HEAD"):
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    return tags


def digest(config: RunConfig, without: Collection[str] = ()) -> str:
    """Return a digest of all settings that a run could depend on: all but where it is recorded, and what it resumes.

    Args:
        config: The run's configuration.
        without: Further keys that are left out.
    """
    values = flatten(without_passwords(asdict(config)))
    left_out = {"resume", *without}
    settings = {k: value for k, value in values.items() if not k.startswith("tracking.") and k not in left_out}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def command_line(overrides: Sequence[str], is_sweep: bool = False) -> str:
    """Return the command line with the given overrides, without secrets.

    Args:
        overrides: The Hydra overrides of a job or of a sweep.
        is_sweep: Whether the overrides are those of a sweep. The command of a job does not name the launcher.
    """
    words = [word.removeprefix("++") for word in overrides if not word.startswith("hydra.mode=")]
    if not is_sweep:
        words = [word for word in words if not word.lstrip("+").startswith(LAUNCHING)]
    launcher = ["python"]
    if (num_processes := processes.world_size()) > 1:
        local = processes.local_world_size()
        nodes = [f"--nnodes={num_processes // local}"] if num_processes > local else []
        launcher = ["torchrun", *nodes, f"--nproc-per-node={local}"]
    return hide_secrets(" ".join([*launcher, "-m cvexp", *(["-m"] if is_sweep else []), *map(shlex.quote, words)]))


def resume_command(run_id: str, tracking_folder: str) -> str:
    """Return the command that resumes a run."""
    return _command(f"resume={run_id}", tracking_folder)


def sync_command(tracking_folder: str) -> str:
    """Return the command that delivers what waits in the outboxes of a tracking folder."""
    return _command("task=sync", tracking_folder)


def _command(override: str, tracking_folder: str) -> str:
    words = ["python -m cvexp", override]
    if tracking_folder != "outputs":
        words.append(shlex.quote(f"tracking.folder={tracking_folder}"))
    return " ".join(words)


def given_keys(command: str) -> set[str]:
    """Return the keys and groups that a recorded command line sets, for example ``{"task", "dataset.limit"}``."""
    words = (word.lstrip("+~") for word in shlex.split(command))
    return {word.partition("=")[0].partition("@")[0] for word in words if "=" in word}


def _git(*arguments: str) -> str:
    """Return git's answer about the working folder, or "" outside a repository or without git."""
    with contextlib.suppress(OSError):
        return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()
    return ""
