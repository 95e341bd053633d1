"""`task=prepare`: fetch, unpack and check a data set, as training does, and report what the data set contains.

With `task.shards`, also write its crops into shards.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from cvexp import data
from cvexp.config import RunConfig, TaskConfig
from cvexp.console import print_line
from cvexp.data import packing
from cvexp.data.split import null_training_key
from cvexp.errors import UserError, opening
from cvexp.keys import number
from cvexp.report.data import describe, print_data
from cvexp.tracking.run import ReadOnlyRun


@dataclass(kw_only=True)
class Config(TaskConfig):
    shards: str | None = MISSING
    shard_mb: float = number(above=0, unit="MB")
    quality: int | None = number(1, at_most=95)


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Prepare the data for all their uses, and record the report `data/report.json` in `run`.

    Raises:
        UserError: after the report, if something is broken and `dataset.strict` is set, or the shards can't be written.
    """
    task = config.task
    assert isinstance(task, Config)
    if task.shards is not None:
        packing.check_new(Path(task.shards))
    lenient = replace(config.dataset, strict=False, fraction=1.0)  # to report all images and all that is wrong
    report: dict[str, Any] = {}
    num_problems, seen = 0, set()
    for use in data.uses(config.dataset):
        splits = data.open_splits(lenient, use)
        if splits.val.catalog.folder in seen:  # the same images serve both uses
            continue
        seen.add(splits.val.catalog.folder)
        report[use] = {index.split: describe(index) for index in splits}
        print_data(config.dataset, splits)
        for index in splits:
            if len(index.images):
                data.warn_of_absent_classes(index, config.dataset, use)
        num_problems += sum(len(index.problems) for index in splits)
    run.log_json(report, "data/report.json")
    if num_problems and config.dataset.strict:
        raise UserError(
            f"dataset: {num_problems} things are wrong, listed above and in data/report.json of the run {run.id}; "
            "correct them, or leave them out with dataset.strict=false"
        )
    if task.shards is not None:
        _write_shards(config, task, Path(task.shards))


def _write_shards(config: RunConfig, task: Config, folder: Path) -> None:
    splits = data.load(config.dataset, "pretraining", needs_training=null_training_key(config.dataset) is None)
    settings = packing.Settings(int(task.shard_mb * 1e6), task.quality)
    with opening("task.shards"):
        listing = packing.write_shards(splits, config.dataset.name, folder, settings)
    for line in packing.describe(listing):
        print_line(line)
    root = str(folder) if re.fullmatch(r"[\w./-]+", str(folder)) else f"'{folder}'"  # Hydra's quotes
    print_line(f"pretrain on them with: python -m cvexp dataset=shards {shlex.quote(f'dataset.root={root}')}")
