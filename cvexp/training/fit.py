"""Fitting a module: from its first validation, or its last checkpoint, to curves and a summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from cvexp import processes, progress
from cvexp.checkpoints import verify
from cvexp.config import TrainerConfig
from cvexp.errors import UserError
from cvexp.metrics import selection
from cvexp.metrics.knn import worse_than_untrained
from cvexp.report import curves
from cvexp.tracking.run import ReadOnlyRun
from cvexp.tracking.store import few_retries
from cvexp.training.callbacks import Checkpoints, Interruption, Schedule, Speed
from cvexp.training.checkpoint_files import CheckpointFiles
from cvexp.training.continuing import Continuation
from cvexp.training.finite import last_good_named
from cvexp.training.module import TrainingModule
from cvexp.training.progress import Progress, print_summary
from cvexp.training.pruning import Pruning
from cvexp.training.strategy import is_on_gpu, parallelism

PANELS = {"loss (nats)": "val/loss", "mIoU": "val/miou", "kNN accuracy": "val/knn_top1"}  # of the figure of curves


def fit(module: TrainingModule, run: ReadOnlyRun, monitor: str) -> float:
    """Train a module, starting from the last checkpoint of the run if there is one.

    Args:
        module: The module, whose validation must end with `log_validation`.
        run: Where checkpoints, curves and the summary go.
        monitor: What selects best.ckpt, ``"last"`` or a metric; see `cvexp.metrics.selection`.

    Returns:
        The monitored metric at the selected epoch, or for ``"last"`` its validation loss.

    Raises:
        UserError: if one of several processes can't see the checkpoint.
    """
    checkpoints = Checkpoints(run, monitor)
    trainer = make_trainer(
        module,
        [
            Schedule(module.config),
            Speed(),
            checkpoints,
            Progress(run),  # which prints the line of an epoch before an interruption ends the run
            Interruption(checkpoints),
            Pruning(run, selection.objective(monitor)),
            *[Continuation(run)] * module.config.continues,
        ],
        plugins=[CheckpointFiles(run)],
    )
    last = _shared_checkpoint(run)
    # The record is delivered beside the training, and the delivery tries again by itself.
    with last_good_named(run), few_retries(), progress.step("training"):
        if last is None:
            trainer.validate(module, verbose=False)  # before it has learned anything
        trainer.fit(module, ckpt_path=last, weights_only=True)
    if trainer.is_global_zero:
        selected = selection.describe(monitor, checkpoints.best["epoch"], module.epochs_done)
        with progress.step("drawing the curves"):
            _summarize(run, checkpoints.best, selected, len(module.batches), len(module.splits.val))
    return checkpoints.best[selection.objective(monitor)]


def _shared_checkpoint(run: ReadOnlyRun) -> Path | None:
    """Return the first process's last checkpoint, from which all processes start.

    Raises:
        UserError: in all processes, if one of them can't see it, or it is damaged.
    """
    last = processes.from_first(run.last_checkpoint)
    if processes.in_any(last is not None and not last.exists()):
        raise UserError(
            f"tracking.folder: not all processes can see {last}; choose a folder on a file system that all machines "
            "share"
        )
    if damage := processes.from_first(_damage(run)):
        raise UserError(damage)
    return last


def _damage(run: ReadOnlyRun) -> str | None:
    """Return a message if a checkpoint of an interrupted run is damaged. Only the first process reads them."""
    if processes.rank() > 0 or run.last_checkpoint is None:
        return None
    damages, whole = [], []
    for path in (run.folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")):
        try:
            if path.exists():
                verify(path)
                whole.append(path.name)
        except ValueError as error:
            damages.append(f"{path}: the checkpoint is damaged ({error})")
    if not damages:
        return None
    advice = f"from {whole[0]} with backbone.weights=runs:/{run.id}/checkpoints/{whole[0]}" if whole else "from scratch"
    return f"{'; '.join(damages)}; restore it from a copy, or start a new run {advice}"


def make_trainer(module: TrainingModule, callbacks: list[pl.Callback], **args: Any) -> pl.Trainer:
    """Create Lightning's trainer as the configuration says, and compile the networks if it says so.

    Args:
        module: What is trained.
        callbacks: What happens around the steps.
        args: Further arguments of the trainer.
    """
    config = module.config
    # Only faulty code reads uninitialized memory, and filling it takes 10 % of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if config.trainer.compile:
        for part in module.children():
            if next(part.parameters(), None) is not None:  # a loss depends on numbers that change at each step
                part.compile()
    return pl.Trainer(
        max_epochs=config.trainer.max_epochs,
        accelerator=config.trainer.accelerator,
        **parallelism(config.trainer),
        precision=_precision(config.trainer),  # type: ignore[arg-type]
        gradient_clip_val=config.optimizer.clip_norm,
        deterministic="warn",  # equal seeds give equal losses; operations that can't be deterministic warn
        callbacks=callbacks,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **args,
    )


def _summarize(run: ReadOnlyRun, best: Mapping[str, float], selected: str, steps_per_epoch: int, num_val: int) -> None:
    recorded = run.metrics()
    panels = {}
    for words, name in PANELS.items():
        if name in best:
            train = curves.training_metric(recorded, name)
            curve = curves.Curve("", run.history(train) if train else [], run.history(name), steps_per_epoch)
            panels[words] = [curve]
    run.log_figure(curves.compare(panels), "curves/curves.png")
    untrained = {name: run.history(name)[0][1] for name in best if name.startswith("val/")}
    _record_worse_features(run, best, num_val)
    print_summary(run, best, selected, untrained, run.tags().get("warning"))


def _record_worse_features(run: ReadOnlyRun, best: Mapping[str, float], num_val: int) -> None:
    """Add a warning to the tag `warning` if pretraining lowered the kNN accuracy on the validation crops."""
    if "val/knn_top1" not in best:
        return
    accuracies = run.history("val/knn_top1")
    trained = {"at the selected epoch": best["val/knn_top1"], "at the last epoch": accuracies[-1][1]}
    if warning := worse_than_untrained(dict(accuracies).get(0), trained, num_val):
        earlier = run.tags().get("warning", "")
        if warning not in earlier:  # a run that was resumed at its very end may already have recorded it
            run.set_tag("warning", f"{earlier}; {warning}" if earlier else warning)


def _precision(config: TrainerConfig) -> str:
    if config.precision != "auto":
        return config.precision
    return "bf16-mixed" if is_on_gpu(config) and torch.cuda.is_bf16_supported() else "32-true"
