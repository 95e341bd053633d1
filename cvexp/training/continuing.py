"""The training of a run that continues a finished one."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl

from cvexp.config import RunConfig
from cvexp.console import print_line
from cvexp.tracking.continuing import source_config
from cvexp.tracking.run import ReadOnlyRun

TAG = "continues.schedules"


class Continuation(pl.Callback):
    """Says where a run continues another one, and how its schedules go on there.

    Args:
        run: The run, which gets the same as a tag.
    """

    def __init__(self, run: ReadOnlyRun) -> None:
        self.run = run

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.is_global_zero and TAG not in self.run.tags():
            lines = describe(module, source_config(self.run.store, module.config))
            print_line("\n  ".join(lines))
            self.run.set_tag(TAG, "; ".join(lines))


def describe(module: Any, before: RunConfig) -> list[str]:
    """Say at which step a run continues another one, and then how each schedule goes on.

    Args:
        module: The training module of the run, before its first own step.
        before: The configuration of the other run.
    """
    config, step, total = module.config, module.global_step, module.total_steps
    num_epochs = math.ceil(total / len(module.batches))
    lines = [
        f"continues run {config.run} at step {step} of {total} (epoch {module.epochs_done} of {num_epochs}); its "
        f"schedules are those of a run of {total} steps"
    ]
    former = module.schedules(before, (step - 1) / step)
    last = module.schedules(config, (total - 1) / total)
    for name, value in module.schedules(config, step / total).items():
        if math.isclose(value, former[name]) and math.isclose(value, last[name]):
            lines.append(f"{name} stays {value:.4g}")
        else:
            was = f"the last step of that run had {former[name]:.4g}"
            lines.append(f"{name} goes on at {value:.4g} ({was}), and ends at {last[name]:.4g}")
    for words, fraction in module.warmups(config).items():
        if step / total < fraction:
            lines.append(f"{words} until step {math.ceil(fraction * total)}")
    return lines


def reopen_epoch(checkpoint: dict[str, Any], steps_of_epoch: int) -> None:
    """Let Lightning go on within an epoch that `trainer.max_steps` cut short, instead of starting the next one.

    Its progress becomes that of a run that was interrupted after the same step.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    has_ended = epochs["current"]["processed"] == epochs["current"]["started"]
    if checkpoint["global_step"] % steps_of_epoch == 0 or not has_ended:
        return
    for period in ("current", "total"):
        epochs[period]["processed"] -= 1
        batches[period]["completed"] -= 1
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    validated = loops["epoch_loop.val_loop.batch_progress"]["total"]
    validated.update(dict.fromkeys(validated, 0))
