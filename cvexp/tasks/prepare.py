"""`task=prepare`: fetch, unpack and check a data set, and report what is in it. Training does all but the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cvexp import config, data
from cvexp.errors import UserError
from cvexp.report.data import describe, print_data
from cvexp.tracking import Run


@dataclass(kw_only=True)
class Config(config.Task):
    pass


def run(config: config.Config, run: Run) -> None:
    """Make the data ready for all that it can be used for, and leave the report `data/report.json` in `run`.

    Raises:
        UserError: after the report, when something is broken and `dataset.strict` says that this stops.
    """
    lenient = replace(config.dataset, strict=False)  # to see all that is wrong
    report: dict[str, Any] = {}
    problems, seen = 0, set()
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
        problems += sum(len(index.problems) for index in splits)
    run.log_json(report, "data/report.json")
    if problems and config.dataset.strict:
        raise UserError(
            f"dataset: {problems} broken things, listed above and in data/report.json of the run {run.id}; mend them, "
            "or leave them out with dataset.strict=false"
        )
