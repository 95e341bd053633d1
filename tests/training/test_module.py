"""A method trains without MLflow, and as it does with it."""

from collections.abc import Callable

import pytest
import pytorch_lightning as pl

from cvexp import plugins
from cvexp.composition import compose
from cvexp.data import load
from cvexp.tracking.sink import Memory
from cvexp.training.callbacks import Schedule
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs, store

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


@pytest.mark.parametrize("task", ["dino", "multiclass", "attention"])
def test_metrics_in_memory_are_those_of_a_run(cvexp: Callable[..., Outcome], task: str) -> None:
    settings = [f"task={task}", *(TINY if task == "dino" else TINY_SEGMENTATION)]
    config = compose(*settings)
    method = plugins.load("task", task).Method
    sink = Memory()
    module = method(config, load(config.dataset, "pretraining" if task == "dino" else "segmentation"), sink)
    trainer = pl.Trainer(
        max_epochs=config.trainer.max_epochs,
        accelerator="cpu",
        gradient_clip_val=config.optimizer.clip_norm,
        callbacks=[Schedule(config)],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.validate(module, verbose=False)
    trainer.fit(module)
    outcome = cvexp(*settings)
    assert outcome.code == 0, outcome.message
    (run,) = runs()
    measured = [name for name in run.data.metrics if name.startswith(("train/", "val/", "schedule/"))]
    assert {"train/loss", "val/loss", "schedule/lr"} <= set(measured)
    for name in measured:
        history = [(metric.step, metric.value) for metric in store().get_metric_history(run.info.run_id, name)]
        assert sorted(sink.metrics[name]) == history, name
