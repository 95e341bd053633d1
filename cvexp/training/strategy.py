"""What follows from the number of processes: Lightning's strategy and devices, and what several processes can't do."""

from __future__ import annotations

from typing import Any

import torch

from cvexp import processes
from cvexp.config import RunConfig, TrainerConfig, require_equal_parts
from cvexp.errors import UserError

DDP = "ddp_find_unused_parameters_true"  # as in conf/trainer/ddp.yaml


def check_processes(config: RunConfig) -> None:
    """Check that the number of processes suits the task, the batch size and the trainer.

    A run may be resumed or continued with another number of processes, so its recorded strategy does not matter.

    Raises:
        UserError: naming the command that starts several processes, or the setting to change.
    """
    num_processes, strategy = processes.world_size(), config.trainer.strategy
    is_new = config.resume is None and not config.continues
    if num_processes == 1:
        if is_new and strategy != "auto":
            raise UserError(
                f"trainer.strategy: got {strategy!r}, but there is one process; start several with: "
                "torchrun --nproc-per-node=2 -m cvexp trainer=ddp"
            )
        return
    if config.role == "job":
        raise UserError(f"task: {config.job} runs in one process, but there are {num_processes}; leave out torchrun")
    if is_new and strategy == "auto":
        raise UserError(f"trainer.strategy: there are {num_processes} processes; add trainer=ddp")
    require_equal_parts(config.loader.batch_size, num_processes)
    if config.trainer.sync_batchnorm and not is_on_gpu(config.trainer):
        raise UserError(
            "trainer.sync_batchnorm: got true, but PyTorch can synchronize batch norm only on GPUs; leave it out"
        )


def parallelism(config: TrainerConfig) -> dict[str, Any]:
    """Return Lightning's arguments for the processes that torchrun started, or for one process."""
    if processes.world_size() == 1:
        devices = 1 if config.devices == "auto" else config.devices
        return {"strategy": "auto", "devices": devices, "num_nodes": 1}
    local = processes.local_world_size()
    return {
        "strategy": DDP if config.strategy == "auto" else config.strategy,
        "devices": local,
        "num_nodes": processes.world_size() // local,
        "sync_batchnorm": config.sync_batchnorm,
    }


def is_on_gpu(config: TrainerConfig) -> bool:
    """Return whether the training runs on a GPU with CUDA."""
    return config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def normalized_together(config: RunConfig, num_samples: int) -> int:
    """Return the number of samples of a training batch over which batch norm computes its statistics.

    These are the samples of one process, unless `trainer.sync_batchnorm` is set.

    Args:
        config: The run's configuration.
        num_samples: Number of training samples, to which a larger batch is reduced if an epoch is one pass.
    """
    size = config.loader.batch_size
    if config.trainer.steps_per_epoch is None:
        size = min(size, num_samples)
    return size if config.trainer.sync_batchnorm else size // processes.world_size()


def in_processes() -> str:
    """Return " in W processes" for a message, or "" if there is only one."""
    return f" in {processes.world_size()} processes" if processes.world_size() > 1 else ""
