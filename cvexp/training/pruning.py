"""Stopping a run of a search early, if other runs are clearly better."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from cvexp import processes
from cvexp.console import print_line
from cvexp.errors import Pruned
from cvexp.tracking.run import ReadOnlyRun
from cvexp.tracking.study import current_trial


class Pruning(pl.Callback):
    """After each epoch, reports a metric to the study, and ends the run if its pruner advises so.

    Without a study, nothing happens.

    Args:
        run: The run, which gets the tag `pruned`.
        metric: The metric that the study compares.
    """

    def __init__(self, run: ReadOnlyRun, metric: str) -> None:
        self.run = run
        self.metric = metric
        self.trial = current_trial()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:  # after Checkpoints has saved
        if self.trial is None or trainer.global_step >= module.total_steps:
            return
        epoch = trainer.current_epoch + 1
        if processes.from_first(self.trial.falls_behind(module.validated[self.metric], epoch)):
            self.run.set_tag("pruned", f"after epoch {epoch}")
            print_line(f"pruned after epoch {epoch}: other trials are better")
            raise Pruned
