"""`task=prepare`: fetch, unpack and check a data set, as training does, and report what the data set contains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cvexp import data
from cvexp.config import RunConfig, TaskConfig
from cvexp.errors import UserError
from cvexp.report.data import describe, print_data
from cvexp.tracking.run import ReadOnlyRun


@dataclass(kw_only=True)
class Config(TaskConfig):
    pass


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Prepare the data for all their uses, and record the report `data/report.json` in `run`.

    Raises:
        UserError: after the report, if something is broken and `dataset.strict` is set.
    """
    lenient = replace(config.dataset, strict=False)  # to report everything that is wrong
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
            f"dataset: {num_problems} things are broken, listed above and in data/report.json of the run {run.id}; "
            "repair them, or leave them out with dataset.strict=false"
        )
