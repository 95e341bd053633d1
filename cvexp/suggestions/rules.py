"""What to do next: the command in the last line of a run or a sweep.

It repeats what the user has set and the next task needs, too: data, backbone, device, tracking folder, experiment. A
command is suggested only if it composes to exactly these settings.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

from cvexp import data, plugins
from cvexp.arguments import setting
from cvexp.composition import COMPOSITION_ERRORS, CONF
from cvexp.config import RunConfig
from cvexp.console import print_line
from cvexp.errors import UserError
from cvexp.suggestions.words import DATA, SAME_START, TRAINING, Command, composed, leaves, repeating
from cvexp.tracking.finished import FinishedRun, newest_runs, runs_with_ids
from cvexp.tracking.store import FAILURES, Store, few_retries

MAX_CANDIDATES = 20  # runs among which one is sought that can be compared
MAX_PROBED = 10  # runs in one command

# Settings of a method that the next command repeats; not those for several processes, because it starts only one.
_METHOD = re.compile(r"(task\.(?!name$)|optimizer\.|trainer\.(?!strategy$|sync_batchnorm$)|loader\.).*")


class Ended(NamedTuple):
    """A run that has ended, as far as the next step depends on it.

    Attributes:
        store: Where it is recorded.
        id: MLflow's id of the run.
        config: Its configuration.
        tags: Its tags.
    """

    store: Store
    id: str
    config: RunConfig
    tags: Mapping[str, str]

    def source(self) -> FinishedRun:
        """Return the run that a job worked on."""
        return FinishedRun(self.store, self.store.run(self.tags["of_run"], "run"), self.config)


def print_next(command: Command | None) -> None:
    """Print a command as the last line, if there is one."""
    if command is not None:
        print_line(f"next: {command}", style="bold")


@contextlib.contextmanager
def _never_failing() -> Iterator[None]:
    """Do without a suggestion if the store is away, or the data or the settings can't be read any more."""
    with few_retries(), contextlib.suppress(UserError, KeyError, *COMPOSITION_ERRORS, *FAILURES):
        yield


def after_run(store: Store, run_id: str, config: RunConfig, tags: Mapping[str, str]) -> Command | None:
    """Return the command that suggests itself after a run, or None if there is none.

    Args:
        store: Where the run is recorded.
        run_id: MLflow's id of the run.
        config: Its configuration.
        tags: Its tags.
    """
    rule = _RULES.get(config.job) or _RULES.get(config.role)
    if rule is not None:
        with _never_failing():
            return rule(Ended(store, run_id, config, tags))
    return None


def after_sweep(store: Store, run_ids: Sequence[str], config: RunConfig) -> Command | None:
    """Return the command that suggests itself after a sweep, or None if there is none.

    Args:
        store: Where the sweep is recorded.
        run_ids: The finished runs of its jobs.
        config: The configuration of one of the jobs.
    """
    with _never_failing():
        if len(run_ids) == 1:
            run = FinishedRun(store, store.run(run_ids[0], "run"), config)
            return after_run(store, run.id, run.config, run.tags)
        if runs := runs_with_ids(store, config, run_ids, config.role):
            ids = [run.id for run in runs]
            runs.sort(key=lambda run: run_ids.index(run.id))
            if len(ids) == len(run_ids) and config.role == "pretraining":
                return _after_pretrainings(runs)
            if len(ids) == len(run_ids) and config.role == "segmentation":
                return _after_segmentations(runs)
    return None


def after_study(config: RunConfig) -> Command | None:
    """Return the command that suggests itself after a study."""
    with _never_failing():
        return _job(config, "task=report")
    return None


# After one run


def _after_pretraining(ended: Ended) -> Command | None:
    return _job(ended.config, "task=neighbors", f"run={ended.id}")


def _after_features(ended: Ended) -> Command | None:
    return _job(ended.config, "task=neighbors", f"run={ended.tags['of_run']}")


def _after_neighbors(ended: Ended) -> Command | None:
    return _segment_or_probe(ended.source(), [f"run={ended.tags['of_run']}"])


def _after_segmentation(ended: Ended) -> Command | None:
    run = FinishedRun(ended.store, ended.store.run(ended.id, "run"), ended.config)
    return _compare_or_train_other(run, [run.seed])


def _after_comparison(ended: Ended) -> Command | None:
    return _job(ended.config, "task=report", f"run={ended.id}")


def _after_probe(ended: Ended) -> Command | None:
    return _job(ended.config, "task=report")


def _after_predicting(ended: Ended) -> Command | None:
    match = re.fullmatch(r"runs:/([0-9a-f]{32})/.*", ended.tags["of_model"])
    return _job(ended.config, "task=export", f"run={match[1]}") if match else None


def _after_export(ended: Ended) -> Command | None:
    source = ended.source()
    name = f"task.model={source.task}-{source.params['dataset.name']}"
    return _job(ended.config, "task=register", f"run={source.id}", name)


def _after_registering(ended: Ended) -> Command | None:
    if ended.source().role != "segmentation":
        return None
    return _job(ended.config, "task=demo", setting("task.model", ended.tags["model"]))


