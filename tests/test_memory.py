"""Too little memory ends a run with one message, which names the key to lower."""

import errno
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cvexp.composition import compose
from cvexp.errors import UserError
from cvexp.inference.segmenter import Segmenter
from cvexp.memory import shortage_explained
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs

CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.00 GiB."


def allocate_tensor() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def allocate_array() -> None:
    np.ones((2**30, 2**30), np.uint8)


def allocate_bytes() -> None:
    bytes(2**62)


@pytest.mark.parametrize("allocate", [allocate_tensor, allocate_array, allocate_bytes])
def test_each_allocator_is_understood(allocate: Callable[[], None]) -> None:
    message = r"the memory of the machine is full.*lower loader.batch_size \(now 64\)"
    with pytest.raises(UserError, match=message), shortage_explained(compose("task=dino")):
        allocate()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(CUDA),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_full_gpu_is_understood(error: RuntimeError) -> None:
    with pytest.raises(UserError, match="the memory of the GPU is full"), shortage_explained(compose()):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("a memory"), OSError(errno.EACCES, "no"), ValueError("memory")])
def test_other_errors_are_left_alone(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error).replace("[", r"\[")), shortage_explained(compose()):
        raise error


LIMITED = """
import resource, psutil, mlflow, pytorch_lightning, torch
from cvexp.app import main
limit = psutil.Process().memory_info().vms + 1500 * 2**20  # libraries take a lot of addresses
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the memory of a process")
def test_a_training_that_needs_too_much_memory() -> None:
    settings = ["task=multiclass", *TINY_SEGMENTATION, "dataset.image_size=2048"]
    process = subprocess.run([sys.executable, "-c", LIMITED, *settings], capture_output=True, text=True, timeout=250)
    assert process.returncode == 1
    (line,) = process.stderr.strip().splitlines()
    assert line.startswith("cvexp: error: the memory of the machine is full (")
    assert "lower loader.batch_size (now 4), then dataset.image_size (now 2048), trainer.precision (now auto)" in line
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert "loader.batch_size" in run.data.tags["error"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["train", "predict"])
def test_a_full_gpu_ends_the_run(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError(CUDA)

    if task == "train":
        from cvexp.tasks.dino import DINO

        monkeypatch.setattr(DINO, "step", fail)
        outcome = cvexp(*TINY)
        keys = "lower loader.batch_size (now 8), then task.global_size (now 32), task.local_size (now 16), trainer.prec"
    else:
        assert cvexp("task=multiclass", *TINY_SEGMENTATION, "trainer.max_steps=1", "dataset.root=data").code == 0
        monkeypatch.setattr(Segmenter, "_maps", fail)
        outcome = cvexp("task=predict", "task.images=[data]", "task.batch_size=5", "trainer.accelerator=cpu")
        keys = "lower task.batch_size (now 5)"
    assert outcome.code == 1
    assert len(outcome.message.strip().splitlines()) == 1, outcome.message
    assert f"the memory of the GPU is full (Tried to allocate 20.00 GiB); {keys}" in outcome.message
    assert runs()[0].info.status == "FAILED"