def _after_preparing(ended: Ended) -> Command | None:
    config = ended.config
    if config.task.shards is not None or "pretraining" not in data.uses(config.dataset):  # type: ignore[attr-defined]
        return None
    words = repeating(config, ["task=dino"], DATA)
    return None if words is None else Command(words)


_RULES: dict[str, Callable[[Ended], Command | None]] = {
    "pretraining": _after_pretraining,
    "segmentation": _after_segmentation,
    "features": _after_features,
    "neighbors": _after_neighbors,
    "compare": _after_comparison,
    "probe": _after_probe,
    "predict": _after_predicting,
    "export": _after_export,
    "register": _after_registering,
    "prepare": _after_preparing,
}


# After several runs


def _after_pretrainings(runs: Sequence[FinishedRun]) -> Command | None:
    """Return a sweep over the same seeds that segments, or if other settings differ, a probe of all runs."""
    first = runs[0]
    differ = {key for run in runs for key in run.params if run.params[key] != first.params.get(key)}
    of_seeds = all(key == "seed" or key.endswith(("_seed", "name")) for key in differ)
    if of_seeds and "segmentation" in data.uses(first.config.dataset):
        return _segment(first, f"latest:{first.task}", sorted({run.seed for run in runs}))
    if first.classes and len(runs) <= MAX_PROBED:
        return _job(first.config, "task=probe", f"runs=[{','.join(run.id for run in runs)}]")
    return _job(runs[-1].config, "task=neighbors", f"run={runs[-1].id}")


def _after_segmentations(runs: Sequence[FinishedRun]) -> Command | None:
    """Return the comparison of methods or starts, or else what trains the other method."""
    if len({(run.task, run.start) for run in runs}) > 1:
        return _job(runs[-1].config, "task=compare")
    return _compare_or_train_other(runs[-1], sorted({run.seed for run in runs}))


def _segment_or_probe(run: FinishedRun, of_run: Sequence[str]) -> Command | None:
    if "segmentation" in data.uses(run.config.dataset):
        return _segment(run, f"runs:/{run.id}", [run.seed])
    if run.classes:
        return _job(run.config, "task=probe", f"runs=[{run.id}]")
    return None


def _segment(run: FinishedRun, weights: str, seeds: Sequence[int]) -> Command | None:
    """Return a sweep that trains all segmentation methods from what a run has pretrained."""
    methods = _methods()
    start = [*_experiment(run), f"task={methods[0]}", f"backbone.weights={weights}"]
    words = repeating(run.config, start, TRAINING)
    return _over(words, methods[0], methods, seeds)


def _compare_or_train_other(run: FinishedRun, seeds: Sequence[int]) -> Command | None:
    """Return the comparison with runs of other methods, or if there are none, what trains another method."""
    from cvexp.tasks.compare import obstacle

    candidates = newest_runs(
        run.store, run.config, MAX_CANDIDATES, "tags.role = 'segmentation'", f"tags.task != '{run.task}'"
    )
    if any(obstacle(run, other) is None for other in candidates):
        return _job(run.config, "task=compare")
    others = [method for method in _methods() if method != run.task]
    if not others:
        return None
    experiment = [word for word in shlex.split(run.tags.get("command", "")) if word.startswith("+experiment=")]
    usual = leaves(composed([*experiment, f"task={run.task}"]))
    settings = leaves(asdict(run.config))
    own = {key for key, value in settings.items() if _METHOD.fullmatch(key) and usual.get(key) != value}
    words = repeating(run.config, [*experiment, f"task={others[0]}"], SAME_START, own)
    return _over(words, others[0], others[:1], seeds)


def _over(words: list[str] | None, task: str, tasks: Sequence[str], seeds: Sequence[int]) -> Command | None:
    """Return the sweep over tasks and seeds that one of its jobs stands for; a single run if there is only one job."""
    if words is None:
        return None
    if len(seeds) > 1:
        words = [*(word for word in words if not word.startswith("seed=")), f"seed={','.join(map(str, seeds))}"]
    words = [f"task={','.join(tasks)}" if word == f"task={task}" else word for word in words]
    return Command(words, is_sweep=len(tasks) * len(seeds) > 1)


def _methods() -> list[str]:
    """List the segmentation methods, the baseline first."""
    configs = {name: plugins.load("task", name).Config for name in plugins.known("task")}
    found = [name for name, config in configs.items() if config.role == "segmentation"]
    return sorted(found, key=lambda name: not configs[name].is_baseline)


def _experiment(run: FinishedRun) -> list[str]:
    """Return the experiment that segments as the one of a pretraining run pretrains, if there is one.

    They have names such as `voc6_dino` and `voc6_segmentation`.
    """
    if match := re.search(r"\+experiment=(\w+)", run.tags.get("command", "")):
        name = f"{match[1].removesuffix(f'_{run.task}')}_segmentation"
        if (CONF / "experiment" / f"{name}.yaml").is_file():
            return [f"+experiment={name}"]
    return []


def _job(config: RunConfig, *words: str) -> Command | None:
    """Return a job on finished runs, on the same device, in the same store."""
    repeated = repeating(config, words)
    return None if repeated is None else Command(repeated)
